"""A copy in float64 has all of a module's tensors so, wherever it holds them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

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


class Masking(nn.Module):
    """Attention under a mask that forward makes in float32; the heads of a layer, or by hand."""

    def __init__(self, *, layer: bool) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(16, 4, batch_first=True) if layer else None

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1])
        mask = -0.5 * (steps - steps[:, None]).abs()
        mask = mask.masked_fill(steps > steps[:, None], float("-inf"))
        if self.layer is not None:
            return self.layer(x, x, x, attn_mask=mask, need_weights=False)[0]
        heads = x.unflatten(2, (4, 4)).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
        return attended.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("steps", [5, 10, 33])
def test_a_mask_in_float32_is_read_as_what_it_is(layer: bool, steps: int):
    torch.manual_seed(0)
    module = Masking(layer=layer).eval()
    x = torch.randn(3, steps, 16)
    wide = copy_in_float64(module)
    with torch.no_grad():
        found, narrow = run_in_float64(lambda: wide(x.double())), module(x)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found.float(), narrow, rtol=1e-5, atol=2e-6)


class Naming(nn.Module):
    """Casts to float32, and makes it, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.turn = nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        waves = torch.exp(-torch.arange(6, dtype=torch.float32) / 3)
        y = self.linear(x.float() * torch.sin(steps[:, None].float() * waves))
        z = torch.zeros(len(x), 4, dtype=torch.cfloat) + torch.fft.fft(y) * self.turn
        return z.real @ torch.eye(4, dtype=torch.float) + y.to(torch.float32)


def test_what_forward_names_float32_is_wide_where_it_fails_otherwise():
    torch.manual_seed(0)
    module = Naming().eval()
    x, steps = torch.randn(3, 6), torch.tensor([1, 70, 900])
    wide = copy_in_float64(module)
    with torch.no_grad():
        found = run_in_float64(lambda: wide(x.double(), steps))
        waves = torch.exp(-torch.arange(6, dtype=torch.float64) / 3)
        y = wide.linear(x.double() * torch.sin(steps[:, None] * waves))
        expected = (torch.fft.fft(y) * module.turn.to(torch.complex128)).real + y
        torch.testing.assert_close(found.float(), module(x, steps), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


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
