"""Spectra by short times, and signals out of them, as convolutions or as products.

Each bin of a frame is a product of the frame with a window and a wave: all frames are one
convolution with a step. Long frames are cut out first, and transformed by two products. ONNX
Runtime's own operator takes 9 to 18 ms for a second of sound in frames of 400 where that
convolution takes 0.5 to 0.8; there is none for the way back, and neither OpenVINO nor TensorRT has
one for either.
"""

import math
import operator
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from export.fusion.calls import add_call
from export.fusion.draft import Draft, read_argument
from export.onnx.fixed import store_fixed
from export.onnx.wave_products import WaveProducts, split
from export.onnx.waves import make_signal, make_spectrum

aten = torch.ops.aten

_Call = Callable[..., fx.Node]

_LARGEST_POWER, _LARGEST = 1024, 4096
"""Values of frames that are convolved: of a power of two, and of others."""

_MOST_SHARES = 32
"""How many steps long a frame may be that is put together of them."""


def write_out_short_time_spectra(draft: Draft) -> bool:
    """Whether there was such a spectrum or a signal out of one."""
    spectra = [n for n in draft.graph.nodes if n.target is aten.stft.default and _is_convolved(n)]
    signals = [n for n in draft.graph.nodes if n.target is aten.istft.default and _is_summed(n)]
    for found, write_out in ((spectra, _make_spectrum), (signals, _make_signal)):
        for node in found:
            with draft.graph.inserting_before(node):
                draft.erase(node, write_out(draft, node))
    return bool(spectra or signals)


def _is_convolved(node: fx.Node) -> bool:
    kind = read_argument(node, "self").meta["val"].dtype
    plain = not kind.is_complex and kind != torch.float64  # ONNX Runtime convolves no doubles
    aligned = read_argument(node, "align_to_window", default=False)
    size = read_argument(node, "n_fft")
    hop = read_argument(node, "hop_length") or size // 4
    return plain and not aligned and (_is_cut(size, hop) or _is_convolution_faster(size))


def _is_convolution_faster(size: int) -> bool:
    """Whether one matrix is the way; of a power of two there is a fast way, which is quick then."""
    return size <= (_LARGEST if size & (size - 1) else _LARGEST_POWER)


def _is_summed(node: fx.Node) -> bool:
    return not read_argument(node, "return_complex", default=False)


def _make_spectrum(draft: Draft, node: fx.Node) -> fx.Node:
    """``stft``: ``[..., values]`` to ``[..., bins, frames]``."""
    call = partial(add_call, node)
    size = read_argument(node, "n_fft")
    hop = read_argument(node, "hop_length") or size // 4
    bins = size if read_argument(node, "onesided") is False else size // 2 + 1
    scale = 1 / math.sqrt(size) if read_argument(node, "normalized", default=False) else 1.0
    value: fx.Node = read_argument(node, "self")
    if _is_cut(size, hop):
        frames = _cut(call, value, size, hop)
        window = _apply_window(draft, node, call, torch.ones(size, dtype=torch.float64), value)
        frames = call(aten.mul.Tensor, frames, window)
        parts = WaveProducts(draft, node).turn_signal(frames, bins, scale)
        parts = call(aten.transpose.int, parts, -3, -2)
    else:
        waves = make_spectrum(size, bins)[::2].T.unsqueeze(1) * scale
        batched = value.meta["val"].ndim > 1
        value = call(aten.unsqueeze.default, value, 1 if batched else 0)
        kernel = _apply_window(draft, node, call, waves, value)
        parts = call(aten.conv1d.default, value, kernel, None, [hop])
        parts = call(aten.unflatten.int, parts, -2, [bins, 2])
        parts = call(aten.transpose.int, parts, -2, -1)
    if not read_argument(node, "return_complex", default=False):
        return parts
    return call(aten.view_as_complex.default, call(aten.contiguous.default, parts))


def _make_signal(draft: Draft, node: fx.Node) -> fx.Node:
    """``istft``: ``[..., bins, frames]`` to ``[..., values]``.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.istft.html
    """
    call = partial(add_call, node)
    size, length = (read_argument(node, name) for name in ("n_fft", "length"))
    hop = read_argument(node, "hop_length") or size // 4
    parts = call(aten.view_as_real.default, read_argument(node, "self"))
    batched, bins = parts.meta["val"].ndim > 3, parts.meta["val"].shape[-3]
    if not batched:
        parts = call(aten.unsqueeze.default, parts, 0)
    count = call(aten.sym_size.int, parts, -2)
    scale = 1 / (math.sqrt(size) if read_argument(node, "normalized", default=False) else size)
    if _is_cut(size, hop):
        parts = call(aten.transpose.int, parts, -3, -2)
        frames = WaveProducts(draft, node).return_signal(parts, size, scale)
        window = _apply_window(draft, node, call, torch.ones(size, dtype=torch.float64), parts)
        signal = _join(call, call(aten.mul.Tensor, frames, window), size, hop)
        signal = call(aten.unsqueeze.default, signal, 1)
    else:
        parts = call(aten.transpose.int, parts, -2, -1)
        parts = call(aten.flatten.using_ints, parts, -3, -2)
        waves = make_signal(bins, size).unsqueeze(1) * scale
        kernel = _apply_window(draft, node, call, waves, parts)
        signal = call(aten.conv_transpose1d.default, parts, kernel, None, [hop])

    ones = call(aten.new_ones.default, parts, [1, 1, count])
    window = _apply_window(draft, node, call, torch.ones(1, 1, size, dtype=torch.float64), parts)
    shares = call(aten.mul.Tensor, window, window)
    envelope = call(aten.conv_transpose1d.default, ones, shares, None, [hop])

    start = size // 2 if read_argument(node, "center", default=True) else 0
    end = -start or sys.maxsize if length is None else start + length
    signal, envelope = (
        call(aten.slice.Tensor, item, -1, start, end) for item in (signal, envelope)
    )
    signal = call(aten.div.Tensor, signal, envelope)
    if length is not None:
        signal = _fill_up(call, signal, length)
    signal = call(aten.squeeze.dim, signal, 1)
    return signal if batched else call(aten.squeeze.dim, signal, 0)


def _is_cut(size: int, hop: int) -> bool:
    """Whether frames are cut out and transformed by two products."""
    return split(size) is not None and size <= _MOST_SHARES * hop


def _cut(call: _Call, value: fx.Node, size: int, hop: int) -> fx.Node:
    """The frames of ``[..., values]``: ``[..., frames, size]``, put together of rows of `hop`."""
    shares = -(-size // hop)
    beyond = shares * hop - size
    if beyond:
        value = call(aten.constant_pad_nd.default, value, [0, beyond])
    count = _count_rows(call, value, shares, hop)
    last = _compute(call, operator.add, count, shares - 1)
    value = call(aten.slice.Tensor, value, -1, 0, _compute(call, operator.mul, last, hop))
    rows = call(aten.unflatten.int, value, -1, [-1, hop])
    parts = [
        call(aten.slice.Tensor, rows, -2, share, _compute(call, operator.add, count, share))
        for share in range(shares)
    ]
    frames = call(aten.cat.default, parts, -1)
    return call(aten.slice.Tensor, frames, -1, 0, size) if beyond else frames


def _count_rows(call: _Call, value: fx.Node, shares: int, hop: int) -> int | fx.Node:
    """How many frames of `shares` rows of `hop` there are in ``[..., values]``."""
    length = value.meta["val"].shape[-1]
    if not isinstance(length, int):
        length = call(aten.sym_size.int, value, -1)
    rows = _compute(call, operator.floordiv, length, hop)
    return _compute(call, operator.sub, rows, shares - 1)


def _compute(
    call: _Call, operation: Callable[[Any, int], Any], size: int | fx.Node, number: int
) -> int | fx.Node:
    """Of a known size a number, of an open one a node."""
    known = isinstance(size, int)
    result: int | fx.Node = operation(size, number) if known else call(operation, size, number)
    return result


def _join(call: _Call, frames: fx.Node, size: int, hop: int) -> fx.Node:
    """``[N, frames, size]`` one after another in steps of `hop`, summed: ``[N, values]``."""
    shares = -(-size // hop)
    beyond = shares * hop - size
    if beyond:
        frames = call(aten.constant_pad_nd.default, frames, [0, beyond])
    rows = call(aten.unflatten.int, frames, -1, [shares, hop])
    summed = None
    for share in range(shares):
        part = call(aten.select.int, rows, -2, share)
        if shares > 1:
            part = call(aten.constant_pad_nd.default, part, [0, 0, share, shares - 1 - share])
        summed = call(aten.add.Tensor, summed, part) if summed else part
    signal = call(aten.flatten.using_ints, summed, -2, -1)
    return call(aten.slice.Tensor, signal, -1, 0, -beyond) if beyond else signal


def _fill_up(call: _Call, signal: fx.Node, length: int) -> fx.Node:
    """``[N, 1, values]`` with zeros behind it where there are fewer than `length` values."""
    values = signal.meta["val"].shape[-1]
    missing = length - values if isinstance(values, int) else length
    if not missing:
        return signal
    filled = call(aten.constant_pad_nd.default, signal, [0, missing])
    return filled if isinstance(values, int) else call(aten.slice.Tensor, filled, -1, 0, length)


def _apply_window(
    draft: Draft, node: fx.Node, call: _Call, waves: Tensor, like: fx.Node
) -> fx.Node:
    """`waves`, ``[..., values of a frame]``, under the window of `node`, in the frame's middle."""
    window, frame = read_argument(node, "window"), waves.shape[-1]
    size = read_argument(node, "win_length") or frame
    left = (frame - size) // 2
    sides = [left, frame - size - left]
    if window is None:
        waves = waves * F.pad(torch.ones(size, dtype=torch.float64), sides)
    stored = store_fixed(draft, "waves", waves, like.meta["val"])
    if window is None:
        return stored
    if any(sides):
        window = call(aten.constant_pad_nd.default, window, sides)
    return call(aten.mul.Tensor, stored, window)
