"""Concatenation, split and slices as linear maps."""

from collections.abc import Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx

from export.fusion.algebra import (
    LinearMap,
    compose_maps,
    concatenate_maps,
    make_window,
    select_outputs,
)
from export.fusion.draft import read_argument
from export.fusion.geometry import Axis, Inexact
from export.fusion.norms import NORMS
from export.fusion.operators.base import (
    Frame,
    Layout,
    Operator,
    Reader,
    Survey,
    channel_axis,
    is_value,
    name_operator,
    pass_on,
    read_sizes,
    tabulate,
)

aten = torch.ops.aten

_CONCATENATIONS = (aten.cat.default, aten.concat.default)
_SPLITS = frozenset(
    {
        *(aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default),
        *(aten.chunk.default, aten.tensor_split.sections, aten.tensor_split.indices),
        aten.unsafe_split.Tensor,
    }
)
_UNBOUNDED = 2**62


def read_concatenation(survey: Survey, node: fx.Node) -> Operator | str:
    """Values side by side on the axis of the channels."""
    parts = read_argument(node, "tensors")
    rank = node.meta["val"].ndim
    axis = int(read_argument(node, "dim")) % rank
    if not isinstance(parts, (list, tuple)) or not all(is_value(survey, part) for part in parts):
        return "a constant is concatenated"
    if not _may_be_channels(axis, rank):
        return "the concatenation is not one of channels"
    label = f"cat({', '.join(['{}'] * len(parts))})"
    layout = _layout_of(axis, rank)
    return Operator(tuple(parts), lambda maps, _: concatenate_maps(maps), label, layout)


def read_split(survey: Survey, node: fx.Node) -> Operator | str:
    """The whole; `read_item` takes the parts."""
    return pass_on(read_argument(node, "self"))


def read_item(survey: Survey, node: fx.Node) -> Operator | str:
    """One part of a split, or the result proper of a norm that also returns statistics."""
    whole: Any = node.args[0]
    index: Any = node.args[1]
    if whole.target in NORMS:
        return pass_on(whole) if index == 0 else "the statistics of the batch norm are used"
    if whole.target not in _SPLITS:
        return f"a non-linearity ({name_operator(whole)}) stands between"
    parts, rank = whole.meta["val"], node.meta["val"].ndim
    axis = int(read_argument(whole, "dim")) % rank
    sizes = [part.shape[axis] for part in parts]
    if not _may_be_channels(axis, rank) or not all(isinstance(size, int) for size in sizes):
        return "the split is not one of channels"
    start = sum(sizes[:index])
    channels = range(start, start + sizes[index])
    layout = _layout_of(axis, rank)
    return Operator(
        (whole,),
        lambda maps, _: select_outputs(maps[0], channels),
        "part({})",
        layout,
    )


def read_slice(survey: Survey, node: fx.Node) -> Operator | str:
    """Some of the channels, or every so many positions between two."""
    source, rank = read_argument(node, "self"), node.meta["val"].ndim
    axis = int(read_argument(node, "dim")) % rank
    start, end, step = (read_argument(node, name) for name in ("start", "end", "step"))
    size = source.meta["val"].shape[axis]
    known = size if isinstance(size, int) else _UNBOUNDED
    if (
        start in (None, 0)
        and step == 1
        and (end is None or (isinstance(end, int) and end >= known))
    ):
        return pass_on(source)
    if not all(isinstance(value, (int, type(None))) for value in (start, end, size)):
        return "a slice whose ends are computed"
    picked = range(size)[slice(start, end, step)]
    if axis == 0 or not picked:
        return "samples of the batch are picked" if axis == 0 else "an empty slice"

    def apply(maps: Sequence[LinearMap], frame: Frame) -> LinearMap:
        if axis == channel_axis(frame, rank):
            return select_outputs(maps[0], picked)
        if frame.layout == "last":
            raise Inexact("positions are picked")
        axes = [Axis(known) for known in read_sizes(source)]
        margin = (len(picked) - 1) * step - size
        axes[axis - 2] = Axis(size, stride=step, origin=picked.start, margin=margin)
        return compose_maps(maps[0], make_window(maps[0].outputs, axes, 1.0, maps[0].kernel))

    return Operator((source,), apply, "part({})", fixed_size=True)


def _may_be_channels(axis: int, rank: int) -> bool:
    return axis > 0 and axis in (1, rank - 1)


def _layout_of(axis: int, rank: int) -> Layout | None:
    """The layout in which `axis` holds the channels; with two axes it makes no difference."""
    if rank == 2:
        return None
    return "first" if axis == 1 else "last"


READERS: dict[object, Reader] = {
    **tabulate(read_concatenation, *_CONCATENATIONS),
    **tabulate(read_split, *_SPLITS),
    **tabulate(read_item, getitem),
    **tabulate(read_slice, aten.slice.Tensor),
}
