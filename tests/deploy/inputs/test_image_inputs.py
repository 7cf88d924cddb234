"""What --image-input says, and every way in which it does not fit the model or the data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Cli
from torch import Tensor, nn

from deploy.config import BuildConfig, ImageConfig
from deploy.config_reading import make_config
from deploy.inputs.data import open_data
from deploy.inputs.declared import InputSpec, parse_input
from deploy.inputs.image_inputs import parse_image_input, settle_images, take_images
from deploy.inputs.signatures import settle_call
from deploy.source import open_problem
from export.errors import ConfigError
from export.images import ImageInput
from tests.samples import refuse, save_image

IMAGENET = "mean=0.485,0.456,0.406:std=0.229,0.224,0.225"


class Two(nn.Module):
    """Images and a vector."""

    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return image.mean((2, 3)) * scale


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()


@pytest.mark.parametrize(
    ("text", "name", "image"),
    [
        (IMAGENET, None, ImageInput("", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ("x:mean=0.5:std=0.5", "x", ImageInput("", (0.5,), (0.5,))),
        ("scale=255", None, ImageInput("")),
        (
            "pixel_values : mean=123.68,116.78,103.94 : scale=1",
            "pixel_values",
            ImageInput("", (123.68, 116.78, 103.94), scale=1.0),
        ),
        ("std=2", None, ImageInput("", std=(2.0,))),
        ("mean=-1e-3:scale=127.5", None, ImageInput("", (-0.001,), scale=127.5)),
    ],
)
def test_a_preparation_is_read(text: str, name: str | None, image: ImageInput) -> None:
    read = parse_image_input(text)
    assert (read.name, read.image) == (name, image)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is none of mean"),
        ("x", "says neither"),
        ("x:0.5", "'0.5' is none of mean"),
        ("avg=0.5", "'avg=0.5' is none of mean"),
        ("mean=0.5:mean=0.5", "mean is there twice"),
        ("mean=a,b", "mean=a,b is no list of numbers"),
        ("mean=", "mean= is no list of numbers"),
        ("mean=nan", "mean=nan is not finite"),
        ("std=inf", "std=inf is not finite"),
        ("std=0.2,0,0.2", "std must be more than 0"),
        ("std=-1", "std must be more than 0"),
        ("scale=0", "scale must be more than 0"),
        ("scale=1,2,3", "scale is one number"),
        ("std=1e-40", "beyond what float32 holds"),
        ("mean=1e36", "beyond what float32 holds"),
        ("x:y:mean=1", "'y' is none of mean"),
    ],
)
def test_what_is_no_preparation_is_told_with_an_example(text: str, said: str) -> None:
    refuse(
        lambda: parse_image_input(text),
        f"--image-input {text!r}",
        said,
        "mean=0.485,0.456,0.406:std=0.229,0.224,0.225",
        kind=ConfigError,
    )


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("y:mean=0.5",), "'y' is no input of the model; it takes x"),
        (("mean=0.5", "x:mean=0.5"), "input 'x' has images already"),
        (("mean=0.5,0.5",), "mean has 2 values, and input 'x' has 3 channels"),
        (("std=1,1,1,1",), "std has 4 values, and input 'x' has 3 channels"),
    ],
)
def test_a_preparation_must_fit_the_model(texts: tuple[str, ...], said: str) -> None:
    config = BuildConfig(inputs=("x:1x3x6x6",), image_input=texts)
    refuse(lambda: settle_images(config, [parse_input("x:1x3x6x6")]), said, kind=ConfigError)


@pytest.mark.parametrize(
    "shape",
    ["x:1x3", "x:1x3x6", "x:1x3x6x6:int64", "x:1x6x6x3:uint8", "x:1x3x6x6:bfloat16"],
)
def test_images_go_to_floats_of_four_axes(shape: str) -> None:
    config = BuildConfig(image_input=("mean=0.5",))
    refuse(
        lambda: settle_images(config, [parse_input(shape)]),
        f"is {shape.removeprefix('x:')}",
        "images go to inputs of float16, float32, float64 [N, C, H, W]",
        "--input says what the model's own forward takes",
        kind=ConfigError,
    )


def test_channels_last_in_input_is_seen_by_the_number_of_values() -> None:
    config = BuildConfig(image_input=(IMAGENET,))
    refuse(
        lambda: settle_images(config, [parse_input("x:1x6x6x3")]),
        "mean has 3 values, and input 'x' has 6 channels, [N, C, H, W] = 1x6x6x3",
        kind=ConfigError,
    )


def test_one_of_several_inputs_is_named() -> None:
    config = BuildConfig(inputs=("1x3x6x6", "1x3"), image_input=("mean=0.5",))
    refuse(
        lambda: settle_call(Two(), config, None),
        "the model has 2 inputs; name one: image, scale",
        kind=ConfigError,
    )
    named = BuildConfig(inputs=("1x3x6x6", "1x3"), image_input=("image:mean=0.5",))
    call = settle_call(Two(), named, None)
    assert [(spec.name, spec.shape, spec.dtype) for spec in call.signature.inputs] == [
        ("image", ("batch", 6, 6, 3), "uint8"),
        ("scale", ("batch", 3), "float32"),
    ]
    assert call.high == {"image": 256}


def test_ranges_of_height_and_width_move_with_their_axes() -> None:
    spec = parse_input("x:1x3xside=8:16:32x8:16:64/8")
    taken = take_images(spec, [ImageInput("x")])
    assert (taken.shape, taken.dtype) == ((1, 16, 16, 3), "uint8")
    assert taken.axes == {1: spec.axes[2], 2: spec.axes[3]}
    assert take_images(InputSpec("y", (1, 2)), [ImageInput("x")]) == InputSpec("y", (1, 2))


def test_the_option_is_read_from_toml_as_from_python() -> None:
    config = make_config({"image-input": [IMAGENET], "input": "1x3x6x6"}, where="toml")
    assert config.image_input == (IMAGENET,)
    assert make_config({"image_input": IMAGENET}, where="toml").image_input == (IMAGENET,)


class TestData:
    def test_the_shape_of_the_model_comes_from_images(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
        np.savez(tmp_path / "data.npz", x=images)
        config = BuildConfig(data=str(tmp_path / "data.npz"), image_input=(IMAGENET,))
        problem = open_problem(net(), config, tmp_path)
        (spec,) = problem.signature.inputs
        assert (spec.name, spec.shape, spec.dtype) == ("input", ("batch", 6, 6, 3), "uint8")
        (batch,) = problem.evaluation.batch([0]).values()
        assert batch.dtype == np.uint8
        assert any((batch[0] == image).all() for image in images)
        synthetic = problem.synthetic(4, seed=0)["input"]
        assert synthetic.min() < 8 < 247 < synthetic.max()

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
    def test_the_weights_say_what_images_become(self, tmp_path: Path, dtype: str) -> None:
        images = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
        np.savez(tmp_path / "data.npz", x=images)
        config = BuildConfig(data=str(tmp_path / "data.npz"), image_input=(IMAGENET,))
        module = net().to(getattr(torch, dtype))
        if dtype == "bfloat16":
            refuse(lambda: open_problem(module, config, tmp_path), "weights are bfloat16")
            return
        images_of = open_problem(module, config, tmp_path).images
        assert images_of is not None
        assert [image.dtype for image in images_of.inputs] == [dtype]

    @pytest.mark.parametrize("given", [(), ("1x3x6x6",)], ids=["from the data", "--input"])
    @pytest.mark.parametrize(
        ("x", "said"),
        [
            (np.zeros((8, 3, 6, 6), np.float32), "before they are scaled and normalized"),
            (np.zeros((8, 6, 6, 3), np.float32), "before they are scaled and normalized"),
            (np.zeros((8, 36), np.uint8), ""),
        ],
        ids=["prepared", "float", "flat"],
    )
    def test_data_that_holds_no_images_is_refused(
        self, x: np.ndarray, said: str, given: tuple[str, ...], tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "data.npz", x=x)
        config = BuildConfig(inputs=given, data=str(tmp_path / "data.npz"), image_input=(IMAGENET,))
        said = "6x6x3" if given and x.shape[1:] != (6, 6, 3) else said
        refuse(lambda: open_problem(net(), config, tmp_path), "data.npz", said)

    def test_bytes_with_channels_first_are_told_to_be_transposed(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "data.npz", x=np.zeros((8, 3, 6, 6), np.uint8))
        data = str(tmp_path / "data.npz")
        config = BuildConfig(inputs=("1x3x6x6",), data=data, image_input=(IMAGENET,))
        refuse(
            lambda: open_problem(net(), config, tmp_path),
            "The channels are first: transpose to [N, H, W, C]",
        )

    def test_a_folder_is_read_as_it_was_decoded(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(1).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
        for number, image in enumerate(pixels):
            save_image(tmp_path / "images" / f"{number}.png", image)
        rows = open_data(str(tmp_path / "images"), images=ImageConfig(uint8=True), input_names=None)
        np.testing.assert_array_equal(rows.batch([0, 1])["x"], pixels)
        cropped = ImageConfig(crop=4, uint8=True)
        rows = open_data(str(tmp_path / "images"), images=cropped, input_names=None)
        np.testing.assert_array_equal(rows.batch([1])["x"][0], pixels[1, 1:5, 2:6])
        gray = ImageConfig(mode="gray", uint8=True)
        rows = open_data(str(tmp_path / "images"), images=gray, input_names=None)
        assert rows.batch([0])["x"].shape == (1, 6, 8, 1)

    def test_images_of_two_sizes_are_told_by_width_and_height(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a.png", np.zeros((6, 8, 3), np.uint8))
        save_image(tmp_path / "b.png", np.zeros((4, 5, 3), np.uint8))
        rows = open_data(str(tmp_path), images=ImageConfig(uint8=True), input_names=None)
        refuse(lambda: rows.batch([0, 1]), "b.png is 5x4 pixels and", "is 8x6 pixels")

    def test_a_second_normalization_of_the_folder_is_refused(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a.png", np.zeros((6, 6, 3), np.uint8))
        config = BuildConfig(data=str(tmp_path), image_input=(IMAGENET,), image_mean=(0.5,))
        refuse(
            lambda: open_problem(net(), config, tmp_path),
            "--image-mean",
            "engines normalize uint8 images by themselves",
            kind=ConfigError,
        )


def test_a_static_batch_is_kept(tmp_path: Path) -> None:
    config = BuildConfig(inputs=("4x3x6x6",), image_input=(IMAGENET,), static_batch=True)
    problem = open_problem(net(), config, tmp_path)
    assert problem.signature.inputs[0].shape == (4, 6, 6, 3)
    assert problem.trace_feeds()["input"].shape == (4, 6, 6, 3)


def test_folders_are_gray_where_the_model_takes_one_channel(tmp_path: Path) -> None:
    for number in range(4):
        save_image(tmp_path / "images" / f"{number}.png", np.full((6, 6), number, np.uint8))
    gray = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 2)).eval()
    config = BuildConfig(
        inputs=("1x1x6x6",), data=str(tmp_path / "images"), image_input=("mean=0.5:std=0.5",)
    )
    problem = open_problem(gray, config, tmp_path)
    assert problem.evaluation.batch([0])["input"].shape == (1, 6, 6, 1)


class TestCommandLine:
    @pytest.fixture
    def model(self, cli: Cli) -> str:
        torch.save(net(), "net.pt")
        return "net.pt"

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("mean=0.5:std=0", "std must be more than 0"),
            ("pixels:mean=0.5", "'pixels' is no input of the model; it takes input"),
            ("mean=0.5,0.5", "mean has 2 values, and input 'input' has 3 channels"),
        ],
    )
    def test_wrong_use_exits_with_2(self, text: str, said: str, model: str, cli: Cli) -> None:
        code, _, error = cli("build", model, "--input", "1x3x6x6", "--image-input", text)
        assert code == 2
        assert said in " ".join(error.split())
        assert not Path("net.deploy").exists()

    def test_inspect_shows_the_users_own_names(self, model: str, cli: Cli) -> None:
        code, out, error = cli("inspect", model, "--input", "1x3x6x6", "--image-input", "scale=255")
        assert code == 0, error
        assert "model.0" not in out
        assert "scale(x)" in "".join(out.split())
