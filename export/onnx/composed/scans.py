"""Running products and extremes along an axis.

Along n values in steps of 1, 2, 4, ...: after each step every value is joined with that so far
behind it, so that log2(n) steps do. Where the number of values is open, each takes the values up to
its own out of all of them.

Source: Hillis and Steele, "Data parallel algorithms", 1986
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

_Join = Callable[[Tensor, Tensor], Tensor]


def cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    """Products of each value with all before it."""
    if not x.ndim:
        return NotImplemented
    if dtype is None and not x.is_floating_point():
        dtype = torch.int64
    return _scan(x if dtype is None else x.to(dtype), dim, torch.mul, _multiply_all, 1)


def cummax(x: Tensor, dim: int) -> Any:
    """The largest value so far, and where it stood last."""
    return _run_extreme(x, dim, torch.maximum, torch.amax, -1)


def cummin(x: Tensor, dim: int) -> Any:
    """The least value so far, and where it stood last."""
    return _run_extreme(x, dim, torch.minimum, torch.amin, 1)


def _run_extreme(x: Tensor, dim: int, join: _Join, reduce: Any, sign: int) -> Any:
    if not x.ndim:
        return NotImplemented
    if x.dtype == torch.bool:
        values, places = _run_extreme(x.to(torch.uint8), dim, join, reduce, sign)
        return values.to(torch.bool), places
    worst = sign * math.inf if x.is_floating_point() else _farthest(x.dtype, sign)
    values = _scan(x, dim, join, reduce, worst)
    places = torch.arange(x.shape[dim], device=x.device)
    places = places.reshape([-1 if axis == dim % x.ndim else 1 for axis in range(x.ndim)])
    hits = torch.where(x == values, places, 0)
    return values, _scan(hits, dim, torch.maximum, torch.amax, 0)


def _farthest(dtype: torch.dtype, sign: int) -> int:
    limits = torch.iinfo(dtype)
    return limits.max if sign > 0 else limits.min


def _multiply_all(x: Tensor, dim: int) -> Tensor:
    return x.prod(dim)


def _scan(x: Tensor, dim: int, join: _Join, reduce: Any, neutral: float) -> Tensor:
    size, dim = x.shape[dim], dim % x.ndim
    if not isinstance(size, int):
        places = torch.arange(size, device=x.device)
        seen = places <= places.unsqueeze(-1)
        each = torch.where(seen, x.movedim(dim, -1).unsqueeze(-2), neutral)
        reduced: Tensor = reduce(each, -1)
        return reduced.movedim(-1, dim)
    step = 1
    while step < size:
        joined = join(x.narrow(dim, step, size - step), x.narrow(dim, 0, size - step))
        x = torch.cat([x.narrow(dim, 0, step), joined], dim)
        step *= 2
    return x


COMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.cumprod.default: cumprod,
    aten.cummax.default: cummax,
    aten.cummin.default: cummin,
}
