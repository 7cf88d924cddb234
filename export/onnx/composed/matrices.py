"""Inverses and solutions of small systems, by Gauss-Jordan elimination with pivots."""

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
        return solve(a, b.unsqueeze(-1)).squeeze(-1)
    broadcast: Any = torch.broadcast_tensors
    rows, _ = broadcast(a[..., :1], b[..., :1])
    return _eliminate(a.expand(*rows.shape[:-1], -1), b.expand(*rows.shape[:-1], -1))


def _is_small(a: Tensor) -> bool:
    rows = a.shape[-1]
    return isinstance(rows, int) and rows <= _LARGEST and a.is_floating_point()


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
}
