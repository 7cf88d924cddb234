"""Whole builds whose engines take uint8 images, held against the preparation done by hand."""

from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from built_nets import QUICK, Net
from PIL import Image
from tiny import Cli
from torch import nn

import deploy
from deploy.bundle.folder import Bundle, read_bundle
from deploy.bundle.golden import read_golden
from deploy.commands.verification import verify
from deploy.config import BuildConfig
from deploy.engines import EngineSpec, open_engine
from deploy.exports.triton_config import Batching, TritonModel, render_signature
from deploy.report import load_schema
from deploy.reuse import data_key
from export.images import ImageCall, ImageInput

pytestmark = [pytest.mark.long, pytest.mark.thorough]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPARATION = "mean=0.485,0.456,0.406:std=0.229,0.224,0.225"


def draw_images(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images of four classes, told apart by their colour."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, samples)
    colours = np.array([[200, 90, 90], [90, 200, 90], [90, 90, 200], [170, 170, 60]])
    pixels = rng.normal(colours[labels][:, None, None, :], 60, (samples, 16, 16, 3))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), labels


def prepare(images: np.ndarray) -> np.ndarray:
    """As the caller would have it, in float64: [N, C, H, W]."""
    scaled = (images.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    return scaled.transpose(0, 3, 1, 2)


def exact(net: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        outputs: torch.Tensor = net.double()(torch.from_numpy(prepare(images)))
    net.float()
    return outputs.numpy()


@pytest.fixture(scope="module")
def net() -> Net:
    """Trained on floats that were prepared by hand."""
    images, labels = draw_images(200, 0)
    torch.manual_seed(0)
    net, x = Net(), torch.from_numpy(prepare(images)).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), torch.from_numpy(labels)).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def built(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("images")
    images, labels = draw_images(420, 1)
    calibration, _ = draw_images(64, 2)
    np.savez(folder / "data.npz", x=images, y=labels, calibration_x=calibration)
    config = BuildConfig(
        data=str(folder / "data.npz"),
        image_input=(PREPARATION,),
        measure_seconds=QUICK,
        effort="quick",
        compute_capability=("SM89",),
    )
    before = {key: value.clone() for key, value in net.state_dict().items()}
    bundle = deploy.build(net, config, output=folder / "net.deploy")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    return bundle


def test_every_engine_answers_images_as_eager_answers_what_was_prepared_by_hand(
    built: Bundle, net: Net
) -> None:
    images, labels = draw_images(64, 3)
    expected = exact(net, images)
    names = [name for name, entry in built.manifest.engines.items() if entry.not_run is None]
    assert {"onnxruntime-fp32", "onnxruntime-int8", "openvino-int8"} <= set(names)
    for name in names:
        with deploy.load(built.path, engine=name) as engine:
            (output,) = engine({"x": images}).values()
        power, noise = (expected**2).sum(), ((output - expected) ** 2).sum()
        assert 10 * np.log10(power / noise) > (20 if "32" not in name else 100), name
        assert (output.argmax(1) == labels).mean() > 0.9, name


def test_the_bundle_says_what_its_engines_take(built: Bundle) -> None:
    (spec,) = built.manifest.inputs
    assert (spec.name, spec.shape, spec.dtype) == ("x", ("batch", 16, 16, 3), "uint8")
    assert built.manifest.images == ImageCall((ImageInput("x", MEAN, STD),))
    assert built.manifest.input_ranges == {"x": (0.0, 255.0)}
    report = built.report()
    jsonschema.validate(report, load_schema())
    assert report["model"]["inputs"][0]["dtype"] == "uint8"
    assert report["model"]["images"] == [
        {
            "name": "x",
            "mean": list(MEAN),
            "std": list(STD),
            "scale": 255.0,
            "dtype": "float32",
        }
    ]
    assert not [text for text in report["warnings"] if "scaled" in text]
    golden = read_golden(built.path / "golden.npz").inputs["x"]
    assert (golden.dtype, golden.shape[1:]) == (np.uint8, (16, 16, 3))
    censuses = {row["name"]: row["census"] for row in report["candidates"]}
    kinds = {kind["precision"] for kind in censuses["openvino-fp32"]["precisions"]}
    assert kinds == {"fp32"}  # reading bytes is no int8
    paths = [item["paths"] for item in report["model"]["fused"]]
    assert ["stem", "bn1"] in paths  # the user's own names


def test_engines_of_tensorrt_are_built_for_images(built: Bundle) -> None:
    rows = {row["name"]: row for row in built.report()["candidates"]}
    for precision in ("tf32", "fp16", "int8"):
        name = f"tensorrt_rtx-{precision}"
        assert rows[name]["reason"] == "no NVIDIA GPU"
        assert (built.path / name / "model.engine").stat().st_size > 0


def test_it_is_verified_on_a_folder_of_images_as_they_are(
    built: Bundle, cli: Cli, tmp_path: Path
) -> None:
    images, labels = draw_images(24, 4)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "more" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    found = verify(built, data=str(tmp_path / "more"))
    assert all(each.holds for each in found if each.was_run)
    reports = [each.parity for each in found if each.parity is not None]
    assert {report.samples for report in reports} == {24}
    code, _, error = cli("verify", built.path, "--data", tmp_path / "more", "--image-std", "0.5")
    assert code == 2
    assert "--image-std" in error


def test_triton_is_told_the_same(built: Bundle) -> None:
    model = TritonModel(built, "onnxruntime-fp32", "onnxruntime", "net", 1)
    text = " ".join(render_signature(model, Batching(8)).split())
    assert "data_type: TYPE_UINT8 dims: 16 dims: 16 dims: 3 }" in text


def test_eager_takes_images_wherever_it_is_opened(built: Bundle, net: Net, tmp_path: Path) -> None:
    torch.save(net, tmp_path / "net.pt")
    spec = EngineSpec(
        engine="torch",
        precision="fp32",
        path=str(tmp_path / "net.pt"),
        threads=1,
        trust=("*",),
        inputs=built.manifest.inputs,
        outputs=built.manifest.outputs,
        images=built.manifest.images,
    )
    images, _ = draw_images(5, 5)
    kept = images.copy()
    with open_engine(spec) as engine:
        (output,) = engine({"x": images}).values()
    expected = exact(net, images)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5 * abs(expected).max())
    np.testing.assert_array_equal(images, kept)


def test_a_bundle_hands_the_preparation_to_eager_alone(built: Bundle) -> None:
    entry = replace(built.manifest.engines["onnxruntime-fp32"], engine="torch")
    manifest = replace(
        built.manifest, winner="torch", engines={**built.manifest.engines, "torch": entry}
    )
    bundle = replace(built, manifest=manifest)
    assert bundle.spec("torch").images == built.manifest.images
    assert bundle.spec("onnxruntime-fp32").images is None


def test_a_manifest_with_images_is_read_as_it_was_written(built: Bundle) -> None:
    assert read_bundle(built.path).manifest == built.manifest


def test_another_preparation_is_another_build() -> None:
    one, other = (data_key(BuildConfig(image_input=(text,))) for text in ("scale=1", "scale=255"))
    assert one != other
