"""A batch norm behind a concatenation, as of kernels of several sizes or of two ways of a block."""

import copy

import pytest
import torch
from families import randomize_far, relative_error
from torch import Tensor, nn

from export import fuse


class Net(nn.Module):
    """Layers, and a norm for what is made of them."""

    def __init__(self, act, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.act = act
        self.small, self.large = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.up = nn.ConvTranspose2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        randomize_far(self)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def two_kernels(m, x):
    y = torch.cat([m.small(x.relu()), m.large(x.sigmoid())], 1)
    return torch.relu_(m.norm(y))


def nested(m, x):
    inner = torch.cat([m.small(x.relu()), m.up(x.tanh())], 1)
    return m.norm(torch.cat([inner, m.large(x.sigmoid())], 1)).relu()


def nested_twice(m, x):
    one = torch.cat([m.small(x.relu()), m.up(x.tanh())], 1)
    other = torch.cat([m.large(x.sigmoid()), m.small(x.cos())], 1)
    return m.norm(torch.cat([one, other], 1)).relu()


def beside_pool(m, x):
    pooled = nn.functional.max_pool2d(x, 3, 1, 1)
    return m.norm(torch.cat([pooled, m.large(x.sigmoid())], -3)).relu()


def beside_changed(m, x):
    return m.norm(torch.cat([x.tanh().relu_(), m.large(x.sigmoid())], 1)).relu()


SPLIT = {
    "two kernels": (two_kernels, 9, 2, 0),
    "nested": (nested, 13, 3, 0),
    "nested twice": (nested_twice, 17, 4, 0),
    "beside a pool": (beside_pool, 8, 1, 1),
    "beside a value that was changed in place": (beside_changed, 8, 1, 1),
}


def count(result, name: str) -> int:
    return sum(name in str(node.target) for node in result.module.graph.nodes)


@pytest.mark.parametrize("name", SPLIT)
def test_norm_of_a_concatenation_is_folded_into_its_layers(name: str) -> None:
    act, channels, folded, left = SPLIT[name]
    net, x = Net(act, channels), torch.randn(2, 3, 6, 7)
    before = copy.deepcopy(net.state_dict())
    result = fuse(net, x)
    assert [item.kind for item in result.fused] == ["conv-bn"] * folded
    assert all(item.paths[1] == "norm" for item in result.fused)
    assert count(result, "batch_norm") == left
    other = torch.randn(3, 3, 6, 7)
    exact = copy.deepcopy(net).double()(other.double())
    assert relative_error(result.module(other), exact) < 1e-6
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())


def shared(m, x):
    y = torch.cat([m.small(x.relu()), m.large(x.sigmoid())], 1)
    return m.norm(y) * y.mean()


def twice(m, x):
    y = m.small(x.relu())
    return m.norm(torch.cat([y, y], 1))


def changed(m, x):
    y = torch.cat([m.small(x.relu()), m.large(x.sigmoid())], 1)
    y[:, :1].mul_(2)
    return m.norm(y).relu()


def part_changed(m, x):
    z = x.tanh()
    y = torch.cat([z, m.large(x.sigmoid())], 1)
    z.mul_(2)
    return m.norm(y).relu() + z.mean()


LEFT = {
    "read elsewhere": (shared, 9),
    "one part twice": (twice, 8),
    "a part read elsewhere": (
        lambda m, x: m.norm(torch.cat([y := m.small(x.relu()), x.tanh()], 1)).relu() + y.mean(),
        7,
    ),
    "changed in place": (changed, 9),
    "a part changed in place": (part_changed, 8),
    "no layers": (lambda m, x: m.norm(torch.cat([x.relu(), x.tanh()], 1)), 6),
    "two parts of no layer": (
        lambda m, x: m.norm(torch.cat([x.tanh(), m.small(x.relu()), x.sigmoid()], 1)),
        10,
    ),
    "a part of truths": (
        lambda m, x: m.norm(torch.cat([x > 0, m.large(x.sigmoid())], 1)).relu(),
        8,
    ),
    "a part of fewer digits": (
        lambda m, x: m.norm(torch.cat([(x > 0).half(), m.large(x.sigmoid())], 1)).relu(),
        8,
    ),
    "rows below each other": (
        lambda m, x: m.norm(torch.cat([m.small(x.relu()), m.small(x.tanh())], 2)),
        4,
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_other_norms_are_left(name: str) -> None:
    net, x = Net(*LEFT[name]), torch.randn(2, 3, 6, 7)
    result = fuse(net, x)
    assert count(result, "batch_norm") == 1
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(x.double())
    assert relative_error(result.module(x), exact) < 1e-6


def test_norm_in_training_mode_is_left() -> None:
    net = Net(two_kernels, 9).train()
    result = fuse(net, torch.randn(2, 3, 6, 7))
    assert not result.fused
    assert count(result, "batch_norm") == 1


def test_norm_of_concatenated_features_is_folded_into_linear_layers() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(5, 4), nn.Linear(5, 3, bias=False)
            self.norm = nn.BatchNorm1d(7)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(torch.cat([self.one(x.tanh()), self.other(x.relu())], 1)).relu()

    torch.manual_seed(0)
    net = randomize_far(Features()).eval()
    result = fuse(net, torch.randn(2, 5))
    assert [item.kind for item in result.fused] == ["linear-bn"] * 2
    x = torch.randn(3, 5)
    assert relative_error(result.module(x), copy.deepcopy(net).double()(x.double())) < 1e-6
