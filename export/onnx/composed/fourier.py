"""Fourier transforms as what torch itself makes of them: sizes fitted, then one of three kinds.

Of a real signal, between complex values, and to a real signal; `export.onnx.fourier` takes it from
there.

Source: https://docs.pytorch.org/docs/stable/fft.html
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten

_SCALES = {None: 0, "backward": 0, "ortho": 1, "forward": 2}
"""By norm, how torch numbers what a transform forward is divided by; back it is the other way."""

_Sizes = Sequence[int] | None


def _go(x: Tensor, sizes: _Sizes, axes: _Sizes, norm: str | None) -> Tensor:
    """``fftn``."""
    x, axes = _fit(x, sizes, axes)
    if x.is_complex():
        spectrum: Tensor = aten._fft_c2c(x, axes, _SCALES[norm], True)
    else:
        spectrum = aten._fft_r2c(x, axes, _SCALES[norm], False)
    return spectrum


def _return(x: Tensor, sizes: _Sizes, axes: _Sizes, norm: str | None) -> Tensor:
    """``ifftn``."""
    x, axes = _fit(x, sizes, axes)
    if not x.is_complex():
        x = torch.complex(x, torch.zeros_like(x))
    values: Tensor = aten._fft_c2c(x, axes, 2 - _SCALES[norm], False)
    return values


def _go_real(x: Tensor, sizes: _Sizes, axes: _Sizes, norm: str | None) -> Tensor:
    """``rfftn``."""
    x, axes = _fit(x, sizes, axes)
    spectrum: Tensor = aten._fft_r2c(x, axes, _SCALES[norm], True)
    return spectrum


def _return_real(x: Tensor, sizes: _Sizes, axes: _Sizes, norm: str | None) -> Tensor:
    """``irfftn``."""
    axes = _list_axes(x, sizes, axes)
    last = 2 * (x.shape[axes[-1]] - 1) if sizes is None or sizes[-1] == -1 else sizes[-1]
    halves = None if sizes is None else [*sizes[:-1], last // 2 + 1]
    x, axes = _fit(x, halves, axes)
    if not x.is_complex():
        x = torch.complex(x, torch.zeros_like(x))
    values: Tensor
    if isinstance(last, int):
        values = aten._fft_c2r(x, axes, 2 - _SCALES[norm], last)
        return values
    for axis in axes[:-1]:
        x = aten._fft_c2c(x, [axis], 2 - _SCALES[norm], False)
    x = _complete(x, axes[-1], last)
    values = aten._fft_c2c(x, axes[-1:], 2 - _SCALES[norm], False)
    return values.real


def _complete(half: Tensor, axis: int, size: Any) -> Tensor:
    """All `size` bins of the spectrum of a real signal, of the first half of them.

    Of an open number of values. ONNX Runtime 1.32 takes the number of bins for that of the values
    where it plans memory for a transform of the half, and refuses to run.
    """
    mirrored = half.narrow(axis, 1, (size - 1) // 2).flip(axis)
    return torch.cat([half, torch.conj_physical(mirrored)], axis)


def _list_axes(x: Tensor, sizes: _Sizes, axes: _Sizes) -> list[int]:
    if axes is None:
        axes = range(x.ndim) if sizes is None else range(x.ndim - len(sizes), x.ndim)
    return [axis % x.ndim for axis in axes]


def _fit(x: Tensor, sizes: _Sizes, axes: _Sizes) -> tuple[Tensor, list[int]]:
    """`x` cut or filled with zeros to `sizes` along its axes, and these."""
    axes = _list_axes(x, sizes, axes)
    for axis, size in zip(axes, sizes or (), strict=False):
        missing = 0 if size == -1 else size - x.shape[axis]
        if missing < 0:
            x = x.narrow(axis, 0, size)
        elif missing > 0:
            x = _fill(x, axis, missing)
    return x, axes


def _fill(x: Tensor, axis: int, missing: int) -> Tensor:
    sides = [0, 0] * (x.ndim - 1 - axis) + [0, missing]
    if not x.is_complex():
        return F.pad(x, sides)
    return torch.view_as_complex(F.pad(torch.view_as_real(x), [0, 0, *sides]).contiguous())


def _along_one(transform: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def compose(x: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
        return transform(x, None if n is None else [n], [dim], norm)

    return compose


def _along_two(transform: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def compose(
        x: Tensor, s: _Sizes = None, dim: _Sizes = (-2, -1), norm: str | None = None
    ) -> Tensor:
        return transform(x, s, dim, norm)

    return compose


def _along_many(transform: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def compose(x: Tensor, s: _Sizes = None, dim: _Sizes = None, norm: str | None = None) -> Tensor:
        return transform(x, s, dim, norm)

    return compose


def _list_frequencies(n: int, d: float = 1.0, **kind: Any) -> Tensor:
    """``fftfreq``: those forward, then those backward."""
    waves = torch.arange(n, **_settle(kind))
    return torch.where(waves < (n + 1) // 2, waves, waves - n) / (n * d)


def _list_real_frequencies(n: int, d: float = 1.0, **kind: Any) -> Tensor:
    """``rfftfreq``."""
    return torch.arange(n // 2 + 1, **_settle(kind)) / (n * d)


def _settle(kind: dict[str, Any]) -> dict[str, Any]:
    dtype = kind.get("dtype") or torch.get_default_dtype()
    return {"dtype": dtype, "device": kind.get("device")}


COMPOSITIONS: dict[Any, Callable[..., Tensor]] = {
    aten.fft_fft.default: _along_one(_go),
    aten.fft_ifft.default: _along_one(_return),
    aten.fft_rfft.default: _along_one(_go_real),
    aten.fft_irfft.default: _along_one(_return_real),
    aten.fft_fft2.default: _along_two(_go),
    aten.fft_ifft2.default: _along_two(_return),
    aten.fft_rfft2.default: _along_two(_go_real),
    aten.fft_irfft2.default: _along_two(_return_real),
    aten.fft_fftn.default: _along_many(_go),
    aten.fft_ifftn.default: _along_many(_return),
    aten.fft_rfftn.default: _along_many(_go_real),
    aten.fft_irfftn.default: _along_many(_return_real),
    aten.fft_fftfreq.default: _list_frequencies,
    aten.fft_rfftfreq.default: _list_real_frequencies,
}
