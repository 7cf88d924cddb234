"""A batch norm before a global average pool and the layer behind that."""

import copy

import pytest
import torch
from families import randomize_far, relative_error
from torch import Tensor, nn

from export import fuse


class Net(nn.Module):
    """Something, a norm, and what is made of the norm."""

    def __init__(self, act) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.act = act
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head, self.other = nn.Linear(6, 4), nn.Linear(6, 4, bias=False)
        self.point, self.drop, self.pool = nn.Conv2d(6, 4, 1), nn.Dropout(), nn.AdaptiveAvgPool2d
        randomize_far(self)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, torch.nn.functional.gelu(self.conv(x)))


SUNK = {
    "mean": lambda m, x: m.head(m.norm(x).mean((2, 3))),
    "mean of one axis after the other": lambda m, x: m.head(m.norm(x).mean(-1).mean(-1)),
    "pool and flatten": lambda m, x: m.head(m.drop(m.pool(1)(m.norm(x)).flatten(1))),
    "pool and 1x1 convolution": lambda m, x: m.point(m.pool(1)(m.norm(x))).flatten(1),
    "some positions left": lambda m, x: m.point(m.pool(2)(m.norm(x))),
    "norm behind the pool": lambda m, x: m.head(m.norm(m.pool(1)(x)).flatten(1)),
    "squeezed": lambda m, x: m.head(m.drop(m.norm(m.pool(1)(x)).squeeze((2, 3)))),
    "squeezed one after the other": lambda m, x: m.head(
        m.norm(m.pool(1)(x)).squeeze(-1).squeeze(-1)
    ),
    "two heads": lambda m, x: m.head(y := m.norm(x).mean((2, 3))) + m.other(y),
}


def count(result, name: str) -> int:
    return sum(name in str(node.target) for node in result.module.graph.nodes)


@pytest.mark.parametrize("name", SUNK)
def test_norm_before_a_global_pool_merges_with_the_layer_behind_it(name: str) -> None:
    net, x = Net(SUNK[name]), torch.randn(2, 3, 6, 8)
    before = copy.deepcopy(net.state_dict())
    result = fuse(net, x)
    assert count(result, "batch_norm") == 0
    assert len(result.fused) == 1
    other = torch.randn(3, 3, 6, 8)
    exact = copy.deepcopy(net).double()(other.double())
    assert relative_error(result.module(other), exact) < 1e-6
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


def source_changed(m, x):
    y = m.norm(x)
    x.mul_(2)
    return m.head(y.mean((2, 3))) + x.mean()


LEFT = {
    "read elsewhere": lambda m, x: (
        m.head((y := m.norm(x)).mean((2, 3))) + y.amax((1, 2, 3))[:, None]
    ),
    "pool read elsewhere": lambda m, x: m.head(y := m.norm(x).mean((2, 3))) + y.amax(1)[:, None],
    "no layer": lambda m, x: m.norm(x).mean((2, 3)).relu(),
    "returned": lambda m, x: m.norm(x).mean((2, 3)),
    "largest value": lambda m, x: m.head(m.norm(x).amax((2, 3))),
    "channels averaged": lambda m, x: m.norm(x).mean((1, 2)) @ x.new_ones(8, 2),
    "everything averaged": lambda m, x: m.norm(x).mean() * x.new_ones(2),
    "source changed in place": source_changed,
}


@pytest.mark.parametrize("name", LEFT)
def test_other_norms_are_left(name: str) -> None:
    net, x = Net(LEFT[name]), torch.randn(2, 3, 6, 8)
    result = fuse(net, x)
    assert count(result, "batch_norm") == 1
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
    assert relative_error(result.module(x), exact) < 1e-6


def test_pool_of_a_sequence_that_takes_channels_for_rows_is_left() -> None:
    norm = randomize_far(nn.Sequential(nn.BatchNorm1d(6), nn.AdaptiveAvgPool2d((6, 1))))
    net = nn.Sequential(norm[0], nn.AdaptiveAvgPool2d((3, 6)), nn.Linear(6, 6)).eval()
    x = torch.randn(2, 6, 5)
    result = fuse(net, x)
    exact = copy.deepcopy(net).double()(x.double())
    assert relative_error(result.module(x), exact) < 1e-6


def test_norm_in_training_mode_is_left() -> None:
    net = Net(SUNK["mean"]).train()
    assert not fuse(net, torch.randn(2, 3, 6, 8)).fused
