"""Means and other reductions of values by where they are put, as graph networks pool."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Any:
    """Means: the exporter writes sums for them."""
    if reduce != "mean" or not x.is_floating_point():
        return NotImplemented
    source = _cut(source, index)
    counts = torch.zeros_like(x).scatter_add(dim, index, torch.ones_like(source))
    if include_self:
        return x.scatter_add(dim, index, source) / (counts + 1)
    sums = torch.zeros_like(x).scatter_add(dim, index, source)
    return torch.where(counts > 0, sums / counts.clamp(min=1), x)


def index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """As `scatter_reduce`, with one place for each slice of `source`."""
    spread = index.reshape([-1 if axis == dim % x.ndim else 1 for axis in range(x.ndim)])
    return torch.scatter_reduce(
        x, dim, spread.expand_as(source), source, reduce, include_self=include_self
    )


def _cut(source: Tensor, index: Tensor) -> Tensor:
    """The part of `source` that `index` has places for."""
    for axis, size in enumerate(index.shape):
        source = source.narrow(axis, 0, size)
    return source


COMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.scatter_reduce.two: scatter_reduce,
    aten.index_reduce.default: index_reduce,
}
