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


def atan2(y: Tensor, x: Tensor) -> Tensor:
    """The angle of ``(x, y)``, of zeros by their signs: the exporter's is -pi at ``(-1, 0)``."""
    angle: Tensor = find_angle(lambda target, *args: target(*args), y, x)
    return angle


def find_angle(call: Callable[..., Any], y: Any, x: Any) -> Any:
    """`atan2`, each operator by way of `call`, of floats."""
    below, left = (_is_negative(call, value) for value in (y, x))
    slope = call(aten.div.Tensor, call(aten.abs.default, y), call(aten.abs.default, x))
    nowhere = call(aten.logical_and.default, call(aten.eq.Scalar, y, 0), call(aten.eq.Scalar, x, 0))
    angle = call(aten.masked_fill.Scalar, call(aten.atan.default, slope), nowhere, 0.0)
    beyond = call(aten.add.Scalar, call(aten.neg.default, angle), math.pi)
    angle = call(aten.where.self, left, beyond, angle)
    return call(aten.where.self, below, call(aten.neg.default, angle), angle)


def _is_negative(call: Callable[..., Any], value: Any) -> Any:
    """Whether it is, or is a zero with a minus."""
    zero = call(aten.eq.Scalar, value, 0)
    signed = call(aten.where.self, zero, call(aten.reciprocal.default, value), value)
    return call(aten.lt.Scalar, signed, 0)


def _compose_atan2(y: Tensor, x: Tensor) -> Any:
    floats = y.is_floating_point() and x.is_floating_point()
    return atan2(y, x) if floats else NotImplemented


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
    aten.atan2.default: _compose_atan2,
    aten.hypot.default: hypot,
    aten.fmax.default: fmax,
    aten.fmin.default: fmin,
    aten.cdist.default: cdist,
    aten._cdist_forward.default: cdist,
}
