"""Fourier transforms between known sizes as products with matrices.

Of up to 256 values such a product takes ONNX Runtime 1.32 at most a quarter of the time of its own
operator, of 400 a thirtieth, of 2,048 two products a third. They are as exact or more, and a
product is what every engine has: OpenVINO answered real transforms wrongly, and TensorRT has no
such operator.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from export.fusion.calls import add_call
from export.fusion.draft import Draft, read_argument
from export.onnx.wave_products import WaveProducts, is_product_faster

aten = torch.ops.aten

_WHOLE, _ROOT = 2, 1
"""How torch numbers what is divided by: the number of values, its root; 0 is nothing."""


def write_out_transforms(draft: Draft) -> bool:
    """Whether there was a transform of known sizes for which a product is the faster way."""
    found = [node for node in draft.graph.nodes if node.target in _KINDS and _is_known(node)]
    for node in found:
        with draft.graph.inserting_before(node):
            draft.erase(node, _KINDS[node.target](draft, node))
    return bool(found)


def _is_known(node: fx.Node) -> bool:
    shape = _list_sizes(node)
    if read_argument(node, "self").meta["val"].dtype in (torch.float64, torch.complex128):
        return False
    ends_real = node.target is not aten._fft_c2c.default
    last = len(shape) - 1
    return all(is_product_faster(n, real=ends_real and i == last) for i, n in enumerate(shape))


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
    value = _swap(node, value, axes[-1])
    value = WaveProducts(draft, node).turn_signal(value, bins, _choose_scale(node))
    value = _swap(node, value, axes[-1])
    return _close(node, _turn_others(draft, node, value, axes[:-1], forward=True))


def _between(draft: Draft, node: fx.Node) -> fx.Node:
    """``_fft_c2c``."""
    axes, forward = _list_axes(node), read_argument(node, "forward")
    scale = _choose_scale(node)
    return _close(node, _turn_others(draft, node, _open(node), axes, forward=forward, scale=scale))


def _to_real(draft: Draft, node: fx.Node) -> fx.Node:
    """``_fft_c2r``: all other axes, then the last to a real signal."""
    axes, size = _list_axes(node), read_argument(node, "last_dim_size")
    value = _turn_others(draft, node, _open(node), axes[:-1], forward=False)
    value = _swap(node, value, axes[-1])
    value = WaveProducts(draft, node).return_signal(value, size, _choose_scale(node))
    return _swap(node, value, axes[-1])


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
    products = WaveProducts(draft, node)
    for number, axis in enumerate(axes):
        value = _swap(node, value, axis)
        value = products.turn(value, forward=forward, scale=1.0 if number else scale)
        value = _swap(node, value, axis)
    return value


def _swap(node: fx.Node, value: fx.Node, axis: int) -> fx.Node:
    """`value` with `axis` in the place of the last one; parts stay behind that."""
    last = read_argument(node, "self").meta["val"].ndim - 1
    return value if axis == last else add_call(node, aten.transpose.int, value, axis, last)
