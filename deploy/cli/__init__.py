"""The command line: parse, call one library function, print, exit code. No logic.

Exit codes: 0 done and the gates hold; 1 a gate failed, or another `DeployError` that is no
`InputError`; 2 wrong use or bad input; 130 interrupted; 143 ended by SIGTERM; 141 nobody reads the
output any more.
Heavy modules are imported inside the commands, so that --help answers at once.
"""

import contextlib
import errno
import os
import select
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from deploy.cli.building import build, finish, fuse, inspect
from deploy.cli.exporting import export_kserve, export_triton
from deploy.cli.judging import bench, compare, debug, doctor, verify
from deploy.cli.serving import ctl, serve
from export.errors import DeployError

COMMANDS = (
    build,
    inspect,
    fuse,
    finish,
    bench,
    verify,
    compare,
    doctor,
    debug,
    serve,
    ctl,
    export_triton,
    export_kserve,
)


def main() -> None:
    """Entry point of the ``deploy`` command."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # clean up as well
    # torch's own encoders make some from a padding mask, and warn whoever runs one of the first
    warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)
    try:
        cli(standalone_mode=False, prog_name="deploy")
    except DeployError as error:
        from deploy.cli.given import explain_error

        click.echo(f"Error: {explain_error(error, sys.argv[1:])}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        said = _explain_system(error)
        if said is None:
            raise
        click.echo(f"Error: {said}", err=True)
        _drop_unwritten()
        sys.exit(2)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. What was there before is as it was.", err=True)
        sys.exit(130)


def _drop_unwritten() -> None:
    """Leave out what standard output takes no more; Python would try again and exit with 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain_system(error: OSError) -> str | None:
    """What the user can mend of what any look at a path, and any write, may raise; else None."""
    from deploy.full_disk import FULL, explain_full
    from deploy.report.wording import clean

    if error.errno == errno.ENAMETOOLONG:
        return f"{clean(f'{error.strerror}: {error.filename}')}. Choose a shorter one."
    if error.errno in FULL:
        what, fix = explain_full(error, Path.cwd(), otherwise="write elsewhere")
        return f"{clean(what)}. {fix}"
    return None


@contextlib.contextmanager
def _minding_readers() -> Iterator[None]:
    """Where nobody reads the output any more, click and rich exit with 1, as if a gate failed."""
    try:
        yield
    except BrokenPipeError as error:
        if not _reader_is_gone():  # of which click would say nothing
            raise DeployError(f"Whatever this was connected to has gone: {error}.") from error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is not yet out
        sys.exit(128 + signal.SIGPIPE)
    except SystemExit as stop:
        if not isinstance(stop.__context__, BrokenPipeError):  # rich, which has seen to the rest
            raise
        sys.exit(128 + signal.SIGPIPE)


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # none, or one in memory
        return False
    watch = select.poll()
    watch.register(output, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))


class _Commands(click.Group):
    """The group of all commands; its own help and theirs are printed in here."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """As click does, whoever reads."""
        with _minding_readers():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does, whoever reads."""
        with _minding_readers():
            return super().invoke(ctx)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
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


for command in COMMANDS:
    cli.add_command(command)
