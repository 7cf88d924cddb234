"""Shapes that are known at once are those that torch works out."""

import pytest
import torch
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from export.capture.quick_shapes import shape_quickly

unfold_backward = torch.ops.aten.unfold_backward.default
BEFORE = decomposition_table[unfold_backward]


@pytest.mark.parametrize(
    ("shape", "sizes", "dimension", "step"),
    [((3, 5, 4), [3, 12], 1, 2), ((3, 6, 6), [8, 6], 0, 1)],
)
def test_a_sum_of_frames_has_the_shape_and_type_that_torch_gives_it(shape, sizes, dimension, step):
    grad = torch.zeros(shape, dtype=torch.float64)
    rest = (sizes, dimension, shape[-1], step)
    real = unfold_backward(grad, *rest)
    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=False)
    with shape_quickly(), mode:
        found = unfold_backward(mode.from_tensor(grad), *rest)
    assert found.shape == real.shape
    assert found.dtype == real.dtype


def fail_within() -> None:
    with shape_quickly():
        assert decomposition_table[unfold_backward] is not BEFORE
        raise KeyError


def test_torch_is_as_before_behind_the_block_whatever_ended_it():
    with pytest.raises(KeyError):
        fail_within()
    assert decomposition_table[unfold_backward] is BEFORE
