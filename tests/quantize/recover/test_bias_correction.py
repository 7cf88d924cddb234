"""Bias correction takes the mean error away, measured on engines that know nothing of it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_nets import Net, run

from export.artifacts import OnnxModel
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.recover.recovery import RecoverySettings, recover
from quantize.scheme import PRESETS

BIAS_ALONE = RecoverySettings(rounding=False, clipping=False, positions=10**6)


def _plant_biased_rounding(model: OnnxModel, name: str, share: float = 0.4) -> None:
    """Every weight but the largest of its channel lies `share` of a step below what it rounds to.

    All errors then have one sign, and on inputs with a mean they add up.
    """
    proto = onnx.load(model.path)
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            flat = array.reshape(array.shape[0], -1)
            largest = np.abs(flat).max(axis=1, keepdims=True)
            step = largest / 127
            moved = np.where(np.abs(flat) < largest, (np.rint(flat / step) - share) * step, flat)
            planted = moved.reshape(array.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(planted, name))
    onnx.save(proto, model.path)


def _mean_errors(model: OnnxModel, target: str, feeds: dict[str, np.ndarray]) -> list[float]:
    """Largest mean output error of a channel, without and with correction."""
    ranges = calibrate(model, [feeds])
    scheme = PRESETS[target]
    adjustments = recover(model, ranges, scheme, lambda: [feeds], BIAS_ALONE)
    errors = []
    for chosen in (None, adjustments):
        path = model.path.with_name(f"{target}.onnx")
        quantized = quantize_int8(model, ranges, scheme, path, adjustments=chosen).model
        onnx.checker.check_model(str(path), full_check=True)
        difference = run(quantized, feeds)[0] - run(model, feeds)[0].astype(np.float64)
        errors.append(float(np.abs(difference.mean(axis=(0, 2, 3))).max()))
    return errors


@pytest.mark.parametrize("target", sorted(PRESETS))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_planted_mean_error_falls_by_more_than_ten(
    tmp_path: Path, target: str, bias: bool, groups: int
) -> None:
    net = Net(16, 12, 12)
    y = net.conv("x", 16, 16, groups=groups, name="c", bias=bias)
    model = net.save(tmp_path / "m.onnx", y)
    _plant_biased_rounding(model, "c_w")
    feeds = {"x": np.abs(net.feed(16)["x"]) + 2}
    before, after = _mean_errors(model, target, feeds)
    assert after < before / 10
    assert before > 0.01


@pytest.mark.parametrize("target", sorted(PRESETS))
def test_the_error_of_the_rounded_input_is_corrected_as_well(tmp_path: Path, target: str) -> None:
    net = Net(8, 12, 12)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 8, 8, name="c", kernel=1))
    feeds = net.feed(16)
    grid = np.float32(np.abs(feeds["x"]).max() / 127 * 2)
    feeds["x"] = (np.rint(feeds["x"] / grid) + 0.2) * grid  # off the codes' grid by one sign
    before, after = _mean_errors(model, target, feeds)
    assert after < before / 3


def test_linear_layers_are_corrected_and_products_without_bias_left(tmp_path: Path) -> None:
    net = Net(12)
    x = net.op("Relu", net.gemm("x", 12, 20, name="one", trans=0))
    weight = net.random.normal(0, 0.25, (20, 6)).astype(np.float32)
    model = net.save(tmp_path / "m.onnx", net.op("MatMul", x, net.constant("w", weight), name="m"))
    ranges = calibrate(model, [net.feed(64)])
    scheme = PRESETS["tensorrt"]
    adjustments = recover(model, ranges, scheme, lambda: [net.feed(64)], BIAS_ALONE)
    assert adjustments.layers["one"].bias is not None
    assert adjustments.layers["one"].bias.shape == (20,)
    assert adjustments.layers["m"].bias is None
    (skip,) = adjustments.skipped
    assert (skip.where, skip.what, skip.reason) == ("m", "bias correction", "MatMul has no bias")


def test_correction_alone_leaves_codes_and_scales_as_they_are(tmp_path: Path) -> None:
    net = Net(8, 6, 6)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 8, 8, name="c"))
    ranges = calibrate(model, [net.feed(8)])
    adjustments = recover(model, ranges, PRESETS["onnxruntime"], lambda: [net.feed(8)], BIAS_ALONE)
    layer = adjustments.layers["c"]
    assert layer.codes is None
    assert layer.scales is None
    assert layer.nearest_db is None
