"""A capture with dynamic axes takes all sizes of their ranges, or says which axis it cannot."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from export.artifacts import SizeRange, TensorSpec
from export.capture.dynamic_axes import RefusedAxesError
from export.capture.program import capture
from export.errors import ExportError

SIZES = SizeRange(32, 64, 96)
IMAGE = TensorSpec("x", ("batch", 3, "h", "w"), "float32", {"h": SIZES, "w": SIZES})


class Fixed(nn.Module):
    """Of steps of 32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], 3, 64, -1)


def run(net: nn.Module, spec: TensorSpec = IMAGE) -> "torch.export.ExportedProgram":
    feeds = {"x": torch.randn(spec.with_batch(2))}
    return capture(net.eval(), feeds, keyword=False, dynamic_batch=True, inputs=[spec])


def last_line(net: nn.Module) -> str:
    """The number and the text of the last line of `forward`."""
    lines, first = inspect.getsourcelines(type(net).forward)
    return f"line {first + len(lines) - 1}: {lines[-1].strip()}"


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
        (
            Halver(),
            r"axis 2 of input 'x' \(32:64:96\) must be a multiple of 4 \(LEAST:BEST:MOST/4\)",
        ),
        (Product(), r"must be of the same size as [hw], because of the model's code{}"),
        (
            Counted(),
            r"axis 2 of input 'x' \(32:64:96\) is made a constant, 64, by the model's code{}",
        ),
        (Branched(), "takes one way through the model's code{} only from 41 to 96"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_an_axis_that_cannot_be_dynamic_is_named_with_the_reason(
    net: nn.Module, words: str
) -> None:
    with pytest.raises(ExportError) as caught:
        run(net)
    place = re.escape(f" ({Path(__file__).name}, {last_line(net)})")
    assert re.search(words.replace("{}", place), str(caught.value))
    assert "Give such an axis one size in --input" in str(caught.value)


def test_an_axis_in_steps_that_is_made_a_constant_is_named() -> None:
    steps = SizeRange(32, 64, 96, 32)
    spec = TensorSpec("x", ("batch", 3, "h", 32), "float32", {"h": steps})
    with pytest.raises(RefusedAxesError) as caught:
        run(Fixed(), spec)
    said = "axis 2 of input 'x' (32:64:96/32) is made a constant, 64, by the model's code "
    assert f"{said}({Path(__file__).name}, {last_line(Fixed())})" in str(caught.value)


@pytest.mark.parametrize("names", [("S", "N"), ("E", "beta"), ("Q", "lambda")])
@pytest.mark.parametrize(
    ("net", "words"), [(Product(), "same size as"), (Halver(), "multiple of 4")]
)
def test_names_that_mean_something_to_torch_are_names_here(
    names: tuple[str, str], net: nn.Module, words: str
) -> None:
    height, width = names
    spec = TensorSpec("x", ("batch", 3, height, width), "float32", dict.fromkeys(names, SIZES))
    with pytest.raises(ExportError, match=words) as caught:
        run(net, spec)
    assert "axis_" not in str(caught.value)
    run(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), spec)


class Heard(nn.Module):
    """A recurrent network over what a convolution with a stride leaves of the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.memory = nn.Conv1d(4, 6, 3, stride=2), nn.GRU(6, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps: torch.Tensor = self.memory(self.conv(x).transpose(1, 2))[0]
        return steps


@pytest.mark.thorough
def test_a_recurrent_network_that_fixes_its_steps_is_named() -> None:
    few = SizeRange(8, 12, 24)  # torch writes every step into the graph before it says so
    spec = TensorSpec("x", ("batch", 4, "steps"), "float32", {"steps": few})
    with pytest.raises(ExportError, match=r"runs recurrent networks \(memory\) for one number"):
        run(Heard(), spec)


def test_an_axis_that_no_recurrent_network_fixes_blames_none() -> None:
    class Bystander(Halver):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.GRU(3, 3)

    with pytest.raises(ExportError) as caught:
        run(Bystander())
    assert "recurrent" not in str(caught.value)


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


class Upsampled(nn.Module):
    """Upsampled by a whole factor, beside what was shuffled to the same size: super-resolution."""

    def __init__(self, **how: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.up = nn.Upsample(**how)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x) + nn.functional.pixel_shuffle(self.conv(x), 2)


@pytest.mark.parametrize(
    "how",
    [
        {"scale_factor": 2, "mode": "bilinear"},
        {"scale_factor": 2.0, "mode": "bilinear", "align_corners": True},
        {"scale_factor": (2, 2), "mode": "bicubic"},
        {"scale_factor": (2.0, 2.0), "mode": "nearest"},
        {"scale_factor": 2, "mode": "nearest-exact", "recompute_scale_factor": True},
    ],
    ids=lambda how: how["mode"] + "-".join(list(how)[2:]),
)
def test_upsampling_by_whole_factors_takes_any_size(how: dict[str, object]) -> None:
    torch.manual_seed(0)
    net = Upsampled(**how).eval()
    module = run(net).module()
    for height, width in ((32, 95), (64, 64), (93, 32)):
        x = torch.randn(3, 3, height, width)
        torch.testing.assert_close(module(x), net(x), rtol=0, atol=1e-6)


def test_upsampling_by_other_factors_is_left_as_it_is() -> None:
    net = nn.Upsample(scale_factor=1.3, mode="bilinear")
    module = run(net).module()
    x = torch.randn(2, 3, 47, 90)
    torch.testing.assert_close(module(x), net(x), rtol=0, atol=1e-6)
