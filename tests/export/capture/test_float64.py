"""A copy in float64 has all of a module's tensors so, wherever it holds them."""

import pytest
import torch
from torch import Tensor, nn

from export.capture.float64 import copy_in_float64, run_in_float64


class Shared:
    """No module: what it holds is not looked at, and stays that which the module holds too."""

    def __init__(self, seen: list[int]) -> None:
        self.seen = seen


class Holding(nn.Module):
    """Multiplies by tensors that are no buffers: attributes, some in a list, a dict, a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.matrix = torch.randn(4, 4)
        self.listed = [torch.randn(4, 4), (torch.randn(4, 4), "word")]
        self.named = {"one": self.matrix, "weights": [self.linear.weight]}
        self.places = torch.tensor([3, 1, 2, 0])
        self.seen: list[int] = []
        self.shared = Shared(self.seen)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x) @ self.matrix @ self.listed[0] @ self.listed[1][0] @ self.named["one"]
        return (y @ self.named["weights"][0])[:, self.places]


def test_tensors_that_are_plain_attributes_are_wide_too():
    torch.manual_seed(0)
    module = Holding().eval()
    wide = copy_in_float64(module)
    x = torch.randn(3, 6)
    with torch.no_grad():
        found, narrow = wide(x.double()), module(x)
        y = x.double() @ module.linear.weight.double().T + module.linear.bias.double()
        for matrix in (module.matrix, module.listed[0], module.listed[1][0], module.matrix):
            y = y @ matrix.double()
        expected = (y @ module.linear.weight.double())[:, [3, 1, 2, 0]]
    assert found.dtype is torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.float(), narrow, rtol=1e-4, atol=1e-4)


def test_the_module_itself_stays_and_what_is_held_twice_stays_one():
    module = Holding()
    matrix, listed = module.matrix, module.listed
    wide = copy_in_float64(module)
    assert module.matrix is matrix
    assert module.listed is listed
    assert {t.dtype for t in (matrix, listed[0], listed[1][0], module.linear.weight)} == {
        torch.float32
    }
    assert wide.named["one"] is wide.matrix
    assert wide.named["weights"][0] is wide.linear.weight
    assert wide.listed[1][1] == "word"
    assert wide.seen is wide.shared.seen
    assert wide.places.dtype is torch.int64


class Starting(nn.Module):
    """A recurrent cell that starts from zeros of the default format."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x, torch.zeros(len(x), 4))


def test_tensors_that_forward_makes_are_wide_where_it_fails_otherwise():
    torch.manual_seed(0)
    module = Starting().eval()
    x = torch.randn(3, 6)
    wide = copy_in_float64(module)
    with torch.no_grad():
        found = run_in_float64(lambda: wide(x.double()))
        expected = wide.cell(x.double(), torch.zeros(3, 4, dtype=torch.float64))
        torch.testing.assert_close(found.float(), module(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(found, expected)
    assert torch.get_default_dtype() is torch.float32


def test_the_first_failure_is_the_reason():
    formats = []

    def fail() -> None:
        formats.append(torch.get_default_dtype())
        raise ValueError(f"run {len(formats)}")

    with pytest.raises(ValueError, match="run 1"):
        run_in_float64(fail)
    assert formats == [torch.float32, torch.float64]
    assert torch.get_default_dtype() is torch.float32


def test_a_run_that_succeeds_is_made_once_in_the_default_format():
    formats = []
    run_in_float64(lambda: formats.append(torch.get_default_dtype()))
    assert formats == [torch.float32]
