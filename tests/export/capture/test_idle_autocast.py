import contextlib

import pytest
import torch
from families import relative_error
from nets import randomize_norms
from torch import Tensor, nn

from export import fuse
from export.capture.idle_autocast import skip_idle_autocast
from export.capture.program import capture


class Net(nn.Module):
    def __init__(self, *blocks) -> None:
        super().__init__()
        self.blocks = blocks
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        with contexts(self.blocks):
            return self.bn(self.conv(x)).relu()


def contexts(blocks):
    stack = contextlib.ExitStack()
    for enabled in blocks:
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled))
    return stack


def make_net(*blocks):
    torch.manual_seed(0)
    return randomize_norms(Net(*blocks)).eval()


def test_block_that_switches_off_what_is_not_on_is_merged_like_any_other() -> None:
    net, x = make_net(False), torch.randn(2, 3, 8, 8)
    result = fuse(net, x)
    assert [item.kind for item in result.fused] == ["conv-bn"]
    assert result.certificate.model.reason is None
    assert relative_error(result.module(x), make_net().double()(x.double())) < 1e-6


@pytest.mark.parametrize("blocks", [(True,), (True, False), (False, True)])
def test_blocks_that_cast_or_stop_casting_are_kept(blocks) -> None:
    net, x = make_net(*blocks), torch.randn(2, 3, 8, 8)
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    with torch.no_grad():
        assert torch.equal(program.module()(x), net(x))
    assert any("autocast" in str(node.target) for node in program.graph.nodes)


def test_autocast_around_it_all_is_switched_off_as_ever() -> None:
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), skip_idle_autocast():
        assert layer(x).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert layer(x).dtype == torch.float32
    assert torch.autocast.__enter__.__module__.startswith("torch")
