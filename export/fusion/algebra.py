"""Pure tensor algebra of linear, shift-invariant maps: no graphs, no modules.

Every convolution, batch norm in inference, channel scale, average pool, zero padding, channel slice
and the identity is a map

    y[n, o, i] = bias[o] + sum over c, k of kernel[o, c, k] x[n, c, stride i + origin + step k]

with x zero outside its borders (`geometry` has the positions). Such maps are closed under sums and
concatenation where the outputs lie at the same places, and under sequences wherever the border of
the value between them makes no difference:

    (g after f):  K = sum of Kg[d2] Kf[d1] at offset sf * d2 + d1,   b = bg + (sum of Kg) bf

Everything is float64: variances near zero make scales large. Tensors on the meta device pass
through all of it, which tells the cost of a result before it is paid for (`support` tells which
blocks of a kernel stay zero; biases, which cost nothing, get lost); questions about values are then
answered in favour of the merge.

Source: Ding et al., "RepVGG", CVPR 2021, and "Diverse Branch Block", CVPR 2021, sections 3.2 and
3.3; generalized to any offsets, strides and groups.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from export.fusion.geometry import (
    Axis,
    Inexact,
    border_is_blank,
    compose_axes,
    place_taps,
    reads_border,
    shift_taps,
    unite_axes,
)
from export.fusion.support import (
    Support,
    add_supports,
    extend_support,
    fill_blocks,
    stack_supports,
    widen,
)

_SAME = 1e-9
"""Relative difference up to which a border counts as equal to the bias that it continues."""


@dataclass(frozen=True)
class LinearMap:
    """A linear, shift-invariant map with bias.

    Attributes:
        kernel: ``(out, in / groups, *taps)``, float64.
        bias: ``(out,)``, float64; None is exactly zero.
        groups: output block j reads input block j alone.
        axes: one for each spatial axis; none for a linear layer.
        is_identity: known to leave its input as it is.
        support: on the meta device, where channels were picked or joined, what of the kernel is in
            use, which then has one group; None: all of it.
    """

    kernel: Tensor
    bias: Tensor | None
    groups: int
    axes: tuple[Axis, ...]
    is_identity: bool = False
    support: Support | None = None

    @property
    def inputs(self) -> int:
        """Input channels."""
        return self.kernel.shape[1] * self.groups

    @property
    def outputs(self) -> int:
        """Output channels."""
        return self.kernel.shape[0]

    @property
    def is_channelwise(self) -> bool:
        """Each output channel reads the input channel of the same index, and no other."""
        return self.groups == self.inputs == self.outputs


def make_identity(channels: int, sizes: Sequence[int | None], like: Tensor) -> LinearMap:
    """The identity on `channels`, on the device of `like`."""
    kernel = torch.ones(channels, 1, *[1] * len(sizes), dtype=torch.float64, device=like.device)
    axes = tuple(Axis(size) for size in sizes)
    return LinearMap(kernel, None, channels, axes, is_identity=True)


def make_window(channels: int, axes: Sequence[Axis], weight: float, like: Tensor) -> LinearMap:
    """A channelwise map with the same weight at every tap: a pool, a padding, a crop."""
    taps = [axis.taps for axis in axes]
    kernel = torch.full((channels, 1, *taps), weight, dtype=torch.float64, device=like.device)
    return LinearMap(kernel, None, channels, tuple(axes))


def scale_outputs(map_: LinearMap, scale: Tensor | float, shift: Tensor | None) -> LinearMap:
    """``y * scale + shift`` with a number or one value an output channel; `shift` None is zero."""
    if map_.kernel.is_meta:
        return replace(map_, is_identity=False)
    rows = scale.reshape(-1, *[1] * (map_.kernel.ndim - 1)) if isinstance(scale, Tensor) else scale
    bias = None if map_.bias is None else map_.bias * scale
    if shift is not None:
        bias = shift.expand(map_.outputs) if bias is None else bias + shift
    return LinearMap(map_.kernel * rows, bias, map_.groups, map_.axes)


def add_maps(one: LinearMap, other: LinearMap, factor: float) -> LinearMap:
    """``one(x) + factor * other(x)`` as one map.

    Raises:
        Inexact: their outputs do not lie at the same places, or differ in channels.
    """
    if one.outputs != other.outputs:
        raise Inexact(f"the branches have {one.outputs} and {other.outputs} channels")
    axes, groups = _unite([one, other])
    if one.kernel.is_meta:
        shape = (one.outputs, one.inputs // groups, *(axis.taps for axis in axes))
        support = None
        if one.support or other.support:
            support = add_supports(_find_support(one, axes), _find_support(other, axes))
        return LinearMap(one.kernel.new_empty(shape), None, groups, axes, support=support)
    kernel = _spread_kernel(one, axes, groups)
    at: Any = (..., *(place_taps(axis, all_) for axis, all_ in zip(other.axes, axes, strict=True)))
    kernel[at].add_(regroup(other, groups), alpha=factor)
    bias = one.bias
    if other.bias is not None:
        bias = other.bias * factor if bias is None else bias + other.bias * factor
    return LinearMap(kernel, bias, groups, axes)


def concatenate_maps(maps: Sequence[LinearMap]) -> LinearMap:
    """The outputs of all maps, which read the same input, one after the other.

    Raises:
        Inexact: their outputs do not lie at the same places.
    """
    if len(maps) == 1:
        return maps[0]
    axes, _ = _unite(maps)
    if maps[0].kernel.is_meta:
        shape = (sum(m.outputs for m in maps), maps[0].inputs, *(axis.taps for axis in axes))
        support = stack_supports([_find_support(m, axes) for m in maps])
        return LinearMap(maps[0].kernel.new_empty(shape), None, 1, axes, support=support)
    bias = None
    if any(map_.bias is not None for map_ in maps):
        bias = torch.cat(
            [m.kernel.new_zeros(m.outputs) if m.bias is None else m.bias for m in maps]
        )
    return LinearMap(torch.cat([_spread_kernel(m, axes, 1) for m in maps]), bias, 1, axes)


def select_outputs(map_: LinearMap, channels: range) -> LinearMap:
    """Only the output channels in `channels`, in their order."""
    if channels == range(map_.outputs):
        return map_
    rows = slice(channels.start, channels.stop, channels.step)
    kernel = regroup(map_, 1)[rows]
    bias = None if map_.bias is None else map_.bias[rows]
    support = None
    if map_.kernel.is_meta:
        support = _find_support(map_, map_.axes).select(rows)
    return LinearMap(kernel, bias, 1, map_.axes, support=support)


def compose_maps(first: LinearMap, second: LinearMap, border: Tensor | None = None) -> LinearMap:
    """`second` after `first` as one map.

    Args:
        first: its outputs are the inputs of `second`.
        second: reads `border` beyond the outputs of `first`. One layer: all of it is in use.
        border: one value a channel; None is zero, as every padded operator has it.

    Raises:
        Inexact: the composed map would see something else beyond the outputs of `first`.
    """
    if first.outputs != second.inputs:
        raise Inexact(f"{first.outputs} channels meet {second.inputs}")
    _check_border(first, second, border)
    if first.is_identity:
        return second
    axes = tuple(compose_axes(f, s) for f, s in zip(first.axes, second.axes, strict=True))
    groups = _composed_groups(first, second)
    shape = (second.outputs, first.inputs // groups, *(axis.taps for axis in axes))
    if first.kernel.is_meta:  # every operator on it costs about a millisecond
        support = None
        if first.support:
            around = first.axes, second.axes, axes
            support = extend_support(first.support, second.outputs, second.groups, around)
        return LinearMap(first.kernel.new_empty(shape), None, groups, axes, support=support)
    kernel = torch.zeros(shape, dtype=torch.float64, device=first.kernel.device)
    for tap in itertools.product(*(range(axis.taps) for axis in second.axes)):
        places: Any = [
            shift_taps(f, f.stride * s.step * k, a)
            for f, s, a, k in zip(first.axes, second.axes, axes, tap, strict=True)
        ]
        at: Any = (..., *tap)
        kernel[(..., *places)] += _mix(first, second.kernel[at], second, groups)
    return LinearMap(kernel, _composed_bias(first, second), groups, axes)


def regroup(map_: LinearMap, groups: int) -> Tensor:
    """The kernel of `map_` with fewer groups, zero where the blocks do not reach.

    `groups` divides the groups of `map_`.
    """
    if groups == map_.groups:
        return map_.kernel
    merged = map_.groups // groups
    if map_.kernel.is_meta:
        return map_.kernel.new_empty(map_.outputs, map_.inputs // groups, *map_.kernel.shape[2:])
    outputs, inputs, *taps = map_.kernel.shape
    blocks = map_.kernel.reshape(groups, merged, outputs // map_.groups, inputs, *taps)
    wide = blocks.new_zeros(groups, merged, outputs // map_.groups, merged, inputs, *taps)
    wide.diagonal(dim1=1, dim2=3).copy_(blocks.movedim(1, -1))
    return wide.reshape(outputs, merged * inputs, *taps)


def _unite(maps: Sequence[LinearMap]) -> tuple[tuple[Axis, ...], int]:
    """Common axes and groups of maps that read one input."""
    axes = maps[0].axes
    for map_ in maps[1:]:
        axes = tuple(unite_axes(one, two) for one, two in zip(axes, map_.axes, strict=True))
    return axes, math.gcd(*(map_.groups for map_ in maps))


def _find_support(map_: LinearMap, axes: tuple[Axis, ...]) -> Support:
    """What of the kernel of `map_` is in use where it is written on wider axes."""
    all_ = fill_blocks(map_.outputs, map_.inputs, map_.groups, map_.axes)
    return widen(map_.support or all_, map_.axes, axes)


def _spread_kernel(map_: LinearMap, axes: tuple[Axis, ...], groups: int) -> Tensor:
    """The kernel of `map_` on wider axes and in fewer groups, as a tensor of its own."""
    kernel = regroup(map_, groups)
    if map_.axes == axes:
        return kernel.clone() if kernel is map_.kernel else kernel
    wide = kernel.new_zeros(*kernel.shape[:2], *(axis.taps for axis in axes))
    at: Any = (..., *(place_taps(axis, all_) for axis, all_ in zip(map_.axes, axes, strict=True)))
    wide[at] = kernel
    return wide


def _check_border(first: LinearMap, second: LinearMap, border: Tensor | None) -> None:
    for f, s in zip(first.axes, second.axes, strict=True):
        if not reads_border(f, s):
            continue
        if not border_is_blank(f, s):
            raise Inexact(
                "the border would change: the second layer pads what the first computes, and the "
                "first reads its input there"
            )
        if not _is_same(first.bias, border):
            raise Inexact(
                "the border would change: a bias stands before the padding"
                if border is None
                else "the border would change: its fill is not what the layer before gives there"
            )


def _is_same(bias: Tensor | None, border: Tensor | None) -> bool:
    known = [value for value in (bias, border) if value is not None]
    if not known or any(value.is_meta for value in known):
        return True
    zero = torch.zeros_like(known[0])
    left, right = (zero if value is None else value for value in (bias, border))
    scale = max(float(left.abs().max()), float(right.abs().max()))
    return float((left - right).abs().max()) <= _SAME * scale


def _composed_groups(first: LinearMap, second: LinearMap) -> int:
    if first.is_channelwise:
        return second.groups
    if second.is_channelwise:
        return first.groups
    return math.gcd(first.groups, second.groups)


def _mix(first: LinearMap, matrix: Tensor, second: LinearMap, groups: int) -> Tensor:
    """One tap of `second`, ``(out, middle / groups)``, times the whole kernel of `first`."""
    if second.is_channelwise:
        return first.kernel * matrix.reshape(-1, *[1] * (first.kernel.ndim - 1))
    taps = first.kernel.shape[2:]
    outputs = second.outputs
    if first.is_channelwise:
        blocks = matrix.reshape(groups, outputs // groups, -1)
        scales = first.kernel.reshape(groups, 1, blocks.shape[2], *taps)
        product = blocks.reshape(*blocks.shape, *[1] * len(taps)) * scales
        return product.reshape(outputs, -1, *taps)
    flat = LinearMap(matrix, None, second.groups, ())
    left = regroup(flat, groups).reshape(groups, outputs // groups, -1)
    right = regroup(first, groups).reshape(groups, left.shape[2], -1)
    return torch.bmm(left, right).reshape(outputs, -1, *taps)


def _composed_bias(first: LinearMap, second: LinearMap) -> Tensor | None:
    if first.bias is None:
        return second.bias
    sums = second.kernel.flatten(2).sum(-1) if second.axes else second.kernel
    blocks = sums.reshape(second.groups, second.outputs // second.groups, -1)
    through = (blocks * first.bias.reshape(second.groups, 1, -1)).sum(-1).reshape(-1)
    return through if second.bias is None else through + second.bias
