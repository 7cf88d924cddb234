"""A capture with dynamic axes takes all sizes of their ranges, or says which axis it cannot."""

import pytest
import torch
from torch import nn

from export.artifacts import SizeRange, TensorSpec
from export.capture import capture
from export.errors import ExportError

SIZES = SizeRange(32, 64, 96)
IMAGE = TensorSpec("x", ("batch", 3, "h", "w"), "float32", {"h": SIZES, "w": SIZES})


def run(net: nn.Module, spec: TensorSpec = IMAGE) -> "torch.export.ExportedProgram":
    feeds = {"x": torch.randn(spec.with_batch(2))}
    return capture(net.eval(), feeds, keyword=False, dynamic_batch=True, inputs=[spec])


class Halver(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x[:, :, ::4, :], scale_factor=(4.0, 1.0)) + x


class Product(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x


class Counted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 3 * int(x.shape[2]), -1)


class Branched(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[2] > 40 else x


def test_a_capture_runs_at_every_size_of_its_ranges() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    module = run(net).module()
    for sizes in ((1, 3, 32, 96), (3, 3, 64, 64), (2, 3, 95, 33)):
        x = torch.randn(sizes)
        torch.testing.assert_close(module(x), net(x))
    with pytest.raises(Exception, match="96"):
        module(torch.randn(2, 3, 97, 64))


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Halver(), "axis 2 of input 'x' (32:64:96) must be a multiple of 4 (LEAST:BEST:MOST/4)"),
        (Product(), "must be of the same size as"),
        (Counted(), "axis 2 of input 'x' (32:64:96) is made a constant, 64, by the model's code"),
        (Branched(), "takes one way through the model's code only from 41 to 96"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_an_axis_that_cannot_be_dynamic_is_named_with_the_reason(
    net: nn.Module, words: str
) -> None:
    with pytest.raises(ExportError) as caught:
        run(net)
    assert words in str(caught.value)
    assert "Give such an axis one size in --input" in str(caught.value)


def test_axes_of_one_name_are_one_dimension() -> None:
    square = TensorSpec("x", ("batch", 3, "side", "side"), "float32", {"side": SIZES})
    module = run(Product(), square).module()
    x = torch.randn(2, 3, 33, 33)
    torch.testing.assert_close(module(x), x @ x)


def test_with_a_step_the_multiples_go_through() -> None:
    steps = {"h": SizeRange(32, 64, 96, 8), "w": SIZES}
    module = run(Halver(), TensorSpec("x", ("batch", 3, "h", "w"), "float32", steps)).module()
    for height in (32, 40, 96):
        x = torch.randn(1, 3, height, 33)
        torch.testing.assert_close(module(x), Halver()(x))
