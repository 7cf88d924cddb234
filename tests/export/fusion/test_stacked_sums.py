"""Branches that are stacked and summed, and constants that forward makes out of nothing."""

from collections.abc import Callable

import pytest
import torch
from families import relative_error
from nets import randomize_norms
from torch import Tensor, nn
from torch.nn import functional

from export import fuse


class Branches(nn.Module):
    """Three convolutions with a norm each, put together by a function."""

    def __init__(self, put_together: Callable[[list[Tensor]], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 6, k, padding=k // 2, bias=False), nn.BatchNorm2d(6))
            for k in (1, 3, 5)
        )
        self.put_together = put_together
        randomize_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.put_together([branch(x) for branch in self.branches])


class Mixed(nn.Module):
    """Channels mixed by a matrix of which forward makes a part, before a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.norm = nn.Parameter(torch.randn(4, 4)), nn.BatchNorm2d(6)
        randomize_norms(self)

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.linspace(0, 1, 24).view(6, 4) @ self.mix
        return self.norm(functional.conv2d(x, weight[:, :, None, None]))


def change_stack(y: list[Tensor]) -> Tensor:
    stack = torch.stack(y)
    stack[0].mul_(3)
    return stack.sum(0)


def change_branch(y: list[Tensor]) -> Tensor:
    stack = torch.stack(y)
    y[1].relu_()
    return stack.sum(0) + y[1].mean()


def change_before(y: list[Tensor]) -> Tensor:
    first = y[0] * 1.0
    first.mul_(2)
    return torch.stack([first, y[1], y[2]]).sum(0)


def change_constant(y: list[Tensor]) -> Tensor:
    scale = torch.ones(6, 1, 1)
    scale[2] = 4.0
    return y[0] * scale + y[1] + y[2]


MERGED: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "sum over the first axis": lambda y: torch.stack(y).sum(0),
    "sum over an axis within": lambda y: torch.stack(y, 2).sum(2),
    "mean over the last": lambda y: torch.stack(y, -1).mean(-1),
    "twice the same": lambda y: torch.stack([y[0], y[1], y[0]], 1).sum(1) - y[2],
    "stack of sums": lambda y: torch.stack([y[0] + y[1], -y[2]]).mean(0) * 2,
    "full": lambda y: y[0] * torch.full((6, 1, 1), 0.5) + y[1] + y[2],
    "ones": lambda y: y[0] * (torch.ones(6).view(1, -1, 1, 1) * 0.1) + y[1] + y[2],
    "steps": lambda y: y[0] * torch.linspace(0, 1, 6)[:, None, None] + y[1] + y[2],
    "half ones": lambda y: y[0] * torch.full((6, 1, 1), 0.1, dtype=torch.float16) + y[1] + y[2],
    "numbers": lambda y: y[0] - (torch.arange(6.0) / 6).view(-1, 1, 1) + y[1] + y[2],
}
KEPT: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "axis kept": lambda y: torch.stack(y).sum(0, keepdim=True).relu().squeeze(0),
    "sum of channels": lambda y: torch.stack(y).sum(2),
    "sum of two axes": lambda y: torch.stack(y).sum((0, 2)),
    "sum of all": lambda y: torch.stack(y).sum(),
    "constant in the stack": lambda y: torch.stack([*y, torch.ones_like(y[0])]).sum(0),
    "the stack is read elsewhere": lambda y: (lambda s: s.sum(0) + s.amax(0))(torch.stack(y)),
    "a branch is read elsewhere": lambda y: torch.stack(y).sum(0) * y[1].sigmoid(),
    "by position": lambda y: y[0] * torch.eye(7, 5) + y[1],
    "the stack is changed": change_stack,
    "a branch is changed behind": change_branch,
    "a branch is changed before": change_before,
    "a constant is changed": change_constant,
}


@pytest.mark.parametrize("name", MERGED)
def test_they_are_one_convolution(name: str) -> None:
    net, x = Branches(MERGED[name]).eval(), torch.randn(2, 4, 7, 5)
    result = fuse(net, x)
    kinds = [str(node.target) for node in result.module.graph.nodes]
    assert sum("conv2d" in kind for kind in kinds) == 1
    assert not any("stack" in kind or "mul" in kind for kind in kinds)
    _assert_same(result.module, net)


def test_a_weight_that_forward_makes_in_part_takes_in_its_norm() -> None:
    net = Mixed().eval()
    result = fuse(net, torch.randn(2, 4, 7, 5))
    assert [item.paths for item in result.fused] == [("norm",)]
    _assert_same(result.module, net)


@pytest.mark.parametrize("merge_always", [False, True])
@pytest.mark.parametrize("name", KEPT)
def test_others_answer_as_before(name: str, merge_always: bool) -> None:
    net = Branches(KEPT[name]).eval()
    result = fuse(net, torch.randn(2, 4, 7, 5), merge_always=merge_always)
    _assert_same(result.module, net)


def _assert_same(fused: nn.Module, net: nn.Module) -> None:
    for batch in (1, 3):
        x = torch.randn(batch, 4, 7, 5)
        assert relative_error(fused(x), net(x)) < 1e-5
