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
      deploy finish model.deploy                on the GPU machine: what waited for it
      deploy bench --url URL --rate 200         a running server under load
      deploy debug precision model.deploy --precision int8     which layers are wrong
      deploy serve model.deploy                 the verified winner behind HTTP and gRPC
      deploy ctl --control SOCKET load new.deploy              a new version, no request lost
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
    click.option(
        "--batch", metavar="N|MIN,OPT,MAX", help="Batch size to measure at, TensorRT's range.  [1]"
    ),
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
_tensorrt_options = _shared(
    click.option(
        "--target",
        type=click.Choice(["auto", "cuda"]),
        help="cuda: all but the engines of NVIDIA TensorRT, for deploy finish.  [auto]",
    ),
    click.option(
        "--batches", multiple=True, metavar="MIN,OPT,MAX", help="A further profile; repeat."
    ),
    click.option(
        "--compute-capability",
        multiple=True,
        metavar="SM",
        help="That TensorRT for RTX builds for; repeat.  [SM80 SM89 SM120]",
    ),
    click.option("--workspace-mb", type=int, help="Scratch memory of a layer in TensorRT, MiB."),
    click.option("--optimization-level", type=int, help="Of TensorRT's builder, 0 to 5.  [3]"),
    click.option("--no-tf32", is_flag=True, help="No TensorFloat-32 in float32 engines."),
    click.option("--refittable", is_flag=True, help="TensorRT engines that take new weights."),
    click.option("--stripped", is_flag=True, help="TensorRT engines without their weights."),
    click.option("--version-compatible", is_flag=True, help="For later versions of TensorRT too."),
    click.option("--hardware-compatible", is_flag=True, help="For later GPUs too."),
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
@_tensorrt_options
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    help="Where the baseline runs; auto: on the GPU if torch can.  [auto]",
)
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


@cli.command(epilog=_EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@_trust_options
@_data_options
@_measure_options
def finish(bundle: Path, **flags: Any) -> None:
    """Build, check and measure here the engines that waited for a GPU."""
    from deploy.finishing import finish as finish_bundle
    from deploy.report.progress import ProgressDisplay
    from deploy.report.tables import print_finish

    with ProgressDisplay(_console(stderr=True)) as progress:
        found = finish_bundle(bundle, _config(flags), progress=progress)
    print_finish(found, _console())


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


_serve_options = _shared(
    click.option("--config", metavar="FILE", help="Options as TOML, for [tool.deploy.serve]."),
    click.option("--host", metavar="ADDRESS", help="Address to listen on.  [127.0.0.1]"),
    click.option("--port", type=int, help="Of HTTP; 0: any free one.  [8000]"),
    click.option("--grpc-port", type=int, help="Of gRPC; 0: none.  [8001]"),
    click.option("--metrics-port", type=int, help="Of metrics and health alone; 0: none.  [0]"),
    click.option("--engine", metavar="NAME", help="Of the bundle.  [its winner]"),
    click.option("--instances", type=int, help="Engines side by side.  [1]"),
    click.option("--threads", type=int, help="Threads of each engine.  [cores shared out]"),
    click.option("--workers", type=int, help="Processes that share the port.  [1]"),
    click.option("--max-batch", type=int, help="Rows of a run, at most.  [8]"),
    click.option("--max-delay-ms", type=float, help="Wait for a fuller run, at most.  [0]"),
    click.option("--queue-rows", type=int, help="Rows that may wait; beyond, 503.  [256]"),
    click.option("--queue-mb", type=int, help="MiB of inputs that may wait.  [256]"),
    click.option("--timeout", type=float, help="Seconds of a request; beyond, 504.  [30]"),
    click.option("--max-body-mb", type=int, help="MiB of a body; beyond, 413.  [64]"),
    click.option("--max-inflight-mb", type=int, help="MiB of all bodies held.  [1024]"),
    click.option("--max-connections", type=int, help="Open at a time.  [1024]"),
    click.option("--receive-timeout", type=float, help="Seconds to send a request in.  [30]"),
    click.option("--keep-alive", type=float, help="Seconds a connection may be idle.  [75]"),
    click.option("--drain", type=float, help="Seconds not ready but answering.  [1]"),
    click.option("--stop-timeout", type=float, help="Seconds for what is left then.  [30]"),
    click.option("--shadow", type=float, help="Share also run in float32, 0 to 1.  [0]"),
    click.option(
        "--nonfinite", type=click.Choice(["refuse", "report"]), help="NaN outputs.  [refuse]"
    ),
    click.option("--trust", multiple=True, metavar="PACKAGE", help="Run this package's classes."),
    click.option("--token", metavar="TEXT", help="Bearer token; better in DEPLOY_SERVE_TOKEN."),
    click.option("--tls-cert", metavar="FILE", help="Certificate chain, PEM."),
    click.option("--tls-key", metavar="FILE", help="Its key, PEM."),
    click.option("--control", metavar="PATH", help="Unix socket to make for deploy ctl."),
    click.option(
        "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[info]"
    ),
    click.option("--min-replicas", type=int, help="On Ray: always there.  [1]"),
    click.option("--max-replicas", type=int, help="On Ray: at most, under load.  [1]"),
    click.option("--target-requests", type=float, help="On Ray: in a replica.  [a full run each]"),
    click.option("--replica-cpus", type=float, help="On Ray: cores of a replica.  [1]"),
    click.option("--replica-gpus", type=float, help="On Ray: GPUs of a replica.  [0]"),
)


@cli.command(epilog="Options: flags, then DEPLOY_SERVE_*, then [tool.deploy.serve], then these.")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path())
@_serve_options
@click.option("--check", is_flag=True, help="Verify bundles and options, and exit.")
@click.option("--ray", is_flag=True, help="Serve in replicas, on Ray Serve.")
@click.option(
    "--ray-config",
    metavar="OUT.yaml",
    type=click.Path(path_type=Path),
    help="Write the config file of `serve deploy`, and exit.",
)
def serve(
    bundles: tuple[str, ...], check: bool, ray: bool, ray_config: Path | None, **flags: Any
) -> None:
    """Serve bundles, or folders of them, by the Open Inference Protocol v2."""
    import os

    from export.optional import require

    for module in ("starlette", "uvicorn", "uvloop", "httptools", "orjson", "grpc"):
        require(module, extra="serve")
    from deploy.serving.lifecycle import check as check_bundles
    from deploy.serving.lifecycle import serve as serve_bundles
    from deploy.serving.options import gather_options

    options = gather_options(flags, os.environ, Path.cwd())
    paths = [Path(bundle) for bundle in bundles]
    if check:
        click.echo("\n".join(check_bundles(paths, options)))
    elif ray_config is not None:
        from deploy.serving.ray_config import write_config

        click.echo(f"Ray Serve config: {write_config(ray_config, paths, options)}")
    elif ray:
        from deploy.serving.ray import serve_on_ray

        serve_on_ray(paths, options)
    else:
        serve_bundles(paths, options)


@cli.group()
@click.option("--control", required=True, metavar="PATH", help="Socket of deploy serve --control.")
@click.pass_context
def ctl(context: click.Context, control: str) -> None:
    """Look at a server that runs, and change what it serves."""
    context.obj = Path(control)


@ctl.command()
@click.pass_obj
def status(control: Path) -> None:
    """Show the models of the server, as JSON."""
    _send(control, {"command": "status"})


@ctl.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--name", help="Of the model.  [the folder's, without .deploy]")
@click.option("--keep", is_flag=True, help="Serve the versions that there are as well.")
@click.pass_obj
def load(control: Path, bundle: Path, name: str | None, keep: bool) -> None:
    """Verify a bundle beside what serves, and let it take over as the next version."""
    path = str(bundle.absolute())
    _send(control, {"command": "load", "path": path, "name": name, "keep": keep})


@ctl.command()
@click.argument("name")
@click.option("--version", help="One of its versions.  [all]")
@click.pass_obj
def unload(control: Path, name: str, version: str | None) -> None:
    """Serve a model no more, once it has answered what it took."""
    _send(control, {"command": "unload", "name": name, "version": version})


def _send(control: Path, command: dict[str, Any]) -> None:
    import json

    from export.optional import require

    require("starlette", extra="serve")
    from deploy.serving.control import send_command

    click.echo(json.dumps(send_command(control, command), indent=2))


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
