"""What the commands share: groups of options, the configuration that they make, the console."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

_PROJECT = "can also stand in [tool.deploy] of the pyproject.toml where deploy is run."
BUILD_EPILOG = f"Every option {_PROJECT}"
EPILOG = f"Options that deploy build has too {_PROJECT}"


def shared(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    """Several options as one decorator, in the order of the help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


trust_options = shared(
    click.option(
        "--trust", multiple=True, metavar="PACKAGE", help="Run this package's classes; repeat."
    ),
    click.option("--trust-all", is_flag=True, help="Run whatever the model file asks for."),
)
model_options = shared(
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="SPEC",
        help="Shape of an input, batch first; repeat.  1x3x224x224, ids:1x8:int64, "
        "1x3x128:224:512x224 (a range)",
    ),
    click.option(
        "--image-input",
        multiple=True,
        metavar="[NAME:]mean=M,..:std=S,..",
        help="Takes uint8 images, [N, H, W, C]; engines normalize them.",
    ),
    click.option("--model", metavar="MODULE:FACTORY", help="Makes the module of a weights file."),
)
fusion_options = shared(
    click.option("--static-batch", is_flag=True, help="Keep the batch size of --input."),
    click.option("--merge-always", is_flag=True, help="Merge branches even where that costs more."),
)
source_options = shared(
    click.option(
        "--data",
        metavar="PATH",
        help=".npz of x and, for labels, y; .npy, .pt, image folder, module:callable.",
    ),
    click.option("--image-resize", type=int, help="Shorter side of images, in pixels."),
    click.option("--image-crop", type=int, help="Side of the centre crop, in pixels."),
    click.option("--image-mean", type=float, multiple=True, help="A channel's mean; repeat."),
    click.option("--image-std", type=float, multiple=True, help="A channel's deviation; repeat."),
    click.option(
        "--image-mode",
        type=click.Choice(["rgb", "gray"]),
        help="Of an image folder.  [gray where --input has one channel, else rgb]",
    ),
)
data_options = shared(
    source_options,
    click.option("--evaluation-samples", type=int, help="Samples to judge on.  [1000]"),
    click.option(
        "--classes", metavar="OUTPUT", help="Output that labels are classes of.  [the best fit]"
    ),
    click.option("--max-drop", type=float, help="Largest loss of accuracy, a fraction.  [0.01]"),
    click.option(
        "--min-sqnr",
        type=float,
        help="Smallest SQNR without labels, dB.  [20 int8, 25 bf16, 40 fp16]",
    ),
    click.option("--min-agreement", type=float, help="Smallest top-1 agreement.  [0.98]"),
)
measure_options = shared(
    click.option("--threads", type=int, help="Threads of every engine.  [all cores]"),
    click.option(
        "--batch", metavar="N|MIN,OPT,MAX", help="Batch size to measure at, TensorRT's range.  [1]"
    ),
    click.option("--measure-seconds", type=float, help="Time spent on measuring.  [20]"),
    click.option("--seed", type=int, help="Of splits, orders and synthetic inputs.  [0]"),
)

search_options = shared(
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
tensorrt_options = shared(
    click.option(
        "--target",
        type=click.Choice(["auto", "cuda"]),
        help="cuda: also what only a GPU runs, for deploy finish.  [auto]",
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
    click.option(
        "--plugin", multiple=True, metavar="LIB.so", help="With layers for TensorRT; repeat."
    ),
)


def substitute_options(*, fallback: bool) -> Callable[..., Any]:
    """What may run in place of an engine that does not run; `fallback` where nothing is said."""
    usual = "yes" if fallback else "no"
    return shared(
        click.option(
            "--rebuild/--no-rebuild",
            default=None,
            help="Build TensorRT engines that do not fit this machine again.  [no]",
        ),
        click.option(
            "--fallback/--no-fallback",
            default=None,
            help=f"Another engine may do for one that does not run.  [{usual}]",
        ),
    )


server_options = shared(
    click.option("--url", metavar="URL", help="Of a running server: http://HOST:PORT."),
    click.option("--model", metavar="NAME", help="Of the server's models.  [the only one]"),
    click.option(
        "--token", envvar="DEPLOY_TOKEN", metavar="TEXT", help="Bearer token; better DEPLOY_TOKEN."
    ),
)
load_options = shared(
    click.option("--rate", type=float, help="Requests a second, answered or not: an open loop."),
    click.option("--concurrency", type=int, help="Callers that wait for answers: a closed loop."),
    click.option(
        "--arrivals", type=click.Choice(["poisson", "fixed"]), help="At a rate.  [poisson]"
    ),
    click.option("--seconds", type=float, help="For how long requests are made.  [10]"),
    click.option("--connections", type=int, help="To the server, at most.  [128]"),
    click.option("--timeout", type=float, help="Seconds until a request is given up.  [30]"),
)


def take_substitution(flags: dict[str, Any], *, fallback: bool) -> Any:
    """What of `flags`, which lose it, says what may run in place of an engine that does not.

    `fallback` stands where nothing is said of it.
    """
    from deploy.bundle.substitutes import Substitution

    rebuild, given = flags.pop("rebuild"), flags.pop("fallback")
    return Substitution(bool(rebuild), fallback if given is None else given)


def read_config(flags: dict[str, Any]) -> Any:
    """Flags over ``[tool.deploy]`` of the working directory over defaults."""
    from deploy.config_reading import make_config, read_project_options

    directory = Path.cwd()
    where = f"{directory / 'pyproject.toml'}: [tool.deploy]"
    base = make_config(read_project_options(directory), where=where)
    given = {
        key: value
        for key, value in flags.items()
        if value is not None and value is not False and value != ()
    }
    return make_config(given, where="command line", base=base)


def print_warnings(warnings: Sequence[str]) -> None:
    """Each on a line of stderr; texts of files are cleaned."""
    from deploy.report.wording import clean

    for warning in warnings:
        click.echo(f"Warning: {clean(warning)}", err=True)


def make_console(*, stderr: bool = False) -> Any:
    """Where tables and progress go."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)
