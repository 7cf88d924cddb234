"""`quantize_int8` stores the codes, scales and biases that it is given, and guards what follows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_nets import Net, classifier, run, sqnr

from export.errors import QuantizeError
from quantize.calibration.calibrate import Ranges, calibrate
from quantize.int8.adjustments import Adjustments, LayerAdjustment
from quantize.int8.codes import weight_scales
from quantize.int8.insertion import quantize_int8
from quantize.scheme import PRESETS, QuantScheme

TARGETS = sorted(PRESETS)
ORT = PRESETS["onnxruntime"]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def _odd_codes(shape: tuple[int, ...]) -> np.ndarray:
    """Codes that no rounding of the weights would give."""
    size = int(np.prod(shape))
    return (np.arange(size) * 37 % 255 - 127).reshape(shape).astype(np.int8)


def _fake(x: np.ndarray, scheme: QuantScheme, reach: float) -> np.ndarray:
    """`x` rounded as a tensor of the range -reach to reach, float64."""
    if scheme.unsigned_activations:
        step, zero, low, high = 2 * reach / 255, np.rint(127.5), 0, 255
    else:
        step, zero, low, high = reach / 127, 0, -128, 127
    return (np.clip(np.rint(x / step) + zero, low, high) - zero) * step


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chooses_bias", [True, False])
def test_a_convolution_computes_with_what_was_chosen(
    tmp_path: Path, target: str, bias: bool, chooses_bias: bool
) -> None:
    """Where no bias was chosen the model's own stays."""
    net = Net(6, 5, 5)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 6, 4, name="c", bias=bias))
    codes = _odd_codes((4, 6, 3, 3))
    scales = np.array([2e-3, 1e-3, 5e-4, 3e-3], np.float32)
    chosen = np.array([3.0, -2.0, 0.5, 0.0], np.float32)
    ranges = Ranges("given", 1, {"x": (-4.0, 4.0), "y": (-40.0, 40.0)})
    layer = LayerAdjustment("c", codes, scales, chosen if chooses_bias else None)
    if not chooses_bias:
        chosen = _arrays(model.path).get("c_b", np.zeros(4, np.float32))
    adjustments = Adjustments({"c": layer})
    scheme, path = PRESETS[target], tmp_path / "q.onnx"
    result = quantize_int8(model, ranges, scheme, path, adjustments=adjustments)
    onnx.checker.check_model(str(path), full_check=True)
    x = np.pad(_fake(net.feed(8)["x"].astype(np.float64), scheme, 4.0), [(0, 0)] * 2 + [(1, 1)] * 2)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    weight = codes.astype(np.float64) * scales.astype(np.float64)[:, None, None, None]
    expected = np.einsum("nchwij,ocij->nohw", windows, weight) + chosen[:, None, None]
    assert ("c_b_quantized" in _arrays(path)) is (bias and scheme.integer_bias)
    (got,) = run(result.model, net.feed(8))
    step = 80 / 255 if target == "onnxruntime" else 0.002  # which quantizes the output as well
    assert np.abs(got - np.clip(expected, -40, 40)).max() < 0.52 * step


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("trans", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_computes_with_what_was_chosen(
    tmp_path: Path, target: str, trans: int, bias: bool
) -> None:
    net = Net(7)
    name = net.gemm("x", 7, 5, name="g", trans=trans)
    if not bias:
        del net.nodes[-1].input[2:]
    model = net.save(tmp_path / "m.onnx", name)
    codes = _odd_codes((5, 7) if trans else (7, 5))
    scales = np.array([2e-3, 1e-3, 5e-4, 3e-3, 1e-2], np.float32)
    chosen = np.arange(5, dtype=np.float32) - 2
    ranges = Ranges("given", 1, {"x": (-4.0, 4.0)})
    adjustments = Adjustments({"g": LayerAdjustment("g", codes, scales, chosen)})
    scheme, path = PRESETS[target], tmp_path / "q.onnx"
    result = quantize_int8(model, ranges, scheme, path, adjustments=adjustments)
    weight = (codes.T if not trans else codes).astype(np.float64) * scales[:, None]
    expected = _fake(net.feed(8)["x"].astype(np.float64), scheme, 4.0) @ weight.T + chosen
    np.testing.assert_allclose(run(result.model, net.feed(8))[0], expected, atol=0.003)


def test_the_new_bias_is_int32_or_float_as_the_target_wants_it(tmp_path: Path) -> None:
    net = Net(4, 6, 6)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 4, 4, name="c"))
    chosen = np.array([1.25, -0.5, 0.0, 2.0], np.float32)
    adjustments = Adjustments({"c": LayerAdjustment("c", bias=chosen)})
    ranges = calibrate(model, [net.feed(8)])
    kinds: dict[str, bool] = {}
    for target in TARGETS:
        path = tmp_path / f"{target}.onnx"
        quantize_int8(model, ranges, PRESETS[target], path, adjustments=adjustments)
        arrays = _arrays(path)
        assert not any(
            np.array_equal(array, _arrays(model.path)["c_b"]) for array in arrays.values()
        )
        kinds[target] = any(np.array_equal(array, chosen) for array in arrays.values())
        if not kinds[target]:
            (code,) = (
                array for array in arrays.values() if array.dtype == np.int32 and array.any()
            )
            assert code[2] == 0
        assert kinds[target] != PRESETS[target].integer_bias


def test_a_bias_that_would_overflow_with_the_chosen_scale_gets_one_that_holds_it(
    tmp_path: Path,
) -> None:
    net = Net(4, 6, 6)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 4, 3, name="c"))
    codes, scales = _odd_codes((3, 4, 3, 3)), np.full(3, 1e-3, np.float32)
    scales[1] = 1e-12
    chosen = np.array([0.1, 30.0, -0.1], np.float32)
    adjustments = Adjustments({"c": LayerAdjustment("c", codes, scales, chosen)})
    path = tmp_path / "q.onnx"
    ranges = calibrate(model, [net.feed(8)])
    ranges = Ranges("given", 1, {**ranges.ranges, "y": (-40.0, 40.0)})
    result = quantize_int8(model, ranges, ORT, path, adjustments=adjustments)
    arrays = _arrays(path)
    np.testing.assert_array_equal(arrays["c_w_quantized"][[0, 2]], codes[[0, 2]])
    assert arrays["c_w_scale"][1] > 1e-10
    (got,) = run(result.model, net.feed(8))
    plain = run(model, net.feed(8))[0][:, 1] - _arrays(model.path)["c_b"][1]
    assert np.abs(got[:, 1] - plain - 30).max() < 0.52 * 80 / 255 + 0.05


@pytest.mark.parametrize("target", TARGETS)
def test_two_readers_of_one_weight_may_have_codes_of_their_own(tmp_path: Path, target: str) -> None:
    net = Net(4, 6, 6)
    net.conv("x", 4, 4, name="a", bias=False)
    net.op("Conv", "x", "a_w", name="b", kernel_shape=[3, 3], pads=[1] * 4)
    model = net.save(tmp_path / "m.onnx", "a_out", "b_out")
    codes, scales = _odd_codes((4, 4, 3, 3)), np.full(4, 1e-3, np.float32)
    layers = {
        "a": LayerAdjustment("a", codes, scales),
        "b": LayerAdjustment("b", -codes, scales),
    }
    path = tmp_path / "q.onnx"
    ranges = Ranges("given", 1, {"x": (-4.0, 4.0), "y": (-20.0, 20.0), "y1": (-20.0, 20.0)})
    quantize_int8(model, ranges, PRESETS[target], path, adjustments=Adjustments(layers))
    a, b = run(path, net.feed(4))
    assert np.abs(a).max() > 0.5
    assert np.abs(a + b).max() < 1.1 * 40 / 255


def test_layers_that_stay_float_ignore_their_adjustment(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    ranges = calibrate(model, [net.feed(32)])
    zero = LayerAdjustment("stem", np.zeros((8, 3, 3, 3), np.int8), np.ones(8, np.float32))
    scheme = replace(ORT, keep_float=frozenset({"stem"}))
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    quantize_int8(model, ranges, scheme, paths[0], adjustments=Adjustments({"stem": zero}))
    quantize_int8(model, ranges, scheme, paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_adjustments_of_another_model_are_refused(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    ranges = calibrate(model, [net.feed(4)])
    adjustments = Adjustments({"layer9.conv": LayerAdjustment("layer9.conv")})
    with pytest.raises(QuantizeError, match=r"'layer9.conv' that this model has not"):
        quantize_int8(model, ranges, ORT, tmp_path / "q.onnx", adjustments=adjustments)


def test_one_scale_for_all_channels_is_plain_per_tensor_quantization(tmp_path: Path) -> None:
    weight = np.array([[1.0, -254.0], [0.5, 0.1], [0.0, 0.0]], np.float32)
    scales = weight_scales(weight, 0, None, 1.0, per_channel=False)
    assert scales.tolist() == [2.0, 2.0, np.float32(1 / 127)]
    net = Net(4, 6, 6)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 4, 4, name="c"))
    ranges = calibrate(model, [net.feed(32)])
    found = {}
    for per_channel in (True, False):
        scheme = QuantScheme(
            "onnxruntime", "onnxruntime", True, True, per_channel_weights=per_channel
        )
        path = tmp_path / f"{per_channel}.onnx"
        quantize_int8(model, ranges, scheme, path)
        onnx.checker.check_model(str(path), full_check=True)
        found[per_channel] = len(np.unique(_arrays(path)["c_w_scale"]))
        assert sqnr(run(model, net.feed(8))[0], run(path, net.feed(8))[0]) > 30
    assert found == {True: 4, False: 1}
