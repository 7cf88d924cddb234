"""Where a kernel may be other than zero, told by how a map is put together and not by its weights.

Concatenation and slices of channels leave blocks of zeros in a kernel. What its layer will cost
once they have fallen away is told from booleans alone, without the kernel, which for a
concatenation of depthwise branches is larger than theirs by the number of channels.

    outputs selected, added, concatenated:  the same of their supports
    a layer behind:                         an output reads what any channel of its block reads
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from export.fusion.geometry import Axis, place_taps, shift_taps


@dataclass(frozen=True)
class Support:
    """Where a kernel in one group may be other than zero; the tensors lie on the CPU.

    Attributes:
        channels: ``(out, in)``, whether the output reads the input at all.
        taps: ``(out, taps)`` for each spatial axis, whether the output reads that plane of taps.
    """

    channels: Tensor
    taps: tuple[Tensor, ...]

    def select(self, rows: slice) -> "Support":
        """Only these outputs."""
        return Support(self.channels[rows], tuple(taps[rows] for taps in self.taps))


def fill_blocks(outputs: int, inputs: int, groups: int, axes: Sequence[Axis]) -> Support:
    """All of a kernel in `groups`."""
    blocks = torch.eye(groups, dtype=torch.bool)
    channels = blocks.repeat_interleave(outputs // groups, 0)
    return Support(
        channels.repeat_interleave(inputs // groups, 1),
        tuple(torch.ones(outputs, axis.taps, dtype=torch.bool) for axis in axes),
    )


def widen(support: Support, axes: Sequence[Axis], within: Sequence[Axis]) -> Support:
    """The support of a kernel on `axes` where it is written on the wider ones `within`."""
    wide = []
    for taps, axis, all_ in zip(support.taps, axes, within, strict=True):
        placed = torch.zeros(len(taps), all_.taps, dtype=torch.bool)
        placed[:, place_taps(axis, all_)] = taps
        wide.append(placed)
    return Support(support.channels, tuple(wide))


def add_supports(one: Support, other: Support) -> Support:
    """That of the sum of two kernels on the same axes."""
    pairs = zip(one.taps, other.taps, strict=True)
    return Support(one.channels | other.channels, tuple(left | right for left, right in pairs))


def stack_supports(parts: Sequence[Support]) -> Support:
    """The outputs of all, one after the other, on the same axes."""
    taps = zip(*(part.taps for part in parts), strict=True)
    channels = torch.cat([part.channels for part in parts])
    return Support(channels, tuple(torch.cat(planes) for planes in taps))


def extend_support(first: Support, outputs: int, groups: int, axes: "ComposedAxes") -> Support:
    """That of a layer in `groups`, all of its kernel in use, behind a map.

    Args:
        first: of the map.
        outputs: of the layer.
        groups: of the layer.
        axes: of the map, of the layer and of both together.
    """

    def gather(values: Tensor) -> Tensor:
        blocks = values.reshape(groups, -1, values.shape[1]).any(1)
        return blocks.repeat_interleave(outputs // groups, 0)

    taps = []
    for read, before, layer, both in zip(first.taps, *axes, strict=True):
        read = gather(read)
        placed: Any = torch.zeros(outputs, both.taps, dtype=torch.bool)
        for tap in range(layer.taps):
            placed[:, shift_taps(before, before.stride * layer.step * tap, both)] |= read
        taps.append(placed)
    return Support(gather(first.channels), tuple(taps))


ComposedAxes = tuple[Sequence[Axis], Sequence[Axis], Sequence[Axis]]
"""Of a map, of the layer behind it, and of both together."""
