"""A Conv, Gemm or MatMul as matrix products over patches of its input.

    output = weights @ patches
    [groups, rows, positions] = [groups, rows, taps] @ [groups, taps, positions]

Output channel ``group * rows + row``; a convolution's taps are its input channels times its kernel.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from onnx import NodeProto

from export.onnx.graph import attribute


@dataclass(frozen=True)
class PatchLayout:
    """Where the patches of one layer lie.

    Attributes:
        shape: of the stored weights.
        axis: of the stored weights, the output channels.
        kernel: spatial sizes; empty for Gemm and MatMul.
        pads: begins, then ends, as ONNX has them; None where `auto_pad` says.
        auto_pad: ONNX's.
    """

    shape: tuple[int, ...]
    axis: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] | None = None
    auto_pad: str = "NOTSET"

    @property
    def taps(self) -> int:
        """Length of a patch."""
        return math.prod(self.shape) // self.shape[self.axis]

    @property
    def rows(self) -> int:
        """Output channels of one group."""
        return self.shape[self.axis] // self.groups

    def to_matrix(self, weight: np.ndarray) -> np.ndarray:
        """Stored weights → [groups, rows, taps]."""
        return np.moveaxis(weight, self.axis, 0).reshape(self.groups, self.rows, self.taps)

    def to_weight(self, matrix: np.ndarray) -> np.ndarray:
        """[groups, rows, taps] → the shape of the stored weights."""
        rest = [size for axis, size in enumerate(self.shape) if axis != self.axis]
        moved = matrix.reshape(self.shape[self.axis], *rest)
        return np.ascontiguousarray(np.moveaxis(moved, 0, self.axis))


def read_layout(node: NodeProto, shape: tuple[int, ...], axis: int) -> PatchLayout | str:
    """The layout of `node` with weights of `shape`; a string says why it has none."""
    if node.op_type in ("Gemm", "MatMul"):
        return PatchLayout(shape, axis)
    if node.op_type != "Conv":
        return f"{node.op_type} is not taken apart into patches"
    rank = len(shape) - 2
    auto_pad = attribute(node, "auto_pad", b"NOTSET").decode()
    pads = tuple(attribute(node, "pads", [0] * 2 * rank))
    return PatchLayout(
        shape,
        axis,
        groups=attribute(node, "group", 1),
        kernel=tuple(shape[2:]),
        strides=tuple(attribute(node, "strides", [1] * rank)),
        dilations=tuple(attribute(node, "dilations", [1] * rank)),
        pads=pads if auto_pad == "NOTSET" else None,
        auto_pad=auto_pad,
    )


def gather_patches(
    array: np.ndarray, layout: PatchLayout, limit: int, random: np.random.Generator
) -> np.ndarray:
    """[groups, taps, positions] of one batch: all positions, or `limit` a sample drawn at random.

    Args:
        array: the layer's input, [N, channels, ...] or [..., taps].
        limit: positions of one sample; the same ones are taken of every sample.
        random: what they are drawn with.
    """
    if not layout.kernel:
        return _gather_rows(array, limit, random)
    windows = _windows(array, layout)
    rank = len(layout.kernel)
    spatial = windows.shape[2 : 2 + rank]
    count = math.prod(spatial)
    if count > limit:
        chosen = np.sort(random.choice(count, limit, replace=False))
        where: tuple[Any, ...] = np.unravel_index(chosen, spatial)
        windows = windows[(slice(None), slice(None), *where)]
        count = limit
    samples, channels = windows.shape[:2]
    size = math.prod(layout.kernel)
    parts = windows.reshape(samples, layout.groups, channels // layout.groups, count, size)
    patches = parts.transpose(1, 2, 4, 0, 3)
    return np.ascontiguousarray(patches).reshape(layout.groups, layout.taps, samples * count)


def _gather_rows(array: np.ndarray, limit: int, random: np.random.Generator) -> np.ndarray:
    array = np.atleast_2d(array)  # a product takes a lone row as well
    samples, *between, taps = array.shape
    rows = array.reshape(samples, math.prod(between), taps)
    if rows.shape[1] > limit:
        rows = rows[:, np.sort(random.choice(rows.shape[1], limit, replace=False))]
    return np.ascontiguousarray(rows.reshape(-1, array.shape[-1]).T)[None]


def _windows(array: np.ndarray, layout: PatchLayout) -> np.ndarray:
    """A view [N, channels, *positions, *kernel] of the zero-padded input."""
    rank = len(layout.kernel)
    pads = layout.pads if layout.pads is not None else _auto_pads(array.shape[2:], layout)
    widths = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(array, widths) if any(pads) else array
    reach = tuple(
        (size - 1) * dilation + 1
        for size, dilation in zip(layout.kernel, layout.dilations, strict=True)
    )
    view = sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    steps = (*layout.strides, *layout.dilations)
    return view[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]


def _auto_pads(sizes: tuple[int, ...], layout: PatchLayout) -> tuple[int, ...]:
    if layout.auto_pad == "VALID":
        return (0,) * 2 * len(sizes)
    begins, ends = [], []
    for size, kernel, stride, dilation in zip(
        sizes, layout.kernel, layout.strides, layout.dilations, strict=True
    ):
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        less, more = total // 2, total - total // 2
        upper = layout.auto_pad == "SAME_UPPER"
        begins.append(less if upper else more)
        ends.append(more if upper else less)
    return (*begins, *ends)
