"""What the int8 files hold and compute: closed forms in float64, and another quantizer."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from test_nets import Net, classifier, run, sqnr

from export.artifacts import OnnxModel
from export.errors import NothingToQuantizeError, QuantizeError
from quantize.calibration.calibrate import Ranges, calibrate
from quantize.int8.codes import activation_parameters, ranges_by_tensor, weight_scales
from quantize.int8.insertion import Int8Result, quantize_int8
from quantize.placement.walk import ActivationUse
from quantize.scheme import NARROW, PRESETS

TARGETS = sorted(PRESETS)


def _quantize(model: OnnxModel, net: Net, target: str, batch: int = 32) -> Int8Result:
    ranges = calibrate(model, [net.feed(batch)])
    path = model.path.with_name(f"{target}.onnx")
    result = quantize_int8(model, ranges, PRESETS[target], path)
    onnx.checker.check_model(str(path), full_check=True)
    return result


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def _fake(value: np.ndarray, scale: np.ndarray, zero: float, low: int, high: int) -> np.ndarray:
    return (np.clip(np.rint(value / scale) + zero, low, high) - zero) * scale


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_is_the_closed_form(tmp_path: Path, target: str, trans: int) -> None:
    net = Net(20)
    model = net.save(tmp_path / "m.onnx", net.gemm("x", 20, 7, trans=trans))
    x = net.feed(32)["x"].astype(np.float64)
    arrays = _arrays(model.path)
    w = arrays["gemm_w"].astype(np.float64)
    w = w.T if trans else w
    scales = np.abs(w).max(axis=0) / 127
    low, high = x.min(), x.max()
    if PRESETS[target].unsigned_activations:
        s = (high - low) / 255
        quantized = _fake(x, s, np.rint(-low / s), 0, 255)
    else:
        quantized = _fake(x, np.abs(x).max() / 127, 0, -128, 127)
    expected = quantized @ _fake(w, scales, 0, -127, 127) + arrays["gemm_b"]
    (got,) = run(_quantize(model, net, target).model, net.feed(32))
    exact = x @ w + arrays["gemm_b"]
    # codes that fall on a half may round either way: two activation steps of one product
    tolerance = 2 * np.abs(x).max() / 127 * np.abs(w).max()
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)
    assert sqnr(expected, got) > 55 > 45 > sqnr(exact, got)  # the rounding itself is there


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_pointwise_conv_is_the_closed_form(tmp_path: Path, target: str, groups: int) -> None:
    net = Net(6, 4, 4)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 6, 12, kernel=1, groups=groups, name="c"))
    x = net.feed(32)["x"].astype(np.float64)
    arrays = _arrays(model.path)
    w = arrays["c_w"].astype(np.float64)[:, :, 0, 0]
    w_q = _fake(w, np.abs(w).max(axis=1, keepdims=True) / 127, 0, -127, 127)
    full = np.zeros((12, 6))
    for channel in range(12):
        start = channel // (12 // groups) * (6 // groups)
        full[channel, start : start + 6 // groups] = w_q[channel]
    exact_ranges = (x.min(), x.max())
    if PRESETS[target].unsigned_activations:
        s = (exact_ranges[1] - exact_ranges[0]) / 255
        x_q = _fake(x, s, np.rint(-exact_ranges[0] / s), 0, 255)
    else:
        x_q = _fake(x, np.abs(x).max() / 127, 0, -128, 127)
    y = np.einsum("oc,nchw->nohw", full, x_q) + arrays["c_b"][:, None, None]
    (got,) = run(_quantize(model, net, target).model, net.feed(32))
    if target == "onnxruntime":  # its output is a graph output, quantized as well
        step = (y.max() - y.min()) / 255
        assert np.abs(got - y).max() < 1.1 * step
        assert len(np.unique(got)) <= 256
    else:
        assert sqnr(y, got) > 55


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("opset", [13, 17, 19, 21, 23])
def test_signature_and_dynamic_batch_are_kept(tmp_path: Path, target: str, opset: int) -> None:
    net, model = classifier(tmp_path, opset=opset)
    before = model.path.read_bytes()
    result = _quantize(model, net, target)
    assert model.path.read_bytes() == before
    assert (result.model.inputs, result.model.outputs) == (model.inputs, model.outputs)
    old, new = onnx.load(model.path).graph, onnx.load(result.model.path).graph
    assert list(old.input) == list(new.input)
    assert list(old.output) == list(new.output)
    for batch in (1, 2, 5):
        feeds = net.feed(batch, seed=7)
        assert sqnr(run(model, feeds)[0], run(result.model, feeds)[0]) > 25


def test_tensorrt_zero_points_are_all_zero_and_biases_float(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    graphs = {name: onnx.load(_quantize(model, net, name).model.path).graph for name in TARGETS}
    kinds = {}
    for name, graph in graphs.items():
        arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        zeros = [
            arrays[node.input[2]]
            for node in graph.node
            if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        ]
        kinds[name] = {str(zero.dtype) for zero in zeros}
        assert all((zero == 0).all() for zero in zeros) == (name == "tensorrt")
        assert (arrays.get("stem_b") is None) == (name == "onnxruntime")
    assert kinds == {
        "tensorrt": {"int8"},
        "openvino": {"uint8", "int8"},
        "onnxruntime": {"uint8", "int8", "int32"},
    }


@pytest.mark.parametrize("target", TARGETS)
def test_the_file_shrinks_and_float_weights_are_gone(tmp_path: Path, target: str) -> None:
    net = Net(64, 4, 4)
    x = net.op("Relu", net.conv("x", 64, 64))
    model = net.save(tmp_path / "m.onnx", net.conv(x, 64, 64))
    result = _quantize(model, net, target)
    assert result.model.path.stat().st_size < 0.3 * model.path.stat().st_size
    assert all(
        item.data_type != TensorProto.FLOAT or np.prod(item.dims) <= 64
        for item in onnx.load(result.model.path).graph.initializer
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("how", ["initializer", "Constant", "Identity"])
def test_shared_weights_are_stored_once(tmp_path: Path, target: str, how: str) -> None:
    net = Net(4, 6, 6)
    weight = net.random.normal(0, 0.2, (4, 4, 3, 3)).astype(np.float32)
    if how == "Constant":
        name = net.op("Constant", value=numpy_helper.from_array(weight))
    else:
        name = net.constant("w", weight)
    second = net.op("Identity", name) if how == "Identity" else name
    x = net.op("Relu", net.op("Conv", "x", name, pads=[1] * 4, name="a"))
    x = net.op("Conv", x, second, pads=[1] * 4, name="b")
    model = net.save(tmp_path / "m.onnx", x)
    result = _quantize(model, net, target)
    codes = [array for array in _arrays(result.model.path).values() if array.shape == weight.shape]
    assert all(array.dtype == np.int8 for array in codes)
    assert len(codes) == (2 if how == "Identity" else 1)
    assert {"a", "b"} <= set(result.quantized)
    feeds = net.feed(8, seed=5)
    assert sqnr(run(model, feeds)[0], run(result.model, feeds)[0]) > 30


@pytest.mark.parametrize("target", TARGETS)
def test_weights_shared_with_a_float_operator_stay_for_it(tmp_path: Path, target: str) -> None:
    net = Net(4)
    weight = net.constant("w", net.random.normal(0, 1, (4, 4)).astype(np.float32))
    x = net.op("MatMul", "x", weight)
    y = net.op("Mul", net.op("ReduceMax", weight), x)
    model = net.save(tmp_path / "m.onnx", y)
    result = _quantize(model, net, target)
    assert _arrays(result.model.path)["w"].dtype == np.float32
    assert sqnr(run(model, net.feed(8))[0], run(result.model, net.feed(8))[0]) > 35


@pytest.mark.parametrize("target", TARGETS)
def test_channels_of_zeros_keep_their_bias(tmp_path: Path, target: str) -> None:
    net = Net(4, 6, 6)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 4, 8, name="c"))
    proto = onnx.load(model.path)
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[2] = 0
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "c_w"))
    onnx.save(proto, model.path)
    result = _quantize(model, net, target)
    arrays = _arrays(result.model.path)
    assert arrays["c_w_scale"].min() > 0
    bias = numpy_helper.to_array(proto.graph.initializer[1])
    if target == "onnxruntime":
        stored = arrays["c_b_quantized"] * arrays["c_b_scale"].astype(np.float64)
        assert stored[2] == pytest.approx(bias[2], rel=1e-6)
    (got,) = run(result.model, net.feed(4))
    step = np.ptp(got) / 255
    assert np.abs(got[:, 2] - bias[2]).max() < 0.51 * step + 1e-6


@pytest.mark.parametrize("target", TARGETS)
def test_a_dead_activation_gives_finite_outputs(tmp_path: Path, target: str) -> None:
    net = Net(4, 6, 6)
    x = net.op("Mul", "x", net.constant("zero", np.float32(0).reshape(())))
    model = net.save(tmp_path / "m.onnx", net.conv(x, 4, 4, name="c"))
    result = _quantize(model, net, target)
    for name, array in _arrays(result.model.path).items():
        if name.endswith("_scale"):
            assert (array > 1e-12).all(), name
    reference, got = run(model, net.feed(3))[0], run(result.model, net.feed(3))[0]
    assert np.abs(reference - got).max() < 0.005


def test_a_bias_that_overflows_int32_raises_the_weight_scale(tmp_path: Path) -> None:
    net = Net(4, 6, 6)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 4, 3, name="c"))
    proto = onnx.load(model.path)
    weight, bias = (numpy_helper.to_array(item).copy() for item in proto.graph.initializer[:2])
    weight[1], bias[1] = weight[1] * 1e-9, 30.0
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "c_w"))
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(bias, "c_b"))
    onnx.save(proto, model.path)
    result = _quantize(model, net, "onnxruntime")
    code = _arrays(result.model.path)["c_b_quantized"]
    assert code.dtype == np.int32
    assert 2**31 * 0.99 < code[1] < 2**31 - 1
    (got,) = run(result.model, net.feed(2))
    assert np.abs(got[:, 1] - 30).max() < 0.1


@pytest.mark.parametrize("levels", [127, NARROW, 7])
@pytest.mark.parametrize("target", TARGETS)
def test_weights_and_integer_biases_are_the_nearest_codes_however_many_there_are(
    tmp_path: Path, target: str, levels: int
) -> None:
    net = Net(4, 6, 6)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 4, 3, name="c"))
    floats = _arrays(model.path)
    scheme = replace(PRESETS[target], weight_levels=levels)
    ranges = calibrate(model, [net.feed(8)])
    arrays = _arrays(quantize_int8(model, ranges, scheme, tmp_path / "q.onnx").model.path)
    codes, scales = arrays["c_w_quantized"], arrays["c_w_scale"].astype(np.float64)
    assert np.abs(codes.astype(int)).max(axis=(1, 2, 3)).tolist() == [levels] * 3
    off = np.abs(codes * scales[:, None, None, None] - floats["c_w"]) / scales[:, None, None, None]
    assert off.max() <= 0.5 + 1e-4
    if scheme.integer_bias:
        unit = arrays["c_b_scale"].astype(np.float64)
        assert np.abs(arrays["c_b_quantized"] - floats["c_b"] / unit).max() <= 0.5 + 1e-4
        np.testing.assert_allclose(unit, arrays["x_scale"] * scales, rtol=1e-6)
    else:
        np.testing.assert_array_equal(arrays["c_b"], floats["c_b"])


def test_twins_have_the_ranges_of_their_tensors_where_these_have_one() -> None:
    ranges = Ranges("minmax", 1, {"a": (-1.0, 2.0)})
    known = ranges_by_tensor(ranges, {"new": "a", "other": "never seen"}, PRESETS["openvino"])
    assert known == {"a": (-1.0, 2.0), "new": (-1.0, 2.0)}


def test_scale_arithmetic() -> None:
    x86, trt = PRESETS["onnxruntime"], PRESETS["tensorrt"]
    assert activation_parameters(-1.0, 3.0, x86) == (np.float32(4 / 255), 64)
    assert activation_parameters(1.0, 3.0, x86) == (np.float32(3 / 255), 0)
    assert activation_parameters(-3.0, -1.0, x86) == (np.float32(3 / 255), 255)
    assert activation_parameters(-1.0, 3.0, trt) == (np.float32(3 / 127), 0)
    assert activation_parameters(0.0, 0.0, x86) == (np.float32(1 / 255), 0)
    assert activation_parameters(0.0, 0.0, trt) == (np.float32(1 / 127), 0)
    clip = ActivationUse("t", ceiling=6.0, from_zero=True)
    scale, zero = activation_parameters(-0.1, 7.5, x86, clip)
    assert (float(scale) * 255 <= 6, float(scale) > 5.999 / 255, zero) == (True, True, 0)
    weight = np.array([[1.0, -254.0], [0.0, 0.0]], np.float32)
    assert weight_scales(weight, 0, None, 1.0).tolist() == [2.0, np.float32(1 / 127)]
    assert weight_scales(weight, 1, None, 1.0).tolist() == [np.float32(1 / 127), 2.0]


def test_sqnr_meets_another_quantizer(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    net, model = classifier(tmp_path)
    net.feed(64)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([net.feed(64)])

        def get_next(self):
            return next(self.batches, None)

    oracle = {}
    for target in TARGETS:
        path = tmp_path / f"{target}_oracle.onnx"
        scheme = PRESETS[target]
        kinds = (quantization.QuantType.QInt8, quantization.QuantType.QUInt8)
        quantization.quantize_static(
            str(model.path),
            str(path),
            Reader(),
            per_channel=True,
            activation_type=kinds[scheme.unsigned_activations],
            weight_type=quantization.QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": not scheme.unsigned_activations,
                "QuantizeBias": scheme.integer_bias,
            },
        )
        oracle[target] = path
    feeds = net.feed(256, seed=9)
    reference = run(model, feeds)[0]
    for target in TARGETS:
        ours = sqnr(reference, run(_quantize(model, net, target, 64).model, feeds)[0])
        theirs = sqnr(reference, run(oracle[target], feeds)[0])
        assert ours > theirs - 2, (target, ours, theirs)
        assert ours > 30


def test_opset_below_13_is_refused(tmp_path: Path) -> None:
    net = Net(4, 6, 6, opset=11)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 4, 4))
    with pytest.raises(QuantizeError) as error:
        _quantize(model, net, "onnxruntime")
    assert str(error.value) == (
        "opset 11 cannot hold per-channel Q/DQ; export with opset 13 or later"
    )


def test_nothing_quantizable_says_why(tmp_path: Path) -> None:
    net = Net(4, 4)
    model = net.save(tmp_path / "m.onnx", net.op("MatMul", "x", "x", name="attention"))
    with pytest.raises(
        NothingToQuantizeError, match=r"nothing to quantize.*attention: its weights are not"
    ):
        quantize_int8(model, Ranges("minmax", 1, {}), PRESETS["onnxruntime"], tmp_path / "q.onnx")
    assert not (tmp_path / "q.onnx").exists()


def test_ranges_of_another_model_are_refused(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    with pytest.raises(QuantizeError, match="'x' has no calibrated range"):
        quantize_int8(model, Ranges("minmax", 1, {}), PRESETS["onnxruntime"], tmp_path / "q.onnx")


def test_the_float_model_is_never_overwritten(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    with pytest.raises(QuantizeError, match="is the float model itself"):
        quantize_int8(model, Ranges("minmax", 1, {}), PRESETS["onnxruntime"], model.path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net = Net(4)
    model = net.save(tmp_path / "m.onnx", net.gemm("x", 4, 4))
    ranges = calibrate(model, [net.feed(3)])
    proto = onnx.load(model.path)
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[0, 0] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "gemm_w"))
    onnx.save(proto, model.path)
    with pytest.raises(QuantizeError, match="weights of gemm hold NaN"):
        quantize_int8(model, ranges, PRESETS["onnxruntime"], tmp_path / "q.onnx")


def test_no_torch_is_needed() -> None:
    import subprocess

    modules = "quantize.int8.insertion, quantize.half.fp16, export.onnx.execute"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("target", TARGETS)
def test_a_class_that_a_bias_of_minus_infinity_forbids_stays_forbidden(
    tmp_path: Path, target: str
) -> None:
    net = Net(6)
    x = net.op("Relu", net.gemm("x", 6, 8, name="first"))
    result = net.gemm(x, 8, 5, name="head")
    bias = next(item for item in net.constants if item.name == "head_b")
    values = numpy_helper.to_array(bias).copy()
    values[2] = -np.inf
    bias.CopyFrom(numpy_helper.from_array(values, "head_b"))
    model = net.save(tmp_path / "m.onnx", result)
    path = _quantize(model, net, target).model.path
    expected, found = run(model, net.feed(32))[0], run(path, net.feed(32))[0]
    assert (found[:, 2] == -np.inf).all()
    others = [0, 1, 3, 4]
    assert sqnr(expected[:, others], found[:, others]) > 20
