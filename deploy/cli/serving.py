"""The commands of a server: serve, and ctl for one that runs."""

from pathlib import Path
from typing import Any

import click

from deploy.cli.options import substitute_options
from deploy.cli.sections import SectionedCommand, option, section, shared

serve_options = shared(
    option("--config", metavar="FILE", help="Options as TOML, for [tool.deploy.serve]."),
    section(
        "Where it listens",
        option("--host", metavar="ADDRESS", help="Address to listen on.  [127.0.0.1]"),
        option("--port", type=int, help="Of HTTP; 0: any free one.  [8000]"),
        option("--grpc-port", type=int, help="Of gRPC; 0: none.  [8001]"),
        option("--metrics-port", type=int, help="Of metrics and health alone; 0: none.  [0]"),
    ),
    section(
        "Engines",
        option("--engine", metavar="NAME", help="Of the bundle.  [its winner]"),
        substitute_options(fallback=True),
        option("--instances", type=int, help="Engines side by side.  [1]"),
        option("--threads", type=int, help="Threads of each engine.  [cores shared out]"),
        option("--workers", type=int, help="Processes that share the port.  [1]"),
    ),
    section(
        "Batching",
        option("--max-batch", type=int, help="Rows of a run, at most.  [8]"),
        option("--max-delay-ms", type=float, help="Wait for a fuller run, at most.  [0]"),
    ),
    section(
        "Limits",
        option("--queue-rows", type=int, help="Rows that may wait; beyond, 503.  [256]"),
        option("--queue-mb", type=int, help="MiB of inputs that may wait.  [256]"),
        option("--timeout", type=float, help="Seconds of a request; beyond, 504.  [30]"),
        option("--max-body-mb", type=int, help="MiB of a body; beyond, 413.  [64]"),
        option("--max-inflight-mb", type=int, help="MiB of all bodies held.  [1024]"),
        option("--max-connections", type=int, help="Open at a time.  [1024]"),
        option("--receive-timeout", type=float, help="Seconds to send a request in.  [30]"),
        option("--keep-alive", type=float, help="Seconds a connection may be idle.  [75]"),
    ),
    section(
        "Stopping",
        option("--drain", type=float, help="Seconds not ready but answering.  [1]"),
        option("--stop-timeout", type=float, help="Seconds for what is left then.  [30]"),
    ),
    section(
        "Answers",
        option("--shadow", type=float, help="Share also run in float32, 0 to 1.  [0]"),
        option(
            "--nonfinite", type=click.Choice(["refuse", "report"]), help="NaN outputs.  [refuse]"
        ),
    ),
    section(
        "Trust",
        option(
            "--trust", multiple=True, metavar="PACKAGE", help="Run this package's classes; repeat."
        ),
    ),
    section(
        "Security",
        option("--token", metavar="TEXT", help="Bearer token; better in DEPLOY_SERVE_TOKEN."),
        option("--tls-cert", metavar="FILE", help="Certificate chain, PEM."),
        option("--tls-key", metavar="FILE", help="Its key, PEM."),
    ),
    section(
        "Control and logs",
        option("--control", metavar="PATH", help="Unix socket to make for deploy ctl."),
        option("--traces", metavar="URL", help="OpenTelemetry collector (OTLP over HTTP)."),
        option(
            "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="[info]"
        ),
    ),
    section(
        "Ray",
        option("--min-replicas", type=int, help="Always there.  [1]"),
        option("--max-replicas", type=int, help="At most, under load.  [1]"),
        option("--target-requests", type=float, help="In a replica at a time.  [a full run each]"),
        option("--replica-cpus", type=float, help="Cores of a replica.  [1]"),
        option("--replica-gpus", type=float, help="GPUs of a replica.  [0]"),
    ),
)


@click.command(
    cls=SectionedCommand,
    epilog="Flags go before DEPLOY_SERVE_*, that before [tool.deploy.serve] or --config, "
    "that before the defaults.",
)
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path())
@serve_options
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
    """Serve bundles, or folders of them, over HTTP and gRPC.

    They speak the Open Inference Protocol v2.
    """
    import os

    from export.optional import SERVE_MODULES, require

    for module in SERVE_MODULES:
        require(module, extra="serve")
    _refuse_idle(flags, check=check, ray=ray, file=ray_config is not None)
    from deploy.serving.lifecycle import check as check_bundles
    from deploy.serving.lifecycle import serve as serve_bundles
    from deploy.serving.options import gather_options

    options = gather_options(flags, os.environ, Path.cwd())
    paths = [Path(bundle) for bundle in bundles]
    if check:
        if ray:
            from deploy.serving.ray_config import check_options

            check_options(options)
        click.echo("\n".join(check_bundles(paths, options)))
    elif ray_config is not None:
        from deploy.serving.ray_config import write_config

        click.echo(f"Ray Serve config: {write_config(ray_config, paths, options)}")
    elif ray:
        from deploy.serving.ray import serve_on_ray

        serve_on_ray(paths, options)
    else:
        serve_bundles(paths, options)


def _refuse_idle(flags: dict[str, Any], *, check: bool, ray: bool, file: bool) -> None:
    """Refuse flags that would do nothing beside others."""
    from deploy.idle_options import refuse_idle

    if file and (check or ray):
        raise click.UsageError(
            f"--ray-config writes a file and no more; --{'check' if check else 'ray'} is a call of "
            "its own."
        )
    if ray or file:
        alone = ("metrics_port", "max_connections", "receive_timeout")
        refuse_idle(flags, alone, "does nothing on Ray Serve")
    else:
        names = ("min_replicas", "max_replicas", "target_requests", "replica_cpus", "replica_gpus")
        refuse_idle(flags, names, "is for Ray Serve, and neither --ray nor --ray-config is given")


@click.group()
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
    """Verify a bundle beside what serves, then let it take over."""
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
