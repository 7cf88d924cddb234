"""A scale of channels behind a change of axes, as in ConvNeXt and whoever builds like it."""

import copy

import pytest
import torch
from families import relative_error
from torch import Tensor, nn

from export import fuse


class Block(nn.Module):
    """A layer with the channels last, and a scale with them first."""

    def __init__(self, act) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.act = act
        self.conv = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.fc1, self.drop, self.fc2 = nn.Linear(6, 8), nn.Dropout(), nn.Linear(8, 6)
        self.gamma = nn.Parameter(torch.randn(6))
        self.rows = nn.Parameter(torch.randn(5))
        self.eval()

    def inner(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(torch.relu(self.fc1(x.permute(0, 2, 3, 1)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def scaled(m, x):
    return x + m.inner(m.conv(x)).permute(0, 3, 1, 2) * m.gamma.reshape(1, -1, 1, 1)


MERGED = {
    "ConvNeXt": scaled,
    "scale first": lambda m, x: x + m.gamma[:, None, None] * m.inner(x).permute(0, 3, 1, 2),
    "two axes in each other's place": lambda m, x: (
        m.inner(x).transpose(-1, 1) * m.gamma[:, None, None]
    ),
}


def count(result, name: str) -> int:
    return sum(name in str(node.target) for node in result.module.graph.nodes)


@pytest.mark.parametrize("name", MERGED)
def test_scale_is_merged_into_the_layer_before_the_change_of_axes(name: str) -> None:
    net, x = Block(MERGED[name]), torch.randn(2, 6, 5, 7)
    before = copy.deepcopy(net.state_dict())
    result = fuse(net, x)
    assert count(result, "mul") == 0
    assert [item.kind for item in result.fused] == ["sequence"]
    other = torch.randn(3, 6, 5, 7)
    exact = copy.deepcopy(net).double()(other.double())
    assert relative_error(result.module(other), exact) < 1e-6
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


LEFT = {
    "read elsewhere": lambda m, x: (
        (y := m.inner(x).permute(0, 3, 1, 2)) * m.gamma[:, None, None] + y.relu()
    ),
    "along another axis": lambda m, x: m.inner(x).permute(0, 3, 1, 2) * m.rows[:, None],
    "of every value": lambda m, x: m.inner(x).permute(0, 3, 1, 2) * m.rows.outer(m.rows)[:, :1],
    "of the data": lambda m, x: m.inner(x).permute(0, 3, 1, 2) * x,
    "square": lambda m, x: (y := m.inner(x).permute(0, 3, 1, 2)) * y,
    "changed in place": lambda m, x: (
        (y := m.inner(x)).permute(0, 3, 1, 2) * m.gamma[:, None, None] + y.add_(1).sum()
    ),
    "no layer before": lambda m, x: m.inner(x).relu().permute(0, 3, 1, 2) * m.gamma[:, None, None],
}


@pytest.mark.parametrize("name", LEFT)
def test_other_products_are_left(name: str) -> None:
    net, x = Block(LEFT[name]), torch.randn(2, 6, 5, 7)
    result = fuse(net, x)
    assert count(result, "mul") >= 1
    exact = copy.deepcopy(net).double()(x.double())
    assert relative_error(result.module(x), exact) < 1e-6


def test_what_only_moves_values_is_called_no_non_linearity() -> None:
    net = Block(lambda m, x: m.conv(x) + x.transpose(2, 3)).eval()
    (skip,) = fuse(net, torch.randn(2, 6, 5, 5)).skipped
    assert skip.reason == "a change of shape (transpose) stands between"
