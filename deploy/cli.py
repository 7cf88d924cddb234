"""The command line: parse, call one library function, print, exit code. No logic.

Exit codes: 0 done and the gates hold; 1 a gate failed; 2 wrong use or bad input; 130 interrupted.
Heavy modules are imported inside the commands, so that --help answers at once.
"""

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from deploy.config import Observer
from export.errors import DeployError

_EPILOG = "Every option can also stand in [tool.deploy] of the pyproject.toml where deploy is run."


def main() -> None:
    """Entry point of the ``deploy`` command."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # clean up as well
    try:
        cli(standalone_mode=False, prog_name="deploy")
    except DeployError as error:
        from deploy.commands import explain_error

        click.echo(f"Error: {explain_error(error, sys.argv[1:])}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. What was there before is as it was.", err=True)
        sys.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deploykit", prog_name="deploy")
def cli() -> None:
    """Take a trained PyTorch model to a verified, fast engine.

    \b
      deploy build model.pt                     writes model.deploy/
      deploy inspect model.pt                   its layers, and what would merge
      deploy fuse model.pt -o fused.pt2         only the merged model and its proof
      deploy compare A.deploy B.deploy          exit 1 on a regression
      deploy verify model.deploy --data DIR     parity again, on other data
      deploy bench --url URL --rate 200         a running server under load
      deploy debug precision model.deploy --precision int8     which layers are wrong
    """


def _shared(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    """Several options as one decorator, in the order of the help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_trust_options = _shared(
    click.option("--trust", multiple=True, metavar="PACKAGE", help="Run this package's classes."),
    click.option("--trust-all", is_flag=True, help="Run whatever the model file asks for."),
)
_model_options = _shared(
    click.option(
        "--input", "inputs", multiple=True, metavar="SPEC", help="1x3x224x224, ids:1x8:int64"
    ),
    click.option("--model", metavar="MODULE:FACTORY", help="Makes the module of a weights file."),
)
_fusion_options = _shared(
    click.option("--static-batch", is_flag=True, help="Keep the batch size of --input."),
    click.option("--merge-always", is_flag=True, help="Merge branches even where that costs more."),
)
_data_options = _shared(
    click.option("--data", metavar="PATH", help=".npz, .npy, .pt, image folder, module:callable."),
    click.option("--evaluation-samples", type=int, help="Samples to judge on.  [1000]"),
    click.option("--image-resize", type=int, help="Shorter side of images, in pixels."),
    click.option("--image-crop", type=int, help="Side of the centre crop, in pixels."),
    click.option("--image-mean", type=float, multiple=True, help="A channel's mean; repeat."),
    click.option("--image-std", type=float, multiple=True, help="A channel's deviation; repeat."),
    click.option("--image-mode", type=click.Choice(["rgb", "gray"]), help="Of images.  [rgb]"),
    click.option("--classes", metavar="OUTPUT", help="Output that labels are classes of."),
    click.option("--max-drop", type=float, help="Largest loss of accuracy, a fraction.  [0.01]"),
    click.option("--min-sqnr", type=float, help="Smallest SQNR in dB without labels."),
    click.option("--min-agreement", type=float, help="Smallest top-1 agreement.  [0.98]"),
)
_measure_options = _shared(
    click.option("--threads", type=int, help="Threads of every engine.  [all cores]"),
    click.option("--batch", type=int, help="Batch size to measure latency at.  [1]"),
    click.option("--measure-seconds", type=float, help="Time spent on measuring.  [20]"),
    click.option("--seed", type=int, help="Of splits, orders and synthetic inputs.  [0]"),
)

_search_options = _shared(
    click.option(
        "--effort",
        type=click.Choice(["quick", "normal", "thorough"]),
        help="Time for the search over precisions.  [normal]",
    ),
    click.option(
        "--recover",
        multiple=True,
        type=click.Choice(["auto", "none", "bias", "rounding", "equalization", "fallback"]),
        help="What to try where int8 fails; repeat.  [auto]",
    ),
    click.option("--remeasure", is_flag=True, help="Build again though nothing has changed."),
    click.option("--no-cache", is_flag=True, help="Use nothing that earlier builds found out."),
)


@cli.command(epilog=_EPILOG)
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(), help="Bundle to write.")
@_model_options
@_trust_options
@_data_options
@click.option("--calibration-samples", type=int, help="Samples to calibrate int8 on.  [256]")
@click.option(
    "--observer", type=click.Choice(get_args(Observer)), help="How int8 ranges are found.  [auto]"
)
@_measure_options
@_fusion_options
@_search_options
@click.option("--opset", type=int, help="ONNX opset, 18 to 25.  [20]")
@click.option("--golden-from-data", is_flag=True, help="Ship real samples as golden inputs.")
def build(model_file: Path, **flags: Any) -> None:
    """Fuse, export, quantize, check, measure; write a verified bundle."""
    from deploy.bundle import REPORT_HTML, describe_reuse
    from deploy.report import print_report
    from deploy.report.progress import ProgressDisplay
    from export.optional import require

    require("torch", extra="build")
    from deploy.pipeline import build as build_bundle

    config = _config(flags)
    with ProgressDisplay(_console(stderr=True)) as progress:
        bundle = build_bundle(model_file, config, progress=progress)
    print_report(bundle.report(), _console())
    if bundle.reused:
        click.echo(f"\n{describe_reuse(bundle)}")
    click.echo(f"\nBundle: {bundle.path}\nReport: {bundle.path / REPORT_HTML}")


@cli.command(epilog=_EPILOG)
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Program to write, .pt2.")
@_model_options
@_trust_options
@_fusion_options
def fuse(model_file: Path, output: Path | None, **flags: Any) -> None:
    """Merge branches and norms; write the merged model and its certificate."""
    from deploy.report.fusion import print_certificate
    from export.optional import require

    require("torch", extra="build")
    from deploy.fusing import fuse_file

    result = fuse_file(model_file, _config(flags), output or model_file.with_suffix(".fused.pt2"))
    print_certificate(result.certificate.as_dict(), _console())
    batch = "any batch size" if result.dynamic_batch else "the batch size of the inputs alone"
    click.echo(
        f"\nMerged model: {result.path}, for {batch}\nCertificate: {result.certificate_path}"
    )


@cli.command(epilog=_EPILOG)
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@_model_options
@_trust_options
@_fusion_options
def inspect(model_file: Path, **flags: Any) -> None:
    """Show the layers of a model and what would merge; write nothing."""
    from deploy.report.fusion import print_certificate, print_layers
    from export.optional import require

    require("torch", extra="build")
    from deploy.fusing import inspect_file

    inspection = inspect_file(model_file, _config(flags))
    print_layers(inspection.layers, _console())
    _console().print()
    print_certificate(inspection.certificate.as_dict(), _console())


_server_options = _shared(
    click.option("--url", metavar="URL", help="Of a running server: http://HOST:PORT."),
    click.option("--model", metavar="NAME", help="Of the server's models.  [the only one]"),
    click.option(
        "--token", envvar="DEPLOY_TOKEN", metavar="TEXT", help="Bearer token; better DEPLOY_TOKEN."
    ),
)
_load_options = _shared(
    click.option("--rate", type=float, help="Requests a second, answered or not: an open loop."),
    click.option("--concurrency", type=int, help="Callers that wait for answers: a closed loop."),
    click.option(
        "--arrivals", type=click.Choice(["poisson", "fixed"]), help="At a rate.  [poisson]"
    ),
    click.option("--seconds", type=float, help="For how long requests are made.  [10]"),
    click.option("--connections", type=int, help="To the server, at most.  [128]"),
    click.option("--timeout", type=float, help="Seconds until a request is given up.  [30]"),
)


@cli.command(epilog=_EPILOG)
@click.argument(
    "target", metavar="[BUNDLE|MODEL.onnx]", required=False, type=click.Path(path_type=Path)
)
@_trust_options
@_measure_options
@_server_options
@_load_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="With --url: JSON to write.")
def bench(target: Path | None, url: str | None, token: str | None, **flags: Any) -> None:
    """Measure latency, interleaved, of every engine that can be opened.

    With --url, drive a running server instead, with the golden inputs of BUNDLE or made-up ones.
    """
    from deploy.client.settings import refuse_without_url

    names = ("model", "output", "rate", "concurrency", "arrivals", "seconds")
    load = {name: flags.pop(name) for name in (*names, "connections", "timeout")}
    if url is not None:
        _bench_server((url, token), target, load, _config(flags))
        return

    refuse_without_url(load)
    if target is None:
        raise click.UsageError("Pass a bundle, an ONNX file, or --url URL.")
    _bench_engines(target, _config(flags))


def _bench_server(
    server: tuple[str, str | None], target: Path | None, load: dict[str, Any], config: Any
) -> None:
    """Drive the server of this URL and token; nothing else is drawn meanwhile."""
    from deploy.bundle import read_bundle
    from deploy.client import bench_server, make_settings
    from deploy.report.load import describe_plan, print_load, write_load

    (url, token), model, output = server, load.pop("model"), load.pop("output")
    settings = make_settings(load, batch=config.batch, seed=config.seed)
    click.echo(describe_plan(url, settings), err=True)
    bundle = None if target is None else read_bundle(target)
    report = bench_server(url, settings, model=model, bundle=bundle, token=token)
    print_load(report, _console())
    if output is not None:
        write_load(report, output)


def _bench_engines(target: Path, config: Any) -> None:
    """Measure what `target` can be opened with."""
    from deploy.bench import bench_bundle, bench_onnx
    from deploy.bundle import read_bundle
    from deploy.commands import explain_error
    from deploy.latency import LatencySettings
    from deploy.report.progress import ProgressDisplay
    from deploy.report.tables import print_latency

    settings = LatencySettings(seconds=config.measure_seconds, seed=config.seed)
    sizes = {"batch": config.batch, "threads": config.threads}
    with ProgressDisplay(_console(stderr=True)) as progress:
        if target.suffix == ".onnx":
            found = bench_onnx(target, settings, **sizes, progress=progress)
        else:
            bundle = read_bundle(target)
            found = bench_bundle(bundle, settings, **sizes, trust=config.trust, progress=progress)
    print_latency(found, _console())
    for name, error in found.not_run.items():
        click.echo(f"{name}: not run: {explain_error(error, sys.argv[1:])}")


@cli.command(epilog=_EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@_trust_options
@_data_options
@click.option("--threads", type=int, help="Threads of every engine.  [all cores]")
@_server_options
@click.option(
    "--engine", metavar="NAME", help="That the server runs.  [what it says, or the winner]"
)
def verify(bundle: Path, url: str | None, **flags: Any) -> None:
    """Check a bundle's hashes, its recorded answers and, with --data, its parity.

    With --url, a running server answers in place of the bundle's engines.
    """
    from deploy.bundle import read_bundle
    from deploy.client import ServedModel, refuse_without_url, verify_server
    from deploy.report.progress import ProgressDisplay
    from deploy.report.tables import print_verification
    from deploy.verification import verify as verify_bundle

    token, served = flags.pop("token"), {name: flags.pop(name) for name in ("model", "engine")}
    config = _config(flags)
    if url is None:
        refuse_without_url(served)
    with ProgressDisplay(_console(stderr=True)) as progress:
        if url is not None:
            model = ServedModel(url, served["model"], served["engine"], token)
            results = verify_server(read_bundle(bundle), model, config=config, progress=progress)
        else:
            results = verify_bundle(
                read_bundle(bundle),
                data=config.data,
                config=config,
                threads=config.threads,
                trust=config.trust,
                progress=progress,
            )
    print_verification(results, _console())
    _exit_verified(results)


@cli.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
def compare(a: Path, b: Path) -> None:
    """Hold report B against report A; exit 1 if B is slower or less accurate."""
    from deploy.bundle import read_result
    from deploy.report import compare_reports, print_comparison

    comparison = compare_reports(read_result(a), read_result(b))
    print_comparison(comparison, _console())
    sys.exit(1 if comparison.regressions else 0)


@cli.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@_trust_options
def doctor(bundle: Path | None, **flags: Any) -> None:
    """Say what this machine can run, and whether BUNDLE is sound on it."""
    from deploy.doctor import diagnose
    from deploy.report.tables import print_diagnosis

    diagnosis = diagnose(bundle, trust=_config(flags).trust)
    print_diagnosis(diagnosis, _console())
    _exit_verified(diagnosis.bundle)


@cli.group()
def debug() -> None:
    """Find out why an engine is wrong."""


@debug.command(epilog=_EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", required=True, type=click.Choice(["int8", "fp16"]), help="To look at.")
@click.option(
    "--engine",
    default="onnxruntime",
    show_default=True,
    type=click.Choice(["onnxruntime", "openvino"]),
    help="That runs it.",
)
@click.option("--builds", type=int, default=100, show_default=True, help="Mixes to try, at most.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON to write as well.")
@_data_options
@click.option("--threads", type=int, help="Threads of the engine.  [all cores]")
def precision(
    bundle: Path, precision: str, engine: str, builds: int, output: Path | None, **flags: Any
) -> None:
    """Name the fewest layers that must stay float for a precision to hold its gate."""
    from deploy.bundle import read_bundle
    from deploy.precision_debug import debug_precision
    from deploy.report.precision import print_precision, write_precision
    from deploy.report.progress import ProgressDisplay

    with ProgressDisplay(_console(stderr=True)) as progress:
        found = debug_precision(
            read_bundle(bundle),
            precision=precision,
            engine=engine,
            config=_config(flags),
            builds=builds,
            progress=progress,
        )
    print_precision(found, _console())
    if output is not None:
        write_precision(found, output)
    sys.exit(0 if found.complete else 1)


@cli.command("export-triton")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Model repository."
)
@click.option("--name", help="Of the model.  [that of the model file]")
@click.option("--version", type=int, default=1, show_default=True, help="Of the model.")
@click.option("--engine", metavar="NAME", help="To export.  [the winner, or the fastest]")
def export_triton(bundle: Path, output: Path, **options: Any) -> None:
    """Write a bundle into a model repository of Triton."""
    from deploy.bundle import read_bundle
    from deploy.exports import export_triton as write_repository

    export = write_repository(read_bundle(bundle), output, **options)
    _warn(export.warnings)
    click.echo(f"{export.engine} is version {export.version} of {export.name}: {export.path}")


@cli.command("export-kserve")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="YAML to write."
)
@click.option(
    "--runtime",
    type=click.Choice(["deploy", "triton"]),
    default="deploy",
    show_default=True,
    help="That serves it.",
)
@click.option("--image", help="Container image of the runtime; deploy needs one.")
@click.option("--storage-uri", metavar="URI", help="Where the bundle or the repository is.")
@click.option("--name", help="Of the service.  [that of the model file]")
def export_kserve(bundle: Path, output: Path, **options: Any) -> None:
    """Write an InferenceService of KServe."""
    from deploy.bundle import read_bundle
    from deploy.exports import KserveOptions
    from deploy.exports import export_kserve as write_service

    _warn(write_service(read_bundle(bundle), output, KserveOptions(**options)))
    click.echo(f"InferenceService: {output}")


def _warn(warnings: Sequence[str]) -> None:
    from deploy.report.wording import clean

    for warning in warnings:
        click.echo(f"Warning: {clean(warning)}", err=True)


def _exit_verified(results: Sequence[Any]) -> None:
    """1 where an engine fails; else 2, with what was lacking, where one was not opened; else 0."""
    if not all(result.holds for result in results):
        sys.exit(1)
    for result in results:
        if result.untrusted is not None:
            raise result.untrusted


def _config(flags: dict[str, Any]) -> Any:
    """Flags over ``[tool.deploy]`` of the working directory over defaults."""
    from deploy.config import make_config, read_project_options

    directory = Path.cwd()
    where = f"{directory / 'pyproject.toml'}: [tool.deploy]"
    base = make_config(read_project_options(directory), where=where)
    given = {
        key: value
        for key, value in flags.items()
        if value is not None and value is not False and value != ()
    }
    return make_config(given, where="command line", base=base)


def _console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


if __name__ == "__main__":
    main()
