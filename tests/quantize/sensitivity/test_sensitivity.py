"""The noise of one block in int8 is what it is measured to be, and noise adds up."""

import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from test_nets import Net, classifier, exact_options

from export.artifacts import OnnxModel
from export.progress import Progress
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.scheme import PRESETS
from quantize.sensitivity.blocks import Block
from quantize.sensitivity.by_block import BlockSensitivity, Quantizer, measure_sensitivity


@pytest.fixture
def case(tmp_path: Path) -> tuple[Net, Quantizer, list[dict[str, np.ndarray]]]:
    """A classifier, how it is quantized, and two batches."""
    net, model = classifier(tmp_path)
    batches = [net.feed(4), net.feed(3)]
    ranges = calibrate(model, batches, observer="minmax")
    return net, Quantizer(model, ranges, PRESETS["onnxruntime"]), batches


def run(model: OnnxModel, batches: list[dict[str, np.ndarray]]) -> np.ndarray:
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.path, exact_options(), providers=providers)
    return np.concatenate([session.run(None, batch)[0] for batch in batches]).astype(np.float64)


def noise(exact: np.ndarray, ours: np.ndarray) -> float:
    return float(((ours - exact) ** 2).sum() / (exact**2).sum())


def test_blocks_are_all_layers_in_int8(
    case: tuple[Net, Quantizer, list[dict[str, np.ndarray]]], tmp_path: Path
) -> None:
    _, quantizer, _ = case
    nodes = [node for block in quantizer.blocks(100) for node in block.nodes]
    assert nodes == ["stem", "block_a", "block_b", "depthwise", "main", "shortcut", "head"]
    assert len(quantizer.blocks(3)) <= 3


def test_noise_is_that_of_the_block_alone_in_int8(
    case: tuple[Net, Quantizer, list[dict[str, np.ndarray]]], tmp_path: Path
) -> None:
    _, quantizer, batches = case
    blocks = quantizer.blocks(100)
    told: list[Progress] = []
    found = measure_sensitivity(quantizer, blocks, batches, tmp_path, progress=told.append)
    exact = run(quantizer.model, batches)
    for item in found:
        others = {n for b in blocks if b != item.block for n in b.nodes}
        alone = quantizer.write(tmp_path / "alone.onnx", keep_float=frozenset(others))
        assert item.noise == pytest.approx(noise(exact, run(alone, batches)), rel=1e-6)
        assert item.sqnr_db == pytest.approx(-10 * math.log10(item.noise))
    assert [item.block for item in found] == list(blocks)
    assert (told[0].done, told[-1].done) == (0, len(blocks))
    assert not (tmp_path / "sensitivity.onnx").exists()


def test_noise_of_blocks_nearly_adds_up_to_that_of_all(
    case: tuple[Net, Quantizer, list[dict[str, np.ndarray]]], tmp_path: Path
) -> None:
    _, quantizer, batches = case
    found = measure_sensitivity(quantizer, quantizer.blocks(100), batches, tmp_path)
    whole = quantize_int8(
        quantizer.model, quantizer.ranges, quantizer.scheme, tmp_path / "whole.onnx"
    )
    together = noise(run(quantizer.model, batches), run(whole.model, batches))
    assert 0.25 < sum(item.noise for item in found) / together < 4


def test_a_block_that_changes_nothing_has_no_noise() -> None:
    assert BlockSensitivity(Block("a", ("a",)), 0.0).sqnr_db == math.inf


def masked(path: Path, values: np.ndarray) -> tuple[Net, OnnxModel]:
    """Two convolutions, and `values` added to the four channels at the end."""
    net = Net(3, 8, 8)
    x = net.op("Relu", net.conv("x", 3, 8, name="first"), name="relu")
    x = net.conv(x, 8, 4, name="second")
    mask = net.constant("mask", values.reshape(4, 1, 1).astype(np.float32))
    return net, net.save(path, net.op("Add", x, mask, name="masked"))


def test_a_mask_of_infinity_at_the_outputs_hides_no_noise(tmp_path: Path) -> None:
    net, model = masked(tmp_path / "masked.onnx", np.array([0, 0, 0, -np.inf]))
    _, plain = masked(tmp_path / "plain.onnx", np.zeros(4))
    batches = [net.feed(4)]
    ranges = calibrate(plain, batches, observer="minmax")
    quantizer, twin = (Quantizer(each, ranges, PRESETS["openvino"]) for each in (model, plain))
    for item in measure_sensitivity(quantizer, quantizer.blocks(9), batches, tmp_path):
        others = frozenset({"first", "second"}) - frozenset(item.block.nodes)
        mix = twin.write(tmp_path / "mix.onnx", keep_float=others)
        exact, ours = (run(each, batches)[:, :3] for each in (plain, mix))
        assert item.noise == pytest.approx(noise(exact, ours), rel=1e-3)
        assert item.noise > 0


def test_an_output_that_is_zero_whatever_is_in_int8_has_no_noise(tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    x = net.conv("x", 3, 8, name="first")
    nothing = net.constant("nothing", np.zeros((), np.float32))
    zero = net.op("Mul", x, nothing, name="zero")
    model = net.save(tmp_path / "m.onnx", zero)
    batches = [net.feed(4)]
    quantizer = Quantizer(model, calibrate(model, batches), PRESETS["onnxruntime"])
    (found,) = measure_sensitivity(quantizer, quantizer.blocks(9), batches, tmp_path)
    assert found.noise == 0


def test_a_block_whose_rounding_makes_some_values_nan_is_nothing_but_noise(tmp_path: Path) -> None:
    """Roots of what is 0 at the least in float, and below in int8."""
    net = Net(3, 8, 8)
    y = net.conv("x", 3, 4, name="layer")
    plain = net.save(tmp_path / "plain.onnx", y)
    batches = [net.feed(4)]
    least = np.float32(run(plain, batches).min())
    net = Net(3, 8, 8)
    y = net.conv("x", 3, 4, name="layer")
    shifted = net.op("Sub", y, net.constant("least", least.reshape(())), name="shift")
    model = net.save(tmp_path / "roots.onnx", net.op("Sqrt", shifted, name="roots"))
    ranges = calibrate(model, batches, observer="minmax")
    quantizer = Quantizer(model, ranges, PRESETS["openvino"])
    int8 = run(quantizer.write(tmp_path / "int8.onnx"), batches)
    assert np.isfinite(run(model, batches)).all()
    assert 0 < np.isnan(int8).sum() < int8.size / 2
    (found,) = measure_sensitivity(quantizer, quantizer.blocks(9), batches, tmp_path)
    assert found.noise == math.inf
