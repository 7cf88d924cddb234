"""The commands that look at what was built: bench, verify, compare, doctor, debug."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from deploy.cli.options import (
    EPILOG,
    data_options,
    debug_data_options,
    load_options,
    make_console,
    measure_options,
    read_config,
    server_options,
    substitute_options,
    take_substitution,
    trust_options,
)
from deploy.cli.sections import SectionedCommand


@click.command(cls=SectionedCommand, epilog=EPILOG)
@click.argument(
    "target", metavar="[BUNDLE|MODEL.onnx]", required=False, type=click.Path(path_type=Path)
)
@trust_options
@measure_options()
@server_options
@load_options
@substitute_options(fallback=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="With --url: JSON to write.")
def bench(target: Path | None, url: str | None, token: str | None, **flags: Any) -> None:
    """Measure latency of the engines of a bundle, interleaved.

    With --url, drive a running server instead, with the golden inputs of BUNDLE or made-up ones.
    """
    from deploy.client.settings import refuse_without_url
    from deploy.idle_options import LOCAL, refuse_idle

    if url is not None:
        refuse_idle(flags, (*LOCAL, "threads"), "is for engines here, and --url names a server")
        refuse_idle(flags, ("measure_seconds",), "is for engines here; --seconds drives a server")
    names = ("model", "output", "rate", "concurrency", "arrivals", "seconds")
    load = {name: flags.pop(name) for name in (*names, "connections", "timeout")}
    substitution = take_substitution(flags, fallback=True)
    if url is not None:
        _bench_server((url, token), target, load, read_config(flags))
        return

    refuse_without_url(load)
    if target is None:
        raise click.UsageError("Pass a bundle, an ONNX file, or --url URL.")
    _bench_engines(target, read_config(flags), substitution)


def _bench_server(
    server: tuple[str, str | None], target: Path | None, load: dict[str, Any], config: Any
) -> None:
    """Drive the server of this URL and token; nothing else is drawn meanwhile."""
    from deploy.bundle.folder import read_bundle
    from deploy.client import bench_server, make_settings
    from deploy.report.json_file import check_output
    from deploy.report.load import describe_plan, print_load, write_load

    (url, token), model, output = server, load.pop("model"), load.pop("output")
    check_output(output)
    settings = make_settings(load, batch=config.batch, seed=config.seed)
    click.echo(describe_plan(url, settings), err=True)
    bundle = None if target is None else read_bundle(target)
    report = bench_server(url, settings, model=model, bundle=bundle, token=token)
    print_load(report, make_console())
    if output is not None:
        write_load(report, output)


def _bench_engines(target: Path, config: Any, substitution: Any) -> None:
    """Measure what `target` can be opened with."""
    from deploy.bundle.folder import read_bundle
    from deploy.cli.given import explain_error
    from deploy.commands.bench import bench_bundle, bench_onnx
    from deploy.measuring.latency import LatencySettings
    from deploy.report.progress import ProgressDisplay
    from deploy.report.tables import print_latency

    settings = LatencySettings(seconds=config.measure_seconds, seed=config.seed)
    sizes = {"batch": config.batch, "threads": config.threads}
    with ProgressDisplay(make_console(stderr=True)) as progress:
        if target.suffix == ".onnx":
            found = bench_onnx(target, settings, **sizes, progress=progress)
        else:
            bundle = read_bundle(target)
            found = bench_bundle(
                bundle,
                settings,
                **sizes,
                trust=config.trust,
                substitution=substitution,
                progress=progress,
            )
    print_latency(found, make_console())
    for note in found.notes:
        click.echo(note)
    reasons: dict[str, list[str]] = {}
    for name, error in found.not_run.items():
        reasons.setdefault(explain_error(error, sys.argv[1:]), []).append(name)
    for reason, names in reasons.items():
        click.echo(f"{', '.join(names)}: not run: {reason}")


@click.command(cls=SectionedCommand, epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@trust_options
@data_options
@click.option("--threads", type=int, help="Threads of every engine.  [all cores]")
@server_options
@substitute_options(fallback=False)
@click.option(
    "--engine", metavar="NAME", help="That the server runs.  [what it says, or the winner]"
)
def verify(bundle: Path, url: str | None, **flags: Any) -> None:
    """Check hashes, recorded answers and, with --data, parity.

    With --url, a running server answers in place of the bundle's engines.
    """
    from deploy.bundle.folder import read_bundle
    from deploy.client import ServedModel, refuse_without_url, verify_server
    from deploy.commands.verification import verify as verify_bundle
    from deploy.idle_options import JUDGING, LOCAL, refuse_idle
    from deploy.report.progress import ProgressDisplay
    from deploy.report.tables import print_verification

    if url is not None:
        refuse_idle(flags, LOCAL, "is for engines here, and --url names a server")
    token, served = flags.pop("token"), {name: flags.pop(name) for name in ("model", "engine")}
    substitution = take_substitution(flags, fallback=False)
    config = read_config(flags, judging=(*JUDGING, "min_sqnr"))
    if url is None:
        refuse_without_url(served)
    with ProgressDisplay(make_console(stderr=True)) as progress:
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
                substitution=substitution,
                progress=progress,
            )
    print_verification(results, make_console())
    _exit_verified(results)


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
def compare(a: Path, b: Path) -> None:
    """Hold B against A; exit 1 if slower or less accurate.

    Each is a bundle, or a report.json.
    """
    from deploy.bundle.folder import read_result
    from deploy.report import compare_reports, print_comparison

    comparison = compare_reports(read_result(a), read_result(b))
    print_comparison(comparison, make_console())
    sys.exit(1 if comparison.regressions else 0)


@click.command()
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@trust_options
def doctor(bundle: Path | None, **flags: Any) -> None:
    """Say what runs on this machine, and if BUNDLE is sound."""
    from deploy.commands.doctor import diagnose
    from deploy.report.tables import print_diagnosis

    diagnosis = diagnose(bundle, trust=read_config(flags).trust)
    print_diagnosis(diagnosis, make_console())
    _exit_verified(diagnosis.bundle)


@click.group()
def debug() -> None:
    """Find out why an engine is wrong."""


@debug.command(cls=SectionedCommand, epilog=EPILOG)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--precision", required=True, type=click.Choice(["int8", "fp16"]), help="To look at.")
@click.option(
    "--engine",
    default="onnxruntime",
    type=click.Choice(["onnxruntime", "openvino"]),
    help="That runs it.  [onnxruntime]",
)
@click.option("--builds", type=int, default=100, help="Mixes to try, at most.  [100]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="JSON to write as well.")
@debug_data_options
@click.option("--threads", type=int, help="Threads of the engine.  [all cores]")
def precision(
    bundle: Path, precision: str, engine: str, builds: int, output: Path | None, **flags: Any
) -> None:
    """Find the fewest layers that must stay float.

    With them in float, the precision holds its gate. Of --data a part calibrates int8, as in a
    build, and outputs are compared on the rest.
    """
    from deploy.bundle.folder import read_bundle
    from deploy.commands.precision_debug import debug_precision
    from deploy.report.json_file import check_output
    from deploy.report.precision import print_precision, write_precision
    from deploy.report.progress import ProgressDisplay

    check_output(output)
    config = read_config(flags, judging=())
    with ProgressDisplay(make_console(stderr=True)) as progress:
        found = debug_precision(
            read_bundle(bundle),
            precision=precision,
            engine=engine,
            config=config,
            builds=builds,
            progress=progress,
        )
    print_precision(found, make_console())
    if output is not None:
        write_precision(found, output)
    sys.exit(0 if found.complete else 1)


def _exit_verified(results: Sequence[Any]) -> None:
    """1 where an engine fails; else 2, with what was lacking, where one was not opened; else 0."""
    if not all(result.holds for result in results):
        sys.exit(1)
    for result in results:
        if result.untrusted is not None:
            raise result.untrusted
