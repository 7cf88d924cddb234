"""uint8 images in, the user's model behind: against the declared preparation done by hand."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from export.artifacts import SizeRange
from export.capture.image_model import ImageModel
from export.capture.ladder import Exported, export_model
from export.capture.program import capture
from export.capture.signature import describe_call
from export.errors import ExportError
from export.images import ImageCall, ImageInput, channels_first, channels_last

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = ImageInput("x", MEAN, STD)


class Stem(nn.Module):
    """A convolution whose padding is to be seen, and a head that keeps every place."""

    def __init__(self, padding: int = 1, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(channels, 6, 3, padding=padding)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x)))


class Branches(nn.Module):
    """Two layers that read the images, as a block of RepVGG does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.wide(x) + self.narrow(x))


class Masked(nn.Module):
    """Images and floats, by name alone; it holds a child that is called as the wrapper's is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Stem()

    def forward(self, *, image: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return {"map": self.model(image) * weight}


class Strided(nn.Module):
    """Works on contiguous [N, C, H, W] alone, and changes it in place."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.is_contiguous()
        return x.relu_().view(len(x), -1)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def prepare(images: np.ndarray, image: ImageInput) -> np.ndarray:
    """As the user's own code had it, in float64."""
    scaled = images.astype(np.float64) / image.scale
    return ((scaled - np.array(image.mean)) / np.array(image.std)).transpose(0, 3, 1, 2)


def answer(model: nn.Module, images: np.ndarray, image: ImageInput) -> np.ndarray:
    """The user's module in float64 on images that were prepared by hand."""
    with torch.no_grad():
        outputs: Tensor = model.double()(torch.from_numpy(prepare(images, image)))
    return outputs.numpy()


def export_images(
    model: nn.Module, folder: Path, image: ImageInput = IMAGENET, *, side: int = 12
) -> Exported:
    wrapped = ImageModel(model.eval(), ImageCall((image,)), ("x",))
    channels = next((p.shape[1] for p in model.parameters() if p.ndim == 4), 3)
    feeds = {"x": torch.from_numpy(draw(2, side, side, channels, seed=1))}
    signature = describe_call(wrapped, feeds, keyword=False, dynamic_batch=True)
    return export_model(wrapped, feeds, folder, signature=signature, static_batch=False, opset=20)


def run_file(exported: Exported, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        str(exported.onnx.path), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": images})
    return np.asarray(found)


def operators(exported: Exported) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(exported.onnx.path).graph.node)


@pytest.mark.parametrize(
    "image",
    [
        IMAGENET,
        ImageInput("x"),
        ImageInput("x", (0.5,), (0.5,)),
        ImageInput("x", (123.68, 116.78, 103.94), (1.0,), scale=1.0),
        ImageInput("x", scale=1.0),
    ],
)
def test_the_model_is_given_what_was_declared(image: ImageInput) -> None:
    model, images = Stem().eval(), draw(3, 9, 7, 3)
    wrapped = ImageModel(model, ImageCall((image,)), ("x",))
    with torch.no_grad():
        found = wrapped(torch.from_numpy(images)).double().numpy()
        exact = ImageModel(Stem().eval(), ImageCall((image,)), ("x",)).double()
        double = exact(torch.from_numpy(images)).numpy()
    expected = answer(Stem().eval(), images, image)
    np.testing.assert_allclose(double, expected, rtol=0, atol=1e-12 * abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * abs(expected).max())


def test_the_users_module_stays_as_it_is_and_sees_a_contiguous_tensor_of_its_own() -> None:
    model = Stem().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.from_numpy(draw(2, 5, 5, 3))
    ImageModel(model, ImageCall((IMAGENET,)), ("x",))(images)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    kept = images.clone()
    ImageModel(Strided(), ImageCall((ImageInput("x", scale=1.0),)), ("x",))(images)
    assert torch.equal(images, kept)


class Seen(nn.Module):
    """Gives back what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_float16_model_is_given_what_was_prepared_in_more_and_rounded_once() -> None:
    """In float16 itself two thirds of the pixels would come out otherwise."""
    image, images = replace(IMAGENET, dtype="float16"), np.arange(768, dtype=np.uint8)
    images = images.reshape(1, 16, 16, 3)
    wrapped = ImageModel(Seen(), ImageCall((image,)), ("x",))
    found = wrapped(torch.from_numpy(images))
    assert found.dtype == torch.float16
    expected = prepare(images, image).astype(np.float16)
    assert (found.numpy() == expected).mean() > 0.999
    narrow = images.transpose(0, 3, 1, 2).astype(np.float16)
    factor, shift = (
        np.array(each, np.float16)[:, None, None] for each in (image.factor, image.shift)
    )
    assert (((narrow - shift) / factor) == expected).mean() < 0.9
    assert wrapped.double()(torch.from_numpy(images)).dtype == torch.float64


def test_a_float16_model_is_exported_with_its_images(tmp_path: Path) -> None:
    image = replace(IMAGENET, dtype="float16")
    exported = export_images(Stem().half(), tmp_path, image)
    (spec,), (output,) = exported.onnx.inputs, exported.onnx.outputs
    assert (spec.dtype, output.dtype) == ("uint8", "float16")
    images = draw(3, 12, 12, 3, seed=2)
    expected = answer(Stem().half().eval(), images, image)
    found = run_file(exported, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-3 * abs(expected).max())


class Undecided(nn.Module):
    """A branch on values, which cannot be captured."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_captured_goes_by_the_users_own_path() -> None:
    feeds = {"x": torch.from_numpy(draw(2, 6, 6, 3))}
    for net, place in (
        (nn.Sequential(Stem(), nn.Sequential(Undecided())), "at '1.0' (test_image_model.py, line "),
        (
            Undecided(),
            "capture the model (test_image_model.py, line ",
        ),
    ):
        wrapped = ImageModel(net, ImageCall((IMAGENET,)), ("x",))
        with pytest.raises(ExportError) as refused:
            capture(wrapped, feeds, keyword=False, dynamic_batch=True)
        assert place in str(refused.value)


def test_other_inputs_are_passed_on_and_names_are_the_users(tmp_path: Path) -> None:
    model = Masked().eval()
    call = ImageCall((replace(IMAGENET, name="image"),), keyword=True)
    wrapped = ImageModel(model, call, ("image", "weight"))
    images, weight = draw(2, 8, 8, 3), np.full((2, 1, 1, 1), 0.5, np.float32)
    feeds = {"image": torch.from_numpy(images), "weight": torch.from_numpy(weight)}
    signature = describe_call(wrapped, feeds, keyword=False, dynamic_batch=True)
    exported = export_model(
        wrapped, feeds, tmp_path, signature=signature, static_batch=False, opset=20
    )
    assert exported.rung == "dynamo"
    assert [(spec.name, spec.dtype) for spec in exported.onnx.inputs] == [
        ("image", "uint8"),
        ("weight", "float32"),
    ]
    assert {path for fused in exported.fused for path in fused.paths} == {"model.stem"}
    stored = {item.name for item in onnx.load(exported.onnx.path).graph.initializer}
    assert {"model.head.weight", "model.head.bias"} <= stored
    session = onnxruntime.InferenceSession(
        str(exported.onnx.path), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"image": images, "weight": weight})
    expected = answer(Stem().eval(), images, IMAGENET) * 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * abs(expected).max())


ONE_LAYER = {"Cast": 1, "Transpose": 1, "Conv": 2, "Relu": 1}


@pytest.mark.parametrize(
    ("model", "image", "left"),
    [
        (Stem(padding=0), IMAGENET, ONE_LAYER),
        (Stem(padding=1), ImageInput("x"), ONE_LAYER),
        (Stem(padding=1), ImageInput("x", std=STD), ONE_LAYER),
        (Stem(padding=1), IMAGENET, {**ONE_LAYER, "Sub": 1}),
        (Stem(channels=1), ImageInput("x", (0.5,), (0.5,)), {**ONE_LAYER, "Sub": 1}),
        (Branches(), ImageInput("x"), {"Cast": 1, "Transpose": 1, "Conv": 1, "Relu": 1}),
        (Branches(), IMAGENET, {"Cast": 1, "Transpose": 1, "Conv": 1, "Relu": 1, "Sub": 1}),
    ],
    ids=["no padding", "scale", "scales", "shift before padding", "gray", "branches", "shifted"],
)
def test_what_is_exact_goes_into_the_first_layer_and_the_border_stays_right(
    model: nn.Module, image: ImageInput, left: dict[str, int], tmp_path: Path
) -> None:
    exported = export_images(model, tmp_path, image)
    assert operators(exported) == left
    channels = 1 if isinstance(model, Stem) and model.stem.in_channels == 1 else 3
    images = draw(3, 12, 12, channels, seed=2)
    expected = answer(model, images, image)
    found = run_file(exported, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 * abs(expected).max())
    model.float()


def test_why_a_shift_stays_is_told(tmp_path: Path) -> None:
    exported = export_images(Stem(), tmp_path)
    (skip,) = [skip for skip in exported.skipped if skip.where == "stem"]
    assert "a bias stands before the padding" in skip.reason
    assert ("stem",) in [fused.paths for fused in exported.fused]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_script_goes_through_its_own_exporter(tmp_path: Path) -> None:
    script = torch.jit.script(Stem().eval())
    exported = export_images(script, tmp_path)
    assert exported.rung == "torchscript"
    assert exported.attempts == ()
    names = {node.name for node in onnx.load(exported.onnx.path).graph.node}
    assert "/stem/Conv" in names
    images = draw(3, 12, 12, 3, seed=2)
    expected = answer(Stem().eval(), images, IMAGENET)
    found = run_file(exported, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 * abs(expected).max())


def test_a_captured_program_of_the_user_takes_images_too(tmp_path: Path) -> None:
    dims = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Stem().eval(), (torch.zeros(2, 3, 12, 12),), dynamic_shapes=dims)
    module = program.module()
    for part in module.modules():
        part.training = False
    wrapped = ImageModel(module, ImageCall((IMAGENET,)), ("x",))
    feeds = {"x": torch.from_numpy(draw(2, 12, 12, 3))}
    signature = describe_call(wrapped, feeds, keyword=False, dynamic_batch=True)
    exported = export_model(
        wrapped, feeds, tmp_path, signature=signature, static_batch=False, opset=20
    )
    images = draw(3, 12, 12, 3, seed=2)
    expected = answer(Stem().eval(), images, IMAGENET)
    found = run_file(exported, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 * abs(expected).max())


@pytest.mark.thorough
def test_height_and_width_may_have_ranges(tmp_path: Path) -> None:
    wrapped = ImageModel(Stem().eval(), ImageCall((IMAGENET,)), ("x",))
    feeds = {"x": torch.from_numpy(draw(2, 12, 16, 3))}
    signature = describe_call(wrapped, feeds, keyword=False, dynamic_batch=True)
    ranges = {"h": SizeRange(8, 12, 20), "w": SizeRange(8, 16, 24)}
    (given,) = signature.inputs
    (output,) = signature.outputs
    signature = replace(
        signature,
        inputs=(replace(given, shape=("batch", "h", "w", 3), ranges=ranges),),
        outputs=(replace(output, shape=("batch", 2, "h", "w")),),
    )
    exported = export_model(
        wrapped, feeds, tmp_path, signature=signature, static_batch=False, opset=20
    )
    assert exported.onnx.inputs[0].shape == ("batch", "h", "w", 3)
    images = draw(1, 9, 21, 3, seed=3)
    expected = answer(Stem().eval(), images, IMAGENET)
    found = run_file(exported, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-6 * abs(expected).max())


def test_a_call_is_the_same_after_a_way_through_plain_values() -> None:
    call = ImageCall((IMAGENET, ImageInput("y", scale=1.0, dtype="float64")), keyword=True)
    assert ImageCall.from_dict(json.loads(json.dumps(asdict(call)))) == call


def test_the_axes_of_images_are_moved_back_and_forth() -> None:
    assert channels_last(("batch", 3, 4, 5)) == ("batch", 4, 5, 3)
    assert channels_first(channels_last((1, 3, 4, 5))) == (1, 3, 4, 5)
