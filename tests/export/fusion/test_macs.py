"""MACs of operators by their closed forms, and what int8 costs weights by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from export.capture.program import capture
from export.fusion.cost import count_macs, is_layer
from export.fusion.int8_weights import measure_range_ratio, measure_sqnr, round_to_int8


class Call(nn.Module):
    """Calls `function(self, x)`; holds a matrix and a norm for it."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self._function = function
        self.matrix = nn.Parameter(torch.randn(5, 7))
        self.bias = nn.Parameter(torch.randn(7))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def call(function: Callable[..., Tensor]) -> nn.Module:
    return Call(function).eval()


IMAGE, TOKENS, ROW = (4, 6, 5), (6, 5), (5,)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "grouped convolution": (lambda: nn.Conv2d(4, 8, (3, 2), 2, groups=2), IMAGE, 8 * 2 * 2 * 2 * 6),
    "convolution of one axis": (lambda: nn.Conv1d(6, 3, 2), TOKENS, 3 * 4 * 6 * 2),
    "linear layer of tokens": (lambda: nn.Linear(5, 7), TOKENS, 6 * 7 * 5),
    "transposed convolution": (
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2),
        IMAGE,
        4 * 6 * 5 * 3 * 9,
    ),
    "product with a matrix": (lambda: call(lambda m, x: x @ m.matrix), TOKENS, 6 * 7 * 5),
    "product with tokens": (lambda: call(lambda m, x: x @ x.mT), TOKENS, 6 * 6 * 5),
    "product with a vector": (lambda: call(lambda m, x: x @ m.matrix[:, 0]), TOKENS, 6 * 5),
    "product of rows": (lambda: call(lambda m, x: torch.mm(x, m.matrix)), ROW, 7 * 5),
    "product of rows and a sum": (
        lambda: call(lambda m, x: torch.addmm(m.bias, x, m.matrix)),
        ROW,
        7 * 5,
    ),
    "pool": (lambda: nn.AvgPool2d((3, 2), 1), IMAGE, 4 * 4 * 4 * 6),
    "pool of one number": (lambda: nn.AvgPool2d(2), IMAGE, 4 * 3 * 2 * 4),
    "norm": (lambda: call(lambda m, x: m.norm(x)), IMAGE, 120),
    "sum": (lambda: call(lambda m, x: x + x), IMAGE, 120),
    "scale": (lambda: call(lambda m, x: x.mul_(2)), IMAGE, 120),
    "move": (lambda: call(lambda m, x: torch.relu(x).flatten(1)), IMAGE, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_macs_are_those_of_one_sample(name: str) -> None:
    make, shape, expected = CASES[name]
    torch.manual_seed(0)
    feeds = {"x": torch.randn(3, *shape)}
    program = capture(make(), feeds, keyword=False, dynamic_batch=True)
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    assert sum(map(count_macs, nodes)) == expected
    layers = {"pool", "pool of one number", "norm", "sum", "scale", "move"}
    assert any(map(is_layer, nodes)) == (name not in layers)


def test_weights_are_rounded_by_the_largest_of_their_channel() -> None:
    weight = torch.tensor([[[1.0, -127.0]], [[0.26, 0.127]], [[0.0, 0.0]]], dtype=torch.float64)
    rounded = round_to_int8(weight)  # steps of 1 and of 0.26 / 127
    step = 0.26 / 127
    expected = [[[1.0, -127.0]], [[0.26, round(0.127 / step) * step]], [[0.0, 0.0]]]
    torch.testing.assert_close(rounded, torch.tensor(expected, dtype=torch.float64))


def test_sqnr_is_averaged_over_channels_that_hold_anything() -> None:
    weight = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    rounded = torch.tensor([[3.0, 4.5], [1.0, 0.1], [0.0, 0.0]], dtype=torch.float64)
    expected = -10 * math.log10((0.25 / 25 + 0.01 / 1) / 2)
    assert measure_sqnr(weight, rounded) == pytest.approx(expected, rel=1e-12)
    assert measure_sqnr(weight, weight) is None
    assert measure_sqnr(weight * 0, weight) is None


def test_a_range_ratio_leaves_out_channels_of_zeros() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.0], [0.0, 0.0], [-8.0, 1.0]])
    assert measure_range_ratio(weight) == 8 / 2
    assert measure_range_ratio(weight * 0) == 0
    assert measure_range_ratio(weight[1:2]) == 1


def test_rounding_is_that_of_torchs_own_quantizer() -> None:
    weight = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
    scales = weight.abs().amax((1, 2)) / 127
    zeros = torch.zeros(5, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -128, 127)
    torch.testing.assert_close(round_to_int8(weight), expected)
