"""The commands that make something of a model: build, fuse, inspect, finish."""

from pathlib import Path
from typing import Any, get_args

import click

from deploy.cli.options import (
    BUILD_EPILOG,
    EPILOG,
    data_options,
    fusion_options,
    make_console,
    measure_options,
    model_options,
    print_warnings,
    read_config,
    search_options,
    source_options,
    tensorrt_options,
    trust_options,
)
from deploy.cli.sections import SectionedCommand, option, section, switch
from deploy.config import Observer


@click.command(cls=SectionedCommand, epilog=BUILD_EPILOG)
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(), help="Bundle to write.  [MODEL.deploy]")
@model_options
@trust_options
@data_options
@section(
    "Calibration",
    option("--calibration-samples", type=int, help="Samples to calibrate int8 on.  [256]"),
    option(
        "--observer",
        type=click.Choice(get_args(Observer)),
        help="How int8 ranges are found.  [auto]",
    ),
)
@measure_options(builds=True)
@section(
    "Measuring",
    option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        help="Where the baseline runs; auto: on the GPU if torch can.  [auto]",
    ),
)
@fusion_options
@section(
    "Fusion and export",
    option("--opset", type=int, help="ONNX opset, 18 to 25.  [20]"),
    switch("--golden-from-data", help="Ship real samples as golden inputs."),
)
@search_options
@tensorrt_options
def build(model_file: Path, **flags: Any) -> None:
    """Fuse, export, quantize, check, measure; write a bundle."""
    from deploy.bundle.folder import REPORT_HTML, describe_reuse
    from deploy.report import print_report
    from deploy.report.progress import ProgressDisplay
    from export.optional import require

    require("torch", extra="build")
    from deploy.pipeline import build as build_bundle

    config = read_config(flags)
    with ProgressDisplay(make_console(stderr=True)) as progress:
        bundle = build_bundle(model_file, config, progress=progress)
    print_report(bundle.report(), make_console())
    if bundle.reused:
        click.echo(f"\n{describe_reuse(bundle)}")
    click.echo(f"\nBundle: {bundle.path}\nReport: {bundle.path / REPORT_HTML}")


@click.command(cls=SectionedCommand, epilog=EPILOG)
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Program to write.  [MODEL.fused.pt2]"
)
@model_options
@trust_options
@source_options
@fusion_options
def fuse(model_file: Path, output: Path | None, **flags: Any) -> None:
    """Merge branches and norms; write the model and the proof."""
    from deploy.report.fusion import print_certificate
    from deploy.report.json_file import check_output
    from export.optional import require

    require("torch", extra="build")
    from deploy.commands.fusing import fuse_file

    target = output or model_file.with_suffix(".fused.pt2")
    check_output(target)
    result = fuse_file(model_file, read_config(flags, judging=()), target)
    print_certificate(result.certificate.as_dict(), make_console())
    print_warnings(result.warnings)
    batch = "any batch size" if result.dynamic_batch else "the batch size of the inputs alone"
    click.echo(
        f"\nMerged model: {result.path}, for {batch}\nCertificate: {result.certificate_path}"
    )


@click.command(cls=SectionedCommand, epilog=EPILOG)
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@model_options
@trust_options
@source_options
@fusion_options
def inspect(model_file: Path, **flags: Any) -> None:
    """Show the layers of a model and what would merge."""
    from deploy.report.fusion import print_certificate, print_layers
    from export.optional import require

    require("torch", extra="build")
    from deploy.commands.fusing import inspect_file

    inspection = inspect_file(model_file, read_config(flags, judging=()))
    print_layers(inspection.layers, make_console())
    make_console().print()
    print_certificate(inspection.certificate.as_dict(), make_console())
    print_warnings(inspection.warnings)


@click.command(cls=SectionedCommand, epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@trust_options
@data_options
@measure_options()
def finish(bundle: Path, **flags: Any) -> None:
    """Build and judge here the engines that waited for a GPU."""
    from deploy.commands.finishing import finish as finish_bundle
    from deploy.idle_options import JUDGING
    from deploy.report.progress import ProgressDisplay
    from deploy.report.tables import print_finish

    config = read_config(flags, judging=JUDGING)
    with ProgressDisplay(make_console(stderr=True)) as progress:
        found = finish_bundle(bundle, config, progress=progress)
    print_finish(found, make_console())
