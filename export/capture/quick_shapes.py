"""Shapes of values without work that a shape does not need.

Of an ``istft`` at open sizes torch 2.13 works out the shape by all that computes its values, each
offset of a frame by itself: ten seconds for frames of 512, again whenever the program is traced.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import SymInt, Tensor
from torch._decomp import decomposition_table

_SUM_OF_FRAMES = torch.ops.aten.unfold_backward.default


@contextlib.contextmanager
def shape_quickly() -> Iterator[None]:
    """Have values without data that are sums of frames made at once, for the length of the block.

    Where another release works out their shape in another way, nothing changes.
    """
    original = decomposition_table.get(_SUM_OF_FRAMES)
    if original is None:
        yield
        return
    decomposition_table[_SUM_OF_FRAMES] = _shape_sum
    try:
        yield
    finally:
        decomposition_table[_SUM_OF_FRAMES] = original


def _shape_sum(
    grad: Tensor, input_size: Sequence[int | SymInt], dimension: int, size: int, step: int
) -> Tensor:
    return grad.new_zeros(input_size)
