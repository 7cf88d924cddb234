"""Borders that a Diverse Branch Block writes itself, where sizes are known only at run time."""

import pytest
import torch
from families import relative_error
from nets import randomize_norms
from torch import Tensor, nn
from torch.nn import functional as F

from export.fusion import FusionOptions, fuse_program

SIDES = (1, 1, 1, 2)


class Bordered(nn.Module):
    """A 1x1 layer and its norm, padded with what the norm makes of zero, before a 3x3 layer."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.point, self.layer = nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        zero = -norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt() + norm.bias
        y = F.pad(norm(self.point(x)), SIDES)
        y[:, :, :1] = zero.view(1, -1, 1, 1)
        y[:, :, self.last :] = zero.view(1, -1, 1, 1)
        y[:, :, :, :1] = zero.view(1, -1, 1, 1)
        y[:, :, :, -1:] = zero.view(1, -1, 1, 1)
        return self.layer(y)


@pytest.mark.parametrize("merge_always", [False, True])
@pytest.mark.parametrize(("last", "layers"), [(-2, 1), (8, 2)])
def test_a_border_is_one_only_if_it_is_at_every_size(
    last: int, layers: int, merge_always: bool
) -> None:
    """Rows from 8 on are the border of a map of 7 rows, and of no other."""
    torch.manual_seed(0)
    net = randomize_norms(Bordered(last).eval()).requires_grad_(False)
    height = torch.export.Dim("height", min=7, max=32)
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: height, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(net, (torch.randn(2, 4, 7, 9),), dynamic_shapes=(dynamic,))
    fused = fuse_program(program, FusionOptions(merge_always=merge_always))
    assert fused.certificate.model.layers_after == layers
    module = fused.program.module(check_guards=False)
    for shape in ((1, 4, 7, 9), (3, 4, 12, 5), (2, 4, 8, 20)):
        x = torch.randn(shape)
        assert relative_error(module(x), net(x)) < 1e-5
