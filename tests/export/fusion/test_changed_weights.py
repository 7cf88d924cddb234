"""Stored tensors that a forward changes in place, through views as well, are no constants."""

import copy
from collections.abc import Callable

import pytest
import torch
from families import relative_error
from nets import randomize_norms
from torch import Tensor, nn
from torch.nn import functional as F

from export import fuse


class Pruned(nn.Module):
    """One output channel is zeroed where the weight lies, at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.conv.weight.detach()[0].zero_()
        return self.norm(self.conv(x))


class Counted(nn.Module):
    """Scales by a buffer that grows through a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.scale.view(1, 4, 1, 1).mul_(1.5)
        return self.second(self.first(x) * self.scale.view(1, 4, 1, 1))


class Learning(nn.Module):
    """A norm that takes the statistics of the batch and remembers them, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("variance", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.first(x), self.mean, self.variance, training=True)
        return self.second(x)


class Shared(Learning):
    """The same by the operator itself, and a norm in inference with what it remembers."""

    def forward(self, x: Tensor) -> Tensor:
        state = None, None, self.mean, self.variance
        x = torch.native_batch_norm(x, *state, True, 0.1, 1e-5)[0]
        return F.batch_norm(self.first(x), *state[2:], training=False)


@pytest.mark.parametrize("make", [Pruned, Counted, Learning, Shared])
def test_what_a_forward_changes_is_no_constant(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = randomize_norms(make()).eval()
    original, state = copy.deepcopy(net), copy.deepcopy(net.state_dict())
    result = fuse(net, torch.randn(2, 4, 6, 5), merge_always=True)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    for _ in range(2):
        x = torch.randn(3, 4, 6, 5)
        with torch.no_grad():
            assert relative_error(result.module(x), original(x)) < 1e-5
