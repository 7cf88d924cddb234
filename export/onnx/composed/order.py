"""What depends on the order of values: medians, and places among sorted values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def median(x: Tensor) -> Tensor:
    """The lower middle of all values."""
    return _pick(x.flatten(), (x.numel() + 1) // 2, 0, keepdim=False)[0]


def median_along(x: Tensor, dim: int, keepdim: bool = False) -> Any:
    """The lower middle of the values along an axis, and where it stands."""
    return kthvalue(x, (x.shape[dim] + 1) // 2 if x.ndim else 1, dim, keepdim)


def kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The value along an axis than which `k` are no larger, itself among them."""
    return _pick(x, k, dim, keepdim=keepdim) if x.ndim else NotImplemented


def _pick(x: Tensor, k: int, dim: int, *, keepdim: bool) -> tuple[Tensor, Tensor]:
    least = torch.topk(x, k, dim, largest=False, sorted=True)
    values, places = (item.narrow(dim, k - 1, 1) for item in least)
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def sort_stably(x: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False) -> Any:
    """Sorted values and their places; of equal values the first comes first, as always in ONNX."""
    return aten.sort.default(x, dim, descending)


def searchsorted(
    boundaries: Tensor,
    x: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """How many of the sorted `boundaries`, [..., n], lie before each value of `x`."""
    if sorter is not None:
        boundaries = boundaries.gather(-1, sorter)
    each = x.unsqueeze(-1)
    if boundaries.ndim > 1:
        boundaries = boundaries.unsqueeze(-2)
    behind = boundaries > each if right or side == "right" else boundaries >= each
    return (~behind).sum(-1, dtype=torch.int32 if out_int32 else torch.int64)


def isin(x: Tensor, given: Tensor, *, assume_unique: bool = False, invert: bool = False) -> Tensor:
    """Which values of `x` are among the `given`."""
    found = (x.unsqueeze(-1) == given.flatten()).any(-1)
    return ~found if invert else found


COMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.median.default: median,
    aten.sort.stable: sort_stably,
    aten.argsort.stable: lambda x, **how: sort_stably(x, **how)[1],
    aten.median.dim: median_along,
    aten.kthvalue.default: kthvalue,
    aten.searchsorted.Tensor: searchsorted,
    aten.isin.Tensor_Tensor: isin,
}
