"""Fourier transforms between known sizes as products with matrices.

    X[f] = sum over t of x[t] exp(-2 pi i f t / n)

is linear in the real and imaginary parts, which lie side by side: a transform of n values is a
product with a matrix of 2n columns at most. Of up to 256 values such a product takes ONNX Runtime
1.32 at most a quarter of the time of its own operator, of 400 a thirtieth. It is as exact or more,
and a product is what every engine has: OpenVINO answered real transforms wrongly, and TensorRT has
no such operator.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from export.fusion.calls import add_call
from export.fusion.draft import Draft, read_argument
from export.onnx.graph import FIXED

aten = torch.ops.aten

_LARGEST_POWER, _LARGEST = 1024, 4096
"""Values that a product transforms: of a power of two, for which there is a fast way; of others. Of
others between complex values half as many, whose matrix is as large."""

_WHOLE, _ROOT = 2, 1
"""How torch numbers what is divided by: the number of values, its root; 0 is nothing."""


def write_out_transforms(draft: Draft) -> bool:
    """Whether there was a transform of known sizes for which a product is the faster way."""
    found = [node for node in draft.graph.nodes if node.target in _KINDS and _is_known(node)]
    for node in found:
        with draft.graph.inserting_before(node):
            draft.erase(node, _KINDS[node.target](draft, node))
    return bool(found)


def is_product_faster(size: object) -> bool:
    """Whether a product is the way to transform `size` values."""
    if not isinstance(size, int) or size < 1:
        return False
    return size <= (_LARGEST if size & (size - 1) else _LARGEST_POWER)


def _is_known(node: fx.Node) -> bool:
    shape = _list_sizes(node)
    wide = read_argument(node, "self").meta["val"].dtype in (torch.float64, torch.complex128)
    if wide or not all(is_product_faster(size) for size in shape):
        return False
    between = shape if node.target is aten._fft_c2c.default else shape[:-1]
    return all(int(size) <= _LARGEST // 2 for size in between)


def _list_sizes(node: fx.Node) -> list[int | torch.SymInt]:
    """How many values are transformed along each axis; those of a real signal."""
    shape = read_argument(node, "self").meta["val"].shape
    sizes = [shape[axis] for axis in read_argument(node, "dim")]
    if node.target is aten._fft_c2r.default:
        sizes[-1] = read_argument(node, "last_dim_size")
    return sizes


def _choose_scale(node: fx.Node) -> float:
    count = math.prod(int(size) for size in _list_sizes(node))
    how = read_argument(node, "normalization")
    return {_WHOLE: 1 / count, _ROOT: 1 / math.sqrt(count)}.get(how, 1.0)


def _from_real(draft: Draft, node: fx.Node) -> fx.Node:
    """``_fft_r2c``: the last axis of a real signal, then the others of what that became."""
    value, axes = read_argument(node, "self"), _list_axes(node)
    size = value.meta["val"].shape[axes[-1]]
    bins = size // 2 + 1 if read_argument(node, "onesided") else size
    matrix = make_spectrum(size, bins)[::2] * _choose_scale(node)
    spectrum = _multiply(draft, node, value, axes[-1], matrix)
    return _close(node, _turn_others(draft, node, spectrum, axes[:-1], forward=True))


def _between(draft: Draft, node: fx.Node) -> fx.Node:
    """``_fft_c2c``."""
    axes, forward = _list_axes(node), read_argument(node, "forward")
    scale = _choose_scale(node)
    return _close(node, _turn_others(draft, node, _open(node), axes, forward=forward, scale=scale))


def _to_real(draft: Draft, node: fx.Node) -> fx.Node:
    """``_fft_c2r``: all other axes, then the last to a real signal."""
    axes, size = _list_axes(node), read_argument(node, "last_dim_size")
    spectrum = _turn_others(draft, node, _open(node), axes[:-1], forward=False)
    bins = spectrum.meta["val"].shape[axes[-1]]
    matrix = make_signal(bins, size) * _choose_scale(node)
    return _multiply(draft, node, spectrum, axes[-1], matrix, real=True)


_KINDS: dict[Any, Callable[[Draft, fx.Node], fx.Node]] = {
    aten._fft_r2c.default: _from_real,
    aten._fft_c2c.default: _between,
    aten._fft_c2r.default: _to_real,
}


def _list_axes(node: fx.Node) -> list[int]:
    rank = read_argument(node, "self").meta["val"].ndim
    return [axis % rank for axis in read_argument(node, "dim")]


def _open(node: fx.Node) -> fx.Node:
    return add_call(node, aten.view_as_real.default, read_argument(node, "self"))


def _close(node: fx.Node, parts: fx.Node) -> fx.Node:
    contiguous = add_call(node, aten.contiguous.default, parts)
    return add_call(node, aten.view_as_complex.default, contiguous)


def _turn_others(
    draft: Draft,
    node: fx.Node,
    value: fx.Node,
    axes: Sequence[int],
    *,
    forward: bool,
    scale: float = 1.0,
) -> fx.Node:
    for number, axis in enumerate(axes):
        size = value.meta["val"].shape[axis]
        matrix = make_spectrum(size, size, forward=forward)
        value = _multiply(draft, node, value, axis, matrix if number else matrix * scale)
    return value


def _multiply(
    draft: Draft, node: fx.Node, value: fx.Node, axis: int, matrix: Tensor, *, real: bool = False
) -> fx.Node:
    """`value` times `matrix` along `axis`; real and imaginary parts lie along a last axis.

    Args:
        value: of as many axes as the signal, or with one more for the parts.
        matrix: float64; by value or part in, then by part out, or by value where `real`.
    """
    example: Tensor = value.meta["val"]
    stored = store_fixed(draft, "fourier", matrix, example)
    rank = read_argument(node, "self").meta["val"].ndim
    last = rank - 1
    value = _swap(node, value, axis, last)
    if example.ndim > rank:
        value = add_call(node, aten.flatten.using_ints, value, -2, -1)
    value = add_call(node, aten.matmul.default, value, stored)
    if not real:
        value = add_call(node, aten.unflatten.int, value, -1, [matrix.shape[1] // 2, 2])
    return _swap(node, value, axis, last)


def _swap(node: fx.Node, value: fx.Node, axis: int, other: int) -> fx.Node:
    return value if axis == other else add_call(node, aten.transpose.int, value, axis, other)


def store_fixed(draft: Draft, name: str, matrix: Tensor, like: Tensor) -> fx.Node:
    """A matrix of float64 as a stored tensor that nothing trains, in the type of `like`.

    One that is stored already stands for its equals.
    """
    dtype = like.real.dtype if like.is_complex() else like.dtype
    values = matrix.to(like.device, dtype).contiguous()
    for node in draft.graph.nodes:
        stored = draft.stored(node)
        if stored is None or not draft.target(node).startswith(FIXED + name):
            continue
        if stored.dtype == dtype and torch.equal(stored, values):
            found: fx.Node = node
            return found
    return draft.add(FIXED + name, nn.Parameter(values, requires_grad=False), beside=None)


def make_spectrum(size: int, bins: int, *, forward: bool = True) -> Tensor:
    """Of a complex signal its spectrum: ``[2 size, 2 bins]`` float64, both by number and part."""
    sign = -1.0 if forward else 1.0
    angles = _list_angles(size, bins, size)
    cosines, sines = torch.cos(angles), sign * torch.sin(angles)
    parts = torch.stack([cosines, sines, -sines, cosines], -1)  # real in, then imaginary in
    return parts.reshape(size, bins, 2, 2).permute(0, 2, 1, 3).reshape(2 * size, 2 * bins)


def make_signal(bins: int, size: int) -> Tensor:
    """Of the first half of a spectrum the real signal: ``[2 bins, size]`` float64.

    A bin stands for its mirror image as well, where it has one. Bins beyond the half count nothing.
    """
    numbers = torch.arange(bins)
    times = torch.where((numbers == 0) | (2 * numbers == size), 1.0, 2.0).to(torch.float64)
    times = torch.where(numbers > size // 2, 0.0, times).unsqueeze(1)
    angles = _list_angles(bins, size, size)
    parts = torch.stack([times * torch.cos(angles), -times * torch.sin(angles)], 1)
    return parts.reshape(2 * bins, size)


def _list_angles(rows: int, columns: int, size: int) -> Tensor:
    turns = torch.outer(torch.arange(rows), torch.arange(columns)) % size
    return turns.to(torch.float64) * (2 * math.pi / size)
