"""What is taken of two values, or of each pair of rows."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

_FEW_ROWS = 25
"""Up to which torch takes Euclidean distances from differences, and beyond from a product."""


def hypot(x: Tensor, y: Tensor) -> Tensor:
    """The length of what has `x` and `y` as sides."""
    return torch.sqrt(x * x + y * y)


def fmax(x: Tensor, y: Tensor) -> Tensor:
    """The larger value, or that which is a number."""
    return _choose(x, y, torch.maximum(x, y))


def fmin(x: Tensor, y: Tensor) -> Tensor:
    """The lesser value, or that which is a number."""
    return _choose(x, y, torch.minimum(x, y))


def _choose(x: Tensor, y: Tensor, both: Tensor) -> Tensor:
    if not x.is_floating_point():
        return both
    return torch.where(torch.isnan(x), y, torch.where(torch.isnan(y), x, both))


def cdist(x: Tensor, y: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Distances of each row of `x` from each of `y`: [..., P, M] and [..., R, M] to [..., P, R].

    Source: https://docs.pytorch.org/docs/stable/generated/torch.cdist.html
    """
    if p == 2.0 and _takes_product(x, y, compute_mode or 0):
        product = x @ y.transpose(-1, -2)
        squares = (x * x).sum(-1, keepdim=True) + (y * y).sum(-1).unsqueeze(-2)
        return torch.sqrt(torch.clamp(squares - 2 * product, min=0))
    apart = (x.unsqueeze(-2) - y.unsqueeze(-3)).abs()
    if p == 2.0:
        return torch.sqrt((apart * apart).sum(-1))
    if p == 1.0:
        return apart.sum(-1)
    if p == math.inf:
        return apart.amax(-1)
    if p == 0.0:
        return (apart != 0).to(x.dtype).sum(-1)
    return apart.pow(p).sum(-1).pow(1 / p)


def _takes_product(x: Tensor, y: Tensor, mode: int) -> bool:
    rows = [size if isinstance(size, int) else math.inf for size in (x.shape[-2], y.shape[-2])]
    return mode == 1 or (mode == 0 and max(rows) > _FEW_ROWS)


COMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.hypot.default: hypot,
    aten.fmax.default: fmax,
    aten.fmin.default: fmin,
    aten.cdist.default: cdist,
    aten._cdist_forward.default: cdist,
}
