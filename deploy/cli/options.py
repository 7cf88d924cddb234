"""What the commands share: groups of options, the configuration that they make, the console."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from deploy.cli.sections import option, section, shared, switch

_PROJECT = "can also stand in [tool.deploy] of the pyproject.toml where deploy is run."
BUILD_EPILOG = f"Every option {_PROJECT}"
EPILOG = f"Options that deploy build has too {_PROJECT}"


trust_options = section(
    "Trust",
    option("--trust", multiple=True, metavar="PACKAGE", help="Run this package's classes; repeat."),
    option("--trust-all", is_flag=True, help="Run whatever the model file asks for."),
)
model_options = section(
    "Model",
    option(
        "--input",
        "inputs",
        multiple=True,
        metavar="SPEC",
        help="Shape of an input, batch first; repeat.  1x3x224x224, ids:1x8:int64, "
        "1x3x128:224:512x224 (a range)",
    ),
    option(
        "--image-input",
        multiple=True,
        metavar="[NAME:]mean=M,..:std=S,..",
        help="Takes uint8 images, [N, H, W, C]; engines normalize them.",
    ),
    option("--model", metavar="MODULE:FACTORY", help="Makes the module of a weights file."),
)
fusion_options = section(
    "Fusion and export",
    switch("--static-batch", help="Keep the batch size of --input."),
    switch("--merge-always", help="Merge branches even where that costs more."),
)
source_options = section(
    "Data",
    option(
        "--data",
        metavar="PATH",
        help=".npz of x and, for labels, y or y_OUTPUT; .npy, .pt, image folder, module:callable.",
    ),
    option("--image-resize", type=int, help="Shorter side of images, in pixels."),
    option("--image-crop", type=int, help="Side of the centre crop, in pixels."),
    option(
        "--image-mean",
        type=float,
        multiple=True,
        help="A channel's mean, of pixels in 0 to 1; repeat.",
    ),
    option(
        "--image-std", type=float, multiple=True, help="A channel's deviation, likewise; repeat."
    ),
    option(
        "--image-mode",
        type=click.Choice(["rgb", "gray"]),
        help="Of an image folder.  [gray where --input or the bundle has one channel, else rgb]",
    ),
)
data_options = shared(
    source_options,
    section(
        "Data",
        option("--evaluation-samples", type=int, help="Samples to judge on.  [1000]"),
        option(
            "--classes",
            metavar="OUTPUT[:AXIS]",
            help="Output, and its axis, that labels are classes of.  [the best fit]",
        ),
    ),
    section(
        "Gates",
        option(
            "--max-drop", type=float, help="Largest loss of accuracy, or R², a fraction.  [0.01]"
        ),
        option(
            "--min-sqnr",
            type=float,
            help="Smallest SQNR without labels, dB.  [20 int8, 25 bf16, 40 fp16]",
        ),
        option("--min-agreement", type=float, help="Smallest top-1 agreement.  [0.98]"),
    ),
)
debug_data_options = shared(
    source_options,
    section(
        "Gates",
        option("--min-sqnr", type=float, help="Smallest SQNR, dB.  [20 int8, 40 fp16]"),
    ),
)


def measure_options(*, builds: bool = False) -> Callable[..., Any]:
    """How engines are measured; where some are built, ``--batch`` may be the range they take."""
    batch = option("--batch", metavar="N", help="Batch size to measure at.  [1]")
    if builds:
        batch = option(
            "--batch",
            metavar="N|MIN,OPT,MAX",
            help="Batch size to measure at, TensorRT's range.  [1]",
        )
    return section(
        "Measuring",
        option("--threads", type=int, help="Threads of every engine.  [all cores]"),
        batch,
        option("--measure-seconds", type=float, help="Time to measure for, after warm-up.  [20]"),
        option("--seed", type=int, help="Of splits, orders and synthetic inputs.  [0]"),
    )


search_options = section(
    "Search",
    option(
        "--effort",
        type=click.Choice(["quick", "normal", "thorough"]),
        help="Time for the search over precisions.  [normal]",
    ),
    option(
        "--recover",
        multiple=True,
        type=click.Choice(["auto", "none", "bias", "rounding", "equalization", "fallback"]),
        help="What to try where int8 fails; repeat.  [auto]",
    ),
    switch("--remeasure", help="Build again though nothing has changed."),
    switch("--no-cache", "--cache", help="Use nothing that earlier builds found out."),
)
tensorrt_options = section(
    "NVIDIA GPUs",
    option(
        "--target",
        type=click.Choice(["auto", "cuda"]),
        help="cuda: also what only a GPU runs, for deploy finish.  [auto]",
    ),
    option("--batches", multiple=True, metavar="MIN,OPT,MAX", help="A further profile; repeat."),
    option(
        "--compute-capability",
        multiple=True,
        metavar="SM",
        help="That TensorRT for RTX builds for; repeat.  [SM80 SM89 SM120]",
    ),
    option("--workspace-mb", type=int, help="Scratch memory of a layer in TensorRT, MiB."),
    option("--optimization-level", type=int, help="Of TensorRT's builder, 0 to 5.  [3]"),
    switch("--no-tf32", "--tf32", help="No TensorFloat-32 in float32 engines."),
    switch("--refittable", help="TensorRT engines that take new weights."),
    switch("--stripped", help="TensorRT engines without their weights."),
    switch("--version-compatible", help="For later versions of TensorRT too."),
    switch("--hardware-compatible", help="For later GPUs too."),
    option("--plugin", multiple=True, metavar="LIB.so", help="With layers for TensorRT; repeat."),
)


def substitute_options(*, fallback: bool) -> Callable[..., Any]:
    """What may run in place of an engine that does not run; `fallback` where nothing is said."""
    usual = "yes" if fallback else "no"
    return section(
        "Engines that do not run here",
        option(
            "--rebuild/--no-rebuild",
            default=None,
            help="Build TensorRT engines that do not fit this machine again.  [no]",
        ),
        option(
            "--fallback/--no-fallback",
            default=None,
            help=f"Another engine may do for one that does not run.  [{usual}]",
        ),
    )


server_options = section(
    "A running server",
    option("--url", metavar="URL", help="Of a running server: http://HOST:PORT."),
    option("--model", metavar="NAME", help="Of the server's models.  [the only one]"),
    option(
        "--token", envvar="DEPLOY_TOKEN", metavar="TEXT", help="Bearer token; better DEPLOY_TOKEN."
    ),
)
load_options = section(
    "Load on it",
    option("--rate", type=float, help="Requests a second, answered or not: an open loop."),
    option("--concurrency", type=int, help="Callers that wait for answers: a closed loop."),
    option("--arrivals", type=click.Choice(["poisson", "fixed"]), help="At a rate.  [poisson]"),
    option("--seconds", type=float, help="For how long requests are made.  [10]"),
    option("--connections", type=int, help="To the server, at most.  [128]"),
    option("--timeout", type=float, help="Seconds until a request is given up.  [30]"),
)


def take_substitution(flags: dict[str, Any], *, fallback: bool) -> Any:
    """What of `flags`, which lose it, says what may run in place of an engine that does not.

    `fallback` stands where nothing is said of it.
    """
    from deploy.bundle.substitutes import Substitution

    rebuild, given = flags.pop("rebuild"), flags.pop("fallback")
    return Substitution(bool(rebuild), fallback if given is None else given)


def read_config(flags: dict[str, Any], *, judging: Sequence[str] | None = None) -> Any:
    """Flags over ``[tool.deploy]`` of the working directory over defaults.

    `judging`: the flags that say how data are judged; these and those of images are refused where
    the data are none that they are for. None: nothing is refused.
    """
    from deploy.config_reading import make_config, read_project_options
    from deploy.idle_options import refuse_of_data

    directory = Path.cwd()
    where = f"{directory / 'pyproject.toml'}: [tool.deploy]"
    base = make_config(read_project_options(directory), where=where)
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    config = make_config(given, where="command line", base=base)
    if judging is not None:
        refuse_of_data(given, config.data, judging=judging)
    return config


def print_warnings(warnings: Sequence[str]) -> None:
    """Each on a line of stderr; texts of files are cleaned."""
    from deploy.report.wording import clean

    for warning in warnings:
        click.echo(f"Warning: {clean(warning)}", err=True)


def make_console(*, stderr: bool = False) -> Any:
    """Where tables and progress go."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)
