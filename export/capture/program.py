"""``nn.Module`` + example inputs → ``ExportedProgram``, with a batch axis that is truly dynamic.

``Dim.AUTO`` quietly falls back to the traced size; ``Dim.DYNAMIC`` raises instead. Only the second
is used here: a program that says it takes any batch takes any batch.
"""

import contextlib
import functools
import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from export.artifacts import TensorSpec
from export.capture.decided_sizes import DecidedSizes
from export.capture.dynamic_axes import FixedBatchError, NamedAxis, explain_axes, make_dims
from export.capture.kept_attributes import kept_attributes
from export.capture.locating import describe_place, list_failed_lines
from export.capture.other_sizes import called_at_other_sizes
from export.capture.surroundings import replaced, surround
from export.errors import ExportError

_log = logging.getLogger(__name__)
_NOISY_LOGGERS = ("torch", "onnxscript", "onnx_ir")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ADVICE = re.compile(r"For more information, run with TORCH_LOGS=\S+")
_OWN_FRAME = re.compile(r"(?:Caused by: )?\s*\(\S*decided_sizes\.py:\d+ in \w+\)")
_REASON_LENGTH = 300
"""What torch.export takes as a leaf of a result."""


def capture(
    module: nn.Module,
    feeds: Mapping[str, Tensor],
    *,
    keyword: bool,
    dynamic_batch: bool,
    strict: bool = False,
    inputs: Sequence[TensorSpec] = (),
    decided: DecidedSizes | None = None,
) -> ExportedProgram:
    """Record the call of `module` on `feeds` as a graph of aten operators.

    The batch size is the leading size of the first input with an axis; with `dynamic_batch` the
    leading axis of every input of that size becomes dynamic. Trace with a batch of at least 2:
    the exporter treats size 1 as a constant. Where it takes another size for one, the module is
    captured once more behind a call at other sizes, if it keeps something of that, and with frozen
    parameters as if they were trained: without gradients torch compares strides, and of halves of a
    tensor that is turned they are those of rows at a batch of 2.

    Args:
        module: left untouched, with what it keeps of its calls; captured in the mode (train or
            eval) that it is in.
        feeds: example inputs by name, in the order of the call.
        keyword: pass the inputs by name; otherwise in order.
        dynamic_batch: make the leading axis dynamic, or fail.
        strict: trace the bytecode (TorchDynamo) instead of running Python.
        inputs: of a call with further dynamic axes, their names and ranges; axes of one name are of
            one size. They are dynamic over all of their range, or this fails.
        decided: learns what the code decides by sizes.

    Returns:
        A program whose parameters are the module's own tensors, not copies.

    Raises:
        FixedBatchError: the code of the module makes a constant of the batch.
        ExportError: torch.export refuses the module; the message names the submodule where known,
            and the axis of `inputs` that cannot be dynamic, with what to do.

    Source: https://docs.pytorch.org/docs/stable/export.html
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ExportError(
            "torch.export takes no TorchScript model; use the TorchScript exporter for it."
        )
    decided = DecidedSizes(module, feeds) if decided is None else decided
    record = functools.partial(
        _record, module, feeds, keyword, dynamic_batch, strict, inputs, decided
    )
    try:
        return record()
    except ExportError as error:
        if "Constraints violated" not in str(error.__cause__):
            raise
        with called_at_other_sizes(module, feeds, keyword, dynamic_batch, inputs) as keeps:
            frozen = _list_frozen(module) if isinstance(error, FixedBatchError) else []
            if not keeps and not frozen:
                raise
            try:
                with _trained(frozen):
                    return record()
            except ExportError:
                raise error from error.__cause__


def _list_frozen(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.is_floating_point() and not p.requires_grad]


def _read_batch(feeds: Mapping[str, Tensor]) -> int | None:
    return next((int(value.shape[0]) for value in feeds.values() if value.ndim), None)


def _names_fixed_batch(error: Exception, batch: int) -> bool:
    """Whether torch says that a leading axis was made a constant, the batch of the example."""
    text = str(error)
    return f"specialized it to be a constant ({batch})" in text and ".size()[0]" in text


def _list_places(decided: DecidedSizes, ranges: Mapping[str, NamedAxis]) -> dict[str, str]:
    """By the names of dynamic axes, where the code decides by their sizes."""
    return {
        name: decided.find_place((axis.input, axis.axis), (axis.sizes.least, axis.sizes.most))
        for name, axis in ranges.items()
    }


@contextlib.contextmanager
def _trained(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Have `parameters` require gradients for the length of the block."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _record(
    module: nn.Module,
    feeds: Mapping[str, Tensor],
    keyword: bool,
    dynamic_batch: bool,
    strict: bool,
    inputs: Sequence[TensorSpec],
    decided: DecidedSizes,
) -> ExportedProgram:
    batch = _read_batch(feeds)
    dims, ranges = make_dims(inputs)
    axes: dict[str, dict[int, object] | None] = {}
    for name, value in feeds.items():
        leads = dynamic_batch and value.ndim and value.shape[0] == batch
        axes[name] = {**({0: Dim.DYNAMIC} if leads else {}), **dims.get(name, {})} or None
    args = () if keyword else tuple(feeds.values())
    kwargs = dict(feeds) if keyword else {}
    named = list(feeds) if keyword else []
    shapes = dict(axes) if keyword else _positional_shapes(module, tuple(axes.values()))
    try:
        with (
            contain_noise(),
            torch.no_grad(),
            kept_attributes(module),
            decided.listening(),
            surround(module, named, strict=strict, sizes=bool(ranges)),
        ):
            return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=strict)
    except Exception as error:  # the user's own code runs here: whatever it raises is the finding
        place = describe_place(module, list_failed_lines(error.__traceback__))
        recurrent = [n for n, part in module.named_modules() if isinstance(part, nn.RNNBase)]
        explained = explain_axes(str(error), ranges, recurrent, _list_places(decided, ranges))
        if explained is not None:
            raise explained from error
        if dynamic_batch and batch is not None and _names_fixed_batch(error, batch):
            place = decided.find_fixed_batch()
            raise FixedBatchError(
                f"The model's code{place} makes a constant, {batch}, of the size of the batch.",
                place,
            ) from error
        raise ExportError(
            f"torch.export cannot capture the model{place}: {condense_error(error)}", place
        ) from error


@contextlib.contextmanager
def contain_noise() -> Iterator[None]:
    """Keep what the exporters print, log and warn off the terminal; it goes to our debug log.

    Covers stdout, stderr, the loggers of torch, onnxscript and onnx_ir, Python warnings and what
    the older exporter prints past Python, for the length of the block and no longer.
    """
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    names = [
        name
        for name in list(logging.root.manager.loggerDict)
        if name.split(".")[0] in _NOISY_LOGGERS
    ]
    loggers = [logging.getLogger(name) for name in {*names, *_NOISY_LOGGERS}]
    caught: list[warnings.WarningMessage] = []
    saved = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    try:
        for logger in loggers:
            is_root = logger.name in _NOISY_LOGGERS
            logger.handlers = [handler] if is_root else []
            logger.propagate = not is_root
        with (
            contextlib.redirect_stdout(text),
            contextlib.redirect_stderr(text),
            warnings.catch_warnings(record=True) as recorded,
            replaced(torch._C, "_jit_onnx_log", lambda *parts: _log.debug("%s", parts)),
        ):
            caught = recorded
            warnings.simplefilter("always")
            yield
    finally:
        for logger, handlers, propagate in saved:
            logger.handlers, logger.propagate = handlers, propagate
        for warning in caught:
            _log.debug("%s: %s", warning.category.__name__, warning.message)
        if text.getvalue().strip():
            _log.debug("%s", text.getvalue().strip())


def condense_error(error: BaseException) -> str:
    """One line that says what went wrong: the type and the first two lines with content."""
    text = _OWN_FRAME.sub("", _ADVICE.sub("", _ANSI.sub("", str(error))))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2]) or 'no message'}"[:_REASON_LENGTH]


def _positional_shapes(
    module: nn.Module, shapes: tuple[dict[int, object] | None, ...]
) -> tuple[object, ...]:
    """`shapes` in the nesting of forward's own parameters: ``*args`` takes one tuple, of some."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return shapes
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:named], shapes[named:]) if shapes[named:] else shapes
