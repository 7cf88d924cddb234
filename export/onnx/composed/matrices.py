"""Small matrices: inverses, solutions and determinants by elimination with pivots, and factors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

_LARGEST = 8
"""Rows, each of which comes to about fifteen operators."""


def invert(a: Tensor) -> Any:
    """The inverse of each matrix of `a`, [..., n, n]."""
    if not _is_small(a):
        return NotImplemented
    return _eliminate(a, torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a))


def solve(a: Tensor, b: Tensor, *, left: bool = True) -> Any:
    """X of A X = B, or of X A = B where not `left`; B may be a vector for each matrix of A."""
    if not _is_small(a) or not left:
        return NotImplemented
    if b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1]):
        return _eliminate(*_share_batch(a, b.unsqueeze(-1))).squeeze(-1)
    return _eliminate(*_share_batch(a, b))


def slogdet(a: Tensor) -> Any:
    """Sign and logarithm of the magnitude of the determinant of each matrix of `a`, [..., n, n]."""
    if not _is_small(a):
        return NotImplemented
    sign, pivots = _find_pivots(a)
    return sign * pivots.sign().prod(-1), pivots.abs().log().sum(-1)


def det(a: Tensor) -> Any:
    """The determinant of each matrix; of up to three rows by its formula, which is less work."""
    if not _is_small(a):
        return NotImplemented
    if a.shape[-1] == 1:
        return a[..., 0, 0]
    if a.shape[-1] == 2:
        return a[..., 0, 0] * a[..., 1, 1] - a[..., 0, 1] * a[..., 1, 0]
    if a.shape[-1] == 3:
        first, second, third = a.unbind(-2)
        ahead = second.roll(-1, -1) * third.roll(-2, -1)
        behind = second.roll(-2, -1) * third.roll(-1, -1)
        return (first * (ahead - behind)).sum(-1)
    sign, pivots = _find_pivots(a)
    return sign * pivots.prod(-1)


def logdet(a: Tensor) -> Any:
    """Its logarithm; NaN where it is negative."""
    if not _is_small(a):
        return NotImplemented
    sign, logarithm = slogdet(a)
    return torch.where(sign < 0, torch.nan, logarithm)


def cholesky(a: Tensor, *, upper: bool = False) -> Any:
    """L of A = L L^T, lower triangular, of each symmetric and positive definite A; or L^T.

    Reads the triangle that it gives. NaN where A is not positive definite, which torch refuses.
    """
    if not _is_small(a):
        return NotImplemented
    rest = a.transpose(-1, -2) if upper else a
    places = torch.arange(a.shape[-1], device=a.device).unsqueeze(-1)
    columns = []
    for number in range(a.shape[-1]):
        pivot = rest[..., number : number + 1, number : number + 1]
        column = rest[..., number : number + 1] / torch.where(pivot > 0, pivot, torch.nan).sqrt()
        columns.append(torch.where(places >= number, column, 0))
        rest = rest - columns[-1] * columns[-1].transpose(-1, -2)
    factor = torch.cat(columns, -1)
    return factor.transpose(-1, -2) if upper else factor


def cholesky_ex(a: Tensor, *, upper: bool = False, check_errors: bool = False) -> Any:
    """The same, and 0 for each matrix or, where it is not positive definite, a place from 1."""
    factor = cholesky(a, upper=upper)
    if factor is NotImplemented:
        return NotImplemented
    wrong = factor.diagonal(dim1=-2, dim2=-1).isnan()
    first = wrong.to(torch.int32).argmax(-1) + 1
    return factor, torch.where(wrong[..., -1], first, 0).to(torch.int32)


def solve_triangular(
    a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Any:
    """X of A X = B, or of X A = B where not `left`, for triangular A, by substitution."""
    if not _is_small(a):
        return NotImplemented
    if not left:
        turned = (side.transpose(-1, -2) for side in (a, b))
        return solve_triangular(*turned, upper=not upper, unitriangular=unitriangular).transpose(
            -1, -2
        )
    a, b = _share_batch(a, b)
    rows = a.shape[-1]
    order = range(rows - 1, -1, -1) if upper else range(rows)
    found: dict[int, Tensor] = {}
    for number in order:
        row = b[..., number : number + 1, :]
        for place, value in found.items():
            row = row - a[..., number : number + 1, place : place + 1] * value
        own = a[..., number : number + 1, number : number + 1]
        found[number] = row if unitriangular else row / own
    return torch.cat([found[number] for number in range(rows)], -2)


def cholesky_solve(b: Tensor, factor: Tensor, upper: bool = False) -> Any:
    """X of A X = B for A = L L^T, of which `factor` is L, or L^T where `upper`."""
    if not _is_small(factor):
        return NotImplemented
    lower = factor.transpose(-1, -2) if upper else factor
    half = solve_triangular(lower, b, upper=False)
    return solve_triangular(lower.transpose(-1, -2), half, upper=True)


def _is_small(a: Tensor) -> bool:
    rows = a.shape[-1]
    return isinstance(rows, int) and 0 < rows <= _LARGEST and a.is_floating_point()


def _share_batch(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices of as many rows, each as often as the other one is there."""
    broadcast: Any = torch.broadcast_tensors
    rows, _ = broadcast(a[..., :1], b[..., :1])
    return a.expand(*rows.shape[:-1], -1), b.expand(*rows.shape[:-1], -1)


def _find_pivots(a: Tensor) -> tuple[Tensor, Tensor]:
    """1 or -1 of each matrix, for an even or odd number of changed rows; its pivots, [..., n]."""
    rows = a.shape[-1]
    places = torch.arange(rows, device=a.device)
    sign, pivots, system = torch.ones_like(a[..., 0, 0]), [], a
    for number in range(rows):
        place = system[..., number:, number].abs().argmax(-1, keepdim=True) + number
        is_pivot = (places == place).unsqueeze(-1)
        row = system[..., number : number + 1, :]
        chosen = torch.where(is_pivot, system, 0).sum(-2, keepdim=True)
        system = torch.where(is_pivot, row, system)
        sign = torch.where(place.squeeze(-1) == number, sign, -sign)
        pivot = chosen[..., number : number + 1]
        pivots.append(pivot.flatten(-2))
        chosen = chosen / torch.where(pivot == 0, 1, pivot)  # a column of zeros needs no other
        system = system - system[..., number : number + 1] * chosen
    return sign, torch.cat(pivots, -1)


def _eliminate(a: Tensor, b: Tensor) -> Tensor:
    rows = a.shape[-1]
    system = torch.cat([a, b], -1)
    places = torch.arange(rows, device=a.device)
    for number in range(rows):
        column = system[..., number:, number].abs()
        pivot = column.argmax(-1, keepdim=True) + number
        is_pivot = (places == pivot).unsqueeze(-1)
        row = system[..., number : number + 1, :]
        chosen = torch.where(is_pivot, system, 0).sum(-2, keepdim=True)
        system = torch.where(is_pivot, row, system)  # the two change places
        chosen = chosen / chosen[..., number : number + 1]
        is_own = (places == number).unsqueeze(-1)
        others = system - system[..., number : number + 1] * chosen
        system = torch.where(is_own, chosen, others)
    return system[..., rows:]


COMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.inverse.default: invert,
    aten.linalg_inv.default: invert,
    aten.linalg_solve.default: solve,
    aten.linalg_solve_triangular.default: solve_triangular,
    aten.linalg_slogdet.default: slogdet,
    aten.slogdet.default: slogdet,
    aten.linalg_det.default: det,
    aten.det.default: det,
    aten.logdet.default: logdet,
    aten.linalg_cholesky.default: cholesky,
    aten.linalg_cholesky_ex.default: cholesky_ex,
    aten.cholesky_solve.default: cholesky_solve,
    aten.cholesky.default: lambda a, upper=False: cholesky(a, upper=upper),
}
