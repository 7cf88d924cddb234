"""Tensors filled with the value of another."""

import pytest
import torch
from torch import Tensor, nn

from export.capture.program import capture
from export.capture.replaced_calls import ReplacedCalls
from export.capture.tensor_fills import TensorFills, TensorFillsLike

VALUES = [torch.tensor(2.5), torch.tensor(2.5).double(), torch.tensor(7), torch.tensor(True)]


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.parametrize("kind", [None, torch.float64, torch.int32], ids=str)
def test_they_are_what_torch_makes_of_a_number(value, kind):
    like = torch.zeros(2, dtype=torch.float16)
    made = [
        lambda: torch.full((3, 2), value, dtype=kind),
        lambda: torch.full(size=[3], fill_value=value, dtype=kind, device="cpu"),
        lambda: like.new_full((2, 1), value, dtype=kind),
        lambda: like.new_full((), fill_value=value, dtype=kind),
    ]
    for make in made:
        exact = make()
        with ReplacedCalls(TensorFills(), TensorFillsLike()):
            found = make()
        torch.testing.assert_close(found, exact, rtol=0, atol=0)


def test_numbers_and_other_options_go_to_torch():
    with ReplacedCalls(TensorFills(), TensorFillsLike()):
        assert torch.full((2,), 3).tolist() == [3, 3]
        assert torch.full((2,), torch.tensor(3.0), requires_grad=True).requires_grad
        assert torch.zeros(1).new_full((1,), torch.tensor(3.0), requires_grad=True).requires_grad
        assert torch.zeros(1).new_full((2,), 3).tolist() == [3.0, 3.0]


class Filled(nn.Module):
    """The stride of a detector, a value of a buffer, beside each place."""

    def __init__(self, new: bool) -> None:
        super().__init__()
        self.new = new
        self.register_buffer("strides", torch.tensor([8.0, 16.0]))

    def forward(self, x: Tensor) -> Tensor:
        size, value = (x.shape[1], 1), self.strides[1]
        filled = x.new_full(size, value) if self.new else torch.full(size, value)
        return x * filled.T


@pytest.mark.parametrize("new", [False, True])
def test_a_buffers_value_is_no_number(new):
    program = capture(Filled(new), {"x": torch.randn(2, 5)}, keyword=False, dynamic_batch=True)
    assert "item" not in str(program.graph)
    assert program.module()(torch.ones(3, 5)).unique().tolist() == [16.0]
