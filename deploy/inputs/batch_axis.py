"""Whether the model takes batches of any size, and where the batch lies in what it returns."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from deploy.config import BuildConfig
from deploy.engines.base import Feeds
from deploy.inputs.declared import InputSpec, synthetic_feeds
from export.artifacts import BATCH, TensorSpec
from export.capture.arrays import to_tensor
from export.capture.signature import CallSignature, describe_call
from export.errors import InputError

TRACE_BATCH = 2
_STATIC = (
    "The model cannot be run or exported with a dynamic batch{}; every engine takes batches of "
    "exactly {}."
)
CHANGING_WARNING = (
    "It returns tensors of its own for each sample, as detectors do that choose among boxes. For "
    "batches of any size, build the part up to the raw scores and boxes (backbone and head) and "
    "choose behind the engine."
)
SQUEEZE_WARNING = (
    "The model takes the batch axis away from the answer to a lone sample ({}: squeeze() without "
    "an axis does that); engines keep it, so that samples lie on one axis at every batch size."
)


@dataclass(frozen=True)
class Call:
    """The model and how it is to be called."""

    module: nn.Module
    specs: tuple[InputSpec, ...]
    keyword: bool
    high: dict[str, int]

    def describe_at(
        self, batch: int, *, dynamic: bool, sizes: Mapping[str, int] | None = None
    ) -> CallSignature:
        """Run it on `batch` synthetic samples and record what it takes and returns.

        Dynamic axes other than the batch have these sizes, or their best.
        """
        concrete = tuple(
            TensorSpec(spec.name, spec.with_sizes(batch, sizes or {}), spec.dtype)
            for spec in self.describe_inputs(batch)
        )
        feeds = to_tensors(synthetic_feeds(concrete, batch, seed=0, high=self.high))
        return describe_call(self.module, feeds, keyword=self.keyword, dynamic_batch=dynamic)

    def describe_inputs(self, batch: int) -> tuple[TensorSpec, ...]:
        """The inputs with their dynamic axes named."""
        return tuple(spec.describe(batch) for spec in self.specs)


def settle_batch(call: Call, config: BuildConfig) -> tuple[CallSignature, bool, tuple[str, ...]]:
    """The signature, whether its batch is static, and warnings where that was not asked for.

    Raises:
        InputError: the model does not run on its inputs at any batch that was tried.
    """
    given = call.specs[0].shape[0]
    if config.static_batch:
        return call.describe_at(given, dynamic=False), True, ()
    fixed = _find_fixed_batch(call.module)
    if fixed is not None and given in (1, fixed):
        return call.describe_at(fixed, dynamic=False), True, (warn_of_static(fixed),)
    try:
        signature = _describe_dynamic(call)
        return signature, False, _warn_of_squeezed(call, signature)
    except InputError as error:
        if given == TRACE_BATCH:
            raise
        signature = call.describe_at(given, dynamic=False)
        return signature, True, (warn_of_static(given), _explain_static(error))


def warn_of_static(batch: int, place: str = "") -> str:
    """That engines take batches of `batch` samples alone, because of the code at `place`."""
    return _STATIC.format(f", because of its code{place}" if place else "", batch)


def _describe_dynamic(call: Call) -> CallSignature:
    """The signature with a dynamic batch, on whichever axis of an output it shows.

    The model runs at two batch sizes; an axis that follows the batch from one to the other is the
    batch, and no other is, whatever its size.
    """
    first = call.describe_at(TRACE_BATCH, dynamic=True)
    try:
        other = call.describe_at(TRACE_BATCH + 1, dynamic=False)
    except InputError:
        return first  # it takes this batch alone, which the export will find out
    here = [(spec.name, len(spec.shape), spec.dtype) for spec in first.outputs]
    if here != [(spec.name, len(spec.shape), spec.dtype) for spec in other.outputs]:
        few, many = (", ".join(map(str, signature.outputs)) for signature in (first, other))
        raise _ChangingOutputsError(
            f"What the model returns changes with the batch: {few} for {TRACE_BATCH} samples, "
            f"{many} for {TRACE_BATCH + 1}. Pass the batch size to build for in --input, with "
            "--static-batch."
        )
    outputs = tuple(
        replace(spec, shape=_compare_axes(spec.with_batch(TRACE_BATCH), wider.with_batch(0)))
        for spec, wider in zip(first.outputs, other.outputs, strict=True)
    )
    return replace(first, outputs=outputs)


class _ChangingOutputsError(InputError):
    """A model returns other tensors for other numbers of samples."""


def _explain_static(error: InputError) -> str:
    """Why only one batch is taken, and what would have any."""
    if isinstance(error, _ChangingOutputsError):
        return CHANGING_WARNING
    said = error.__cause__ or error
    return f"With {TRACE_BATCH} samples it raises {type(said).__name__}: {str(said).rstrip('.')}."


def _find_fixed_batch(module: nn.Module) -> int | None:
    """The one batch that a program of torch.export was exported for; None where it takes others."""
    if not isinstance(module, torch.fx.GraphModule):
        return None
    values = [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"]
    sizes = [v.shape[0] for v in values if isinstance(v, torch.Tensor) and v.ndim]
    if not all(isinstance(size, int) for size in sizes) or len(set(sizes)) != 1:
        return None
    return int(sizes[0])


def _warn_of_squeezed(call: Call, signature: CallSignature) -> tuple[str, ...]:
    """That outputs have fewer axes for a lone sample, where they have."""
    try:
        alone = call.describe_at(1, dynamic=False)
    except InputError:
        return ()  # it takes no lone sample, which the export will find out
    pairs = zip(signature.outputs, alone.outputs, strict=False)
    lost = [spec.name for spec, single in pairs if len(single.shape) < len(spec.shape)]
    return (SQUEEZE_WARNING.format(", ".join(lost)),) if lost else ()


def _compare_axes(few: tuple[int, ...], many: tuple[int, ...]) -> tuple[int | str, ...]:
    """A shape at `TRACE_BATCH` and at one more, as sizes and names of axes."""
    shape: list[int | str] = []
    for axis, (size, wider) in enumerate(zip(few, many, strict=True)):
        if size == wider:
            shape.append(size)
        elif size * (TRACE_BATCH + 1) == wider * TRACE_BATCH:
            times = size // TRACE_BATCH
            shape.append(BATCH if times == 1 else f"{times}*{BATCH}")
        else:
            shape.append(f"axis_{axis}")
    return tuple(shape)


def to_tensors(feeds: Feeds) -> dict[str, torch.Tensor]:
    """The same values as tensors of their own."""
    return {name: to_tensor(np.array(array)) for name, array in feeds.items()}
