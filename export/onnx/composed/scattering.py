"""Values put into places, and sums and means of those that meet there, as graph networks pool."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

aten = torch.ops.aten


def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    """Means: the exporter writes sums for them. Of more values than places only the first count."""
    if reduce != "mean" or not x.is_floating_point():
        if _fits(source, index):
            return NotImplemented
        fitting = _cut(source, index)
        return torch.scatter_reduce(x, dim, index, fitting, reduce, include_self=include_self)
    source = _cut(source, index)
    counts = torch.zeros_like(x).scatter_add(dim, index, torch.ones_like(source))
    if include_self:
        return x.scatter_add(dim, index, source) / (counts + 1)
    sums = torch.zeros_like(x).scatter_add(dim, index, source)
    return torch.where(counts > 0, sums / counts.clamp(min=1), x)


def scatter(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    """As the exporter has it; of more values than places only the first count."""
    if _fits(source, index):
        return NotImplemented
    return x.scatter(dim, index, _cut(source, index))


def scatter_add(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Any:
    """As `scatter`, added to what is there."""
    if _fits(source, index):
        return NotImplemented
    return x.scatter_add(dim, index, _cut(source, index))


def scatter_in_a_way(x: Tensor, dim: int, index: Tensor, source: Tensor, *, reduce: str) -> Tensor:
    """``scatter`` with ``reduce``: sums, or products."""
    if reduce == "add":
        return x.scatter_add(dim, index, source)
    return torch.scatter_reduce(x, dim, index, source, "prod")


def scatter_one_in_a_way(
    x: Tensor, dim: int, index: Tensor, value: float, *, reduce: str
) -> Tensor:
    """As `scatter_in_a_way`, of one value."""
    source = torch.full_like(index, value, dtype=x.dtype)
    return scatter_in_a_way(x, dim, index, source, reduce=reduce)


def index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """As `scatter_reduce`, with one place for each slice of `source`."""
    spread = index.reshape([-1 if axis == dim % x.ndim else 1 for axis in range(x.ndim)])
    return torch.scatter_reduce(
        x, dim, spread.expand_as(source), source, reduce, include_self=include_self
    )


def _fits(source: Tensor, index: Tensor) -> bool:
    """Whether each value has a place, also where sizes are open."""
    pairs = zip(source.shape, index.shape, strict=True)
    return all(statically_known_true(have == want) for have, want in pairs)


def _cut(source: Tensor, index: Tensor) -> Tensor:
    """The part of `source` that `index` has places for."""
    for axis, size in enumerate(index.shape):
        if not statically_known_true(source.shape[axis] == size):
            source = source.narrow(axis, 0, size)
    return source


COMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.scatter.reduce: scatter_in_a_way,
    aten.scatter.src: scatter,
    aten.scatter.value_reduce: scatter_one_in_a_way,
    aten.scatter_add.default: scatter_add,
    aten.scatter_reduce.two: scatter_reduce,
    aten.index_reduce.default: index_reduce,
}
