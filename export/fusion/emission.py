"""A linear, shift-invariant map as the smallest layer that computes it.

Zero taps at the rim are dropped, the common factor of the rest becomes the dilation, blocks of
zeros become groups. Padding is the convolution's own where it is the same on both sides; else it is
an operation before it, which runtimes fold into theirs.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from export.fusion.algebra import LinearMap, regroup
from export.fusion.geometry import Axis


@dataclass(frozen=True)
class Layer:
    """A convolution, or a linear layer where there are no spatial axes.

    Attributes:
        weight: ``(out, in / groups, *kernel)``, float64.
        bias: ``(out,)`` or None.
        stride, padding, dilation: one number a spatial axis.
        groups: of the channels.
        border: zeros to add before the layer, ``(before, after)`` a spatial axis; None: nothing to
            add. Negative numbers cut off.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    border: tuple[tuple[int, int], ...] | None

    @property
    def macs_per_output(self) -> int:
        """Multiplications that one element of the output takes."""
        return math.prod(self.weight.shape[1:])

    @property
    def parameters(self) -> int:
        """Elements of weight and bias."""
        return self.weight.numel() + (0 if self.bias is None else self.bias.numel())


def emit_layer(map_: LinearMap) -> Layer:
    """The smallest layer that computes `map_`; on the meta device, one that is large enough."""
    if not map_.axes:
        map_ = replace(map_, kernel=regroup(map_, 1), groups=1)  # linear layers have no groups
    elif map_.support or not map_.kernel.is_meta:
        map_ = _drop_zero_taps(_find_groups(map_))
    padded = [_pad(axis) for axis in map_.axes]
    own = [_find_own(*sides) for sides in padded]
    border = None
    if None in own:
        border = tuple(
            sides if size is None else (0, 0) for sides, size in zip(padded, own, strict=True)
        )
    return Layer(
        weight=map_.kernel,
        bias=map_.bias,
        stride=tuple(axis.stride for axis in map_.axes),
        padding=tuple(size or 0 for size in own),
        dilation=tuple(axis.step for axis in map_.axes),
        groups=map_.groups,
        border=border,
    )


def _pad(axis: Axis) -> tuple[int, int]:
    """Padding before and after; equal, and not negative, wherever that gives the same outputs."""
    before = -axis.origin
    least, most = axis.padding_after()
    if before >= 0 and least <= before <= most:
        return before, before
    return before, min(max(least, 0), most)


def _find_own(before: int, after: int) -> int | None:
    """The padding as a convolution takes it: the same on both sides, and cutting off nothing."""
    return before if before == after >= 0 else None


def _find_groups(map_: LinearMap) -> LinearMap:
    """The same map with as many groups as its zeros allow."""
    outputs, inputs = map_.outputs // map_.groups, map_.inputs // map_.groups
    if map_.support:
        used = map_.support.channels
    else:
        used = map_.kernel.reshape(map_.outputs, inputs, -1).ne(0).any(-1)
    for split in range(math.gcd(outputs, inputs), 1, -1):
        if outputs % split or inputs % split:
            continue
        blocks = used.reshape(map_.groups, split, outputs // split, split, inputs // split)
        inside = blocks.diagonal(dim1=1, dim2=3)
        if int(blocks.sum()) != int(inside.sum()):
            continue
        taps = map_.kernel.shape[2:]
        wide = map_.kernel.reshape(*blocks.shape, *taps)
        kernel = wide.diagonal(dim1=1, dim2=3).movedim(-1, 1).reshape(map_.outputs, -1, *taps)
        return replace(map_, kernel=kernel.contiguous(), groups=map_.groups * split)
    return map_


def _drop_zero_taps(map_: LinearMap) -> LinearMap:
    """The same map without planes of zeros, wherever its padding stays one of the layer's own."""
    for dimension, axis in enumerate(map_.axes):
        if map_.support:
            planes = map_.support.taps[dimension].any(0)
        else:
            planes = map_.kernel.ne(0).movedim(dimension + 2, 0).flatten(1).any(1)
        taps = [int(tap) for tap in planes.nonzero()]
        if not taps or len(taps) == axis.taps:
            continue
        every = math.gcd(*(tap - taps[0] for tap in taps)) or 1
        small = Axis(
            size=axis.size,
            stride=axis.stride,
            origin=axis.origin + axis.step * taps[0],
            step=axis.step * every if len(taps) > 1 else 1,
            taps=(taps[-1] - taps[0]) // every + 1,
            margin=axis.margin,
        )
        if _find_own(*_pad(small)) is None and _find_own(*_pad(axis)) is not None:
            continue
        index = torch.arange(taps[0], taps[-1] + 1, every, device=map_.kernel.device)
        axes = (*map_.axes[:dimension], small, *map_.axes[dimension + 1 :])
        kernel = map_.kernel.index_select(dimension + 2, index)
        map_ = replace(map_, kernel=kernel, axes=axes)
    return map_
