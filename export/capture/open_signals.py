"""Signals out of spectra, of open length or odd frames, while a model is captured."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.nn import functional

from export.capture.replaced_calls import Replacement


class OpenSignals(Replacement):
    """Has ``istft(spectrum, ..., length=x.shape[-1])`` composed of frames where `length` is open.

    torch.export makes a number of the length; a network that returns as many values as it was given
    then takes no others. It cannot capture frames of an odd size at all.
    """

    functions = (torch.istft, Tensor.istft)
    names = (
        *("input", "n_fft", "hop_length", "win_length", "window", "center", "normalized"),
        *("onesided", "length", "return_complex"),
    )

    def answer(self, given: dict[str, Any]) -> Any:
        """The signal, ``[..., values]``."""
        return _compose(given) if _is_composed(given) else torch.istft(**given)


def _is_composed(given: Mapping[str, Any]) -> bool:
    real = not given.get("return_complex") and given.get("onesided") is not False
    return real and (isinstance(given.get("length"), SymInt) or given["n_fft"] % 2 == 1)


def _compose(given: Mapping[str, Any]) -> Tensor:
    """Frames under their windows, summed, over the sum of the squares of the windows."""
    spectrum, size, length = given["input"], given["n_fft"], given.get("length")
    hop = given.get("hop_length") or size // 4
    norm = "ortho" if given.get("normalized") else "backward"
    window = _fit_window(given, spectrum)
    frames = torch.fft.irfft(spectrum.transpose(-2, -1), n=size, norm=norm) * window
    signal = _sum_frames(frames, hop)
    envelope = _sum_frames(window.square().expand(frames.shape[-2], size), hop)
    start = size // 2 if given.get("center", True) else 0
    if length is None:
        end = signal.shape[-1] - start
    else:  # what is cut out is there at any length
        end = start + length
        signal = functional.pad(signal, [0, length])
        envelope = functional.pad(envelope, [0, length], value=1.0)
    return signal[..., start:end] / envelope[..., start:end]


def _fit_window(given: Mapping[str, Any], spectrum: Tensor) -> Tensor:
    """The window in the middle of a frame, ``[n_fft]``."""
    size, window = given["n_fft"], given.get("window")
    width = given.get("win_length") or size
    if window is None:
        window = torch.ones(width, dtype=spectrum.real.dtype, device=spectrum.device)
    left = (size - width) // 2
    return functional.pad(window, [left, size - width - left])


def _sum_frames(frames: Tensor, hop: int) -> Tensor:
    """Of ``[..., frames, size]`` one signal, each frame `hop` values behind that before it."""
    count, size = frames.shape[-2:]
    shares = -(-size // hop)
    parts = torch.split(functional.pad(frames, [0, shares * hop - size]), hop, -1)
    summed = functional.pad(parts[0], [0, 0, 0, shares - 1])
    for number, part in enumerate(parts[1:], 1):
        summed = summed + functional.pad(part, [0, 0, number, shares - 1 - number])
    return summed.flatten(-2)[..., : (count - 1) * hop + size]
