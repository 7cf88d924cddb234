"""Adaptive pools over sizes that are known, as pools with a kernel or as slices.

The exporter has no function for most of them, and makes gathers of others, which int8 has none of.

Along an axis of ``n`` values a pool to ``m`` reduces the values from ``i * n // m`` to
``ceil((i + 1) * n / m)`` for each ``i``. Where all of these windows are equally long and equally
far apart it is a pool with a kernel and a stride. Elsewhere a maximum, and a mean of windows that
are boxes, is taken one axis after the other, each window of an axis by a slice. Each slice takes
the exporter a tenth of a second. Maxima of many windows come out of one gather, in which the last
value of a window fills it up; means of many are left to the exporter, unless it has no form.
"""

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from export.fusion.calls import add_call
from export.fusion.draft import Draft, read_argument

aten = torch.ops.aten

_MAXIMA = {
    aten.adaptive_max_pool1d.default: aten.max_pool1d.default,
    aten.adaptive_max_pool2d.default: aten.max_pool2d.default,
    aten.adaptive_max_pool3d.default: aten.max_pool3d.default,
}
_MEANS = {
    aten.adaptive_avg_pool1d.default: aten.avg_pool1d.default,
    aten.adaptive_avg_pool2d.default: aten.avg_pool2d.default,
    aten.adaptive_avg_pool3d.default: aten.avg_pool3d.default,
}
_POOLS: dict[Any, Any] = {**_MAXIMA, **_MEANS}

_DECOMPOSED = frozenset({aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default})
"""What the exporter has gathers for."""
_MOST_SLICES = 16
"""Along one axis."""

_Window = tuple[int, int]
"""From the first value to the one behind the last."""


def write_out_adaptive_pools(draft: Draft) -> bool:
    """Whether there was an adaptive pool of known sizes; one whose indices are read stays."""
    pools = [node for node in draft.graph.nodes if node.target in _POOLS]
    written = [_write_out(draft, node) for node in pools]
    return any(written)


def list_windows(size: int, count: int) -> list[_Window]:
    """What each of `count` values of an adaptive pool is taken from, along an axis of `size`.

    Source: https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/AdaptivePooling.h
    """
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def _write_out(draft: Draft, node: fx.Node) -> bool:
    counts = read_argument(node, "output_size")
    sizes = read_argument(node, "self").meta["val"].shape[-len(counts) :]
    values = _read_values(node)
    if values is None or not all(type(size) is int and size for size in (*sizes, *counts)):
        return False
    axes = [list_windows(size, count) for size, count in zip(sizes, counts, strict=True)]
    if node.target in _DECOMPOSED and not _find_steps(axes) and max(counts) > _MOST_SLICES:
        return False
    with draft.graph.inserting_before(values):
        pooled = _pool(draft, values, node, axes)
    draft.erase(values, pooled)
    if values is not node:
        for reader in list(node.users):
            draft.graph.erase_node(reader)
        draft.graph.erase_node(node)
    return True


def _read_values(node: fx.Node) -> fx.Node | None:
    """The pool's values: the node itself, or the first of its results if the second is not read."""
    if node.target in _MEANS:
        return node
    results = {reader.args[1]: reader for reader in node.users if reader.target is operator.getitem}
    unread = 1 not in results or not results[1].users
    return results.get(0) if unread and len(results) == len(node.users) else None


def _pool(draft: Draft, place: fx.Node, node: fx.Node, axes: list[list[_Window]]) -> fx.Node:
    """One pool for all axes, or the windows of one after the other."""
    value: fx.Node = read_argument(node, "self")
    steps = _find_steps(axes)
    if steps and any(len(windows) > 1 for windows in axes):
        kernel = [end - start for (start, end), *_ in axes]
        return add_call(place, _POOLS[node.target], value, kernel, steps)
    reduce = aten.mean.dim if node.target in _MEANS else aten.amax.default
    whole = [axis - len(axes) for axis, windows in enumerate(axes) if len(windows) == 1]
    if whole:
        value = add_call(place, reduce, value, whole, True)
    for axis, windows in enumerate(axes, start=-len(axes)):
        if len(windows) > _MOST_SLICES and node.target in _MAXIMA:
            value = _gather_maxima(draft, place, value, axis, windows)
        elif len(windows) > 1:
            value = _reduce_windows(place, value, axis, windows, reduce)
    return value


def _find_steps(axes: list[list[_Window]]) -> list[int] | None:
    """How far apart the windows of each axis are; None where one has no such step."""
    steps = [_find_step(windows) for windows in axes]
    return None if None in steps else [step for step in steps if step is not None]


def _find_step(windows: list[_Window]) -> int | None:
    """How far apart windows are; None if that differs among them, or their lengths do."""
    lengths = {end - start for start, end in windows}
    steps = {b - a for (a, _), (b, _) in itertools.pairwise(windows)} or lengths
    return steps.pop() if len(lengths) == len(steps) == 1 else None


def _reduce_windows(
    place: fx.Node, value: fx.Node, axis: int, windows: list[_Window], reduce: Callable[..., Any]
) -> fx.Node:
    if all(end - start == 1 for start, end in windows):
        return value
    parts = []
    for start, end in windows:
        part = add_call(place, aten.slice.Tensor, value, axis, start, end)
        parts.append(add_call(place, reduce, part, [axis], True) if end - start > 1 else part)
    return add_call(place, aten.cat.default, parts, axis)


def _gather_maxima(
    draft: Draft, place: fx.Node, value: fx.Node, axis: int, windows: list[_Window]
) -> fx.Node:
    longest = max(end - start for start, end in windows)
    places = [[min(start + i, end - 1) for i in range(longest)] for start, end in windows]
    stored = nn.Parameter(torch.tensor(places).reshape(-1), requires_grad=False)
    index = draft.add("pooled_windows", stored, beside=None)
    gathered = add_call(place, aten.index_select.default, value, axis, index)
    sizes = [len(windows), longest]
    apart = add_call(place, aten.unflatten.int, gathered, axis, sizes)
    return add_call(place, aten.amax.default, apart, [axis])
