"""Values that share memory or lie in it otherwise, and weights that were rounded on their way."""

import copy
from collections.abc import Callable

import pytest
import torch
from families import relative_error
from torch import Tensor, nn
from torch.nn import functional as F

from export import fuse


class Net(nn.Module):
    """Calls `function(self, x)` over two layers and further members."""

    def __init__(self, function: Callable[..., Tensor], kernel: int = 1) -> None:
        super().__init__()
        self._function = function
        self.a, self.b = (nn.Conv2d(4, 4, kernel, padding=kernel // 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)


def lay_out_rows(m: Net, x: Tensor) -> Tensor:
    return (m.a(x) + m.b(x)).contiguous().view(x.shape[0], -1)


def lay_out_then_scale(m: Net, x: Tensor) -> Tensor:
    return (torch.cat([m.a(x), m.b(x)], 1).contiguous() * 2).view(x.shape[0], 2, -1)


@pytest.mark.parametrize("function", [lay_out_rows, lay_out_then_scale])
def test_a_view_behind_merged_channels_last_still_finds_rows(
    function: Callable[..., Tensor],
) -> None:
    torch.manual_seed(0)
    net = Net(function).eval()
    x = torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last)
    result = fuse(net, x)
    assert result.certificate.model.layers_after == 1
    assert result.certificate.model.reason is None
    for value in (x, x.contiguous(), torch.randn(3, 4, 5, 6)):
        assert relative_error(result.module(value), net(value)) < 1e-5


def test_nothing_is_copied_where_the_layer_lays_out_rows_itself() -> None:
    result = fuse(Net(lay_out_rows).eval(), torch.randn(2, 4, 5, 6))
    assert not [n for n in result.module.graph.nodes if "contiguous" in str(n.target)]


def add_through_einsum(m: Net, x: Tensor) -> Tensor:
    x = x * 2
    y = m.a(x)
    torch.einsum("nchw->nhwc", x).add_(1)
    return y + m.b(x)


def test_a_permutation_by_einsum_is_a_view_of_what_it_permutes() -> None:
    torch.manual_seed(0)
    net, x = Net(add_through_einsum, 3).eval(), torch.randn(2, 4, 5, 6)
    result = fuse(net, x, merge_always=True)
    assert relative_error(result.module(x), net(x)) < 1e-5
    assert "changed in place" in " ".join(skip.reason for skip in result.skipped)


def scale_by_view(m: Net, x: Tensor) -> Tensor:
    m.factor.mul_(1.5)
    return m.b(m.a(x) * m.same)


@pytest.mark.parametrize("registered", [True, False])
def test_a_stored_view_of_what_the_forward_changes_is_no_constant(registered: bool) -> None:
    torch.manual_seed(0)
    net, x = Net(scale_by_view).eval(), torch.randn(2, 4, 5, 6)
    net.register_buffer("factor", torch.ones(4, 1, 1))
    if registered:
        net.register_buffer("same", net.factor[:])
    else:
        net.same = net.factor[:]
    original = copy.deepcopy(net)
    result = fuse(net, x, merge_always=True)
    for _ in range(2):
        assert relative_error(result.module(x), original(x)) < 1e-5


def quantized(m: Net, x: Tensor) -> Tensor:
    return m.b(F.conv2d(x, m.a.weight.bfloat16().float()))


def widened(m: Net, x: Tensor) -> Tensor:
    return m.b(F.conv2d(x, m.stored.float()))


def test_a_weight_that_is_rounded_to_fewer_bits_stays_rounded() -> None:
    """In float64 the rounding would be lost, and the merged layer be another one."""
    torch.manual_seed(0)
    net, x = Net(quantized).eval(), torch.randn(2, 4, 5, 6)
    result = fuse(net, x, merge_always=True)
    assert result.fused == ()
    assert relative_error(result.module(x), net(x)) < 1e-6


def test_a_weight_that_is_stored_in_fewer_bits_merges() -> None:
    torch.manual_seed(0)
    net, x = Net(widened).eval(), torch.randn(2, 4, 5, 6)
    net.register_buffer("stored", torch.randn(4, 4, 1, 1).bfloat16())
    result = fuse(net, x)
    assert len(result.fused) == 1
    assert relative_error(result.module(x), net(x)) < 1e-6
