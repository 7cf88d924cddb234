"""Equalization keeps the function, in float64, and gives channels ranges that share a scale."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from test_nets import Net, classifier, run, sqnr

from export.artifacts import OnnxModel
from export.errors import QuantizeError
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.recover.equalization import EqualizationResult, equalize
from quantize.scheme import PRESETS

SPREAD = 3.0
"""Standard deviation of the planted channel scales, in powers of two."""


def _run_in_float64(model: OnnxModel, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output by ONNX's own reference, with weights and inputs widened to float64."""
    proto = onnx.load(model.path)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            wide = numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    del proto.graph.value_info[:]
    wide_feeds = {name: array.astype(np.float64) for name, array in feeds.items()}
    return ReferenceEvaluator(proto).run(None, wide_feeds)[0]


def _unbalance(net: Net, seed: int = 0) -> None:
    """Scale the output channels of every layer, so that no two have one range."""
    random = np.random.default_rng(seed)
    tensors = {tensor.name: tensor for tensor in net.constants}
    for node in net.nodes:
        if node.op_type not in ("Conv", "Gemm"):
            continue
        transposed = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in
                                                        node.attribute)  # fmt: skip
        arrays = [numpy_helper.to_array(tensors[name]) for name in node.input[1:]]
        channels = arrays[0].shape[1 if transposed else 0]
        spread = (2 ** random.normal(0, SPREAD, channels)).astype(np.float32)
        for name, array in zip(node.input[1:], arrays, strict=True):
            last = transposed or array.ndim == 1
            scaled = array * (spread if last else spread.reshape(-1, *[1] * (array.ndim - 1)))
            tensors[name].CopyFrom(numpy_helper.from_array(scaled, name))


def _ranges(model: OnnxModel, weight: str, axis: int = 0) -> np.ndarray:
    (tensor,) = (t for t in onnx.load(model.path).graph.initializer if t.name == weight)
    array = np.abs(numpy_helper.to_array(tensor))
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).max(axis=1)


def _equalize(net: Net, model: OnnxModel, feeds: dict[str, np.ndarray]) -> EqualizationResult:
    """Equalize and hold the result against the original in float64 and on ONNX Runtime."""
    before = model.path.read_bytes()
    result = equalize(model, model.path.with_name("equalized.onnx"))
    assert model.path.read_bytes() == before
    onnx.checker.check_model(str(result.model.path), full_check=True)
    assert (result.model.inputs, result.model.outputs) == (model.inputs, model.outputs)
    expected, got = (_run_in_float64(item, feeds) for item in (model, result.model))
    scale = np.abs(expected).max()
    assert np.abs(got - expected).max() < 2e-6 * scale  # weights are stored in float32
    np.testing.assert_allclose(run(result.model, feeds)[0], expected, atol=2e-5 * scale)
    return result


def _relu(net: Net, x: str) -> str:
    return net.op("Relu", x)


def _leaky(net: Net, x: str) -> str:
    return net.op("LeakyRelu", x, alpha=0.1)


def _nothing(net: Net, x: str) -> str:
    return net.op("Identity", x)


def _pooled(net: Net, x: str) -> str:
    x = net.op("MaxPool", net.op("Relu", x), kernel_shape=[3, 3], pads=[1] * 4)
    return net.op("AveragePool", x, kernel_shape=[2, 2])


@pytest.mark.parametrize("between", [_relu, _leaky, _nothing, _pooled, Net.clip6])
@pytest.mark.parametrize("groups", [1, 2])
def test_two_convolutions_meet_in_the_middle(tmp_path: Path, between, groups: int) -> None:
    net = Net(3, 9, 9)
    x = between(net, net.conv("x", 3, 8, name="a"))
    y = net.conv(x, 8, 6, groups=groups, name="b", kernel=3)
    _unbalance(net)
    model = net.save(tmp_path / "m.onnx", y)
    feeds = {"x": 3 * net.feed(2)["x"]}
    result = _equalize(net, model, feeds)
    assert [(pair.first, pair.second) for pair in result.equalized] == [("a", "b")]
    assert result.equalized[0].ceilings == (between is Net.clip6)
    assert result.equalized[0].ratio_after < 0.6 * result.equalized[0].ratio_before
    (skip,) = result.skipped
    assert (skip.where, skip.reason) == ("b", "its output is an output of the model")


def test_a_clip_saturates_channel_by_channel(tmp_path: Path) -> None:
    net = Net(3, 9, 9)
    y = net.conv(net.clip6(net.conv("x", 3, 8, name="a")), 8, 6, name="b")
    _unbalance(net)
    model = net.save(tmp_path / "m.onnx", y)
    feeds = {"x": 20 * net.feed(2)["x"]}
    result = _equalize(net, model, feeds)
    proto = onnx.load(result.model.path)
    assert [node.op_type for node in proto.graph.node] == ["Conv", "Relu", "Min", "Conv"]
    (ceilings,) = (t for t in proto.graph.initializer if "ceilings" in t.name)
    values = numpy_helper.to_array(ceilings)
    assert values.shape == (8, 1, 1)
    assert len(np.unique(values)) == 8


@pytest.mark.parametrize("between", [_relu, Net.clip6])
def test_chains_through_a_depthwise_layer_converge(tmp_path: Path, between) -> None:
    net = Net(3, 10, 10)
    x = between(net, net.conv("x", 3, 8, kernel=1, name="up"))
    x = between(net, net.conv(x, 8, 8, groups=8, name="depthwise"))
    y = net.conv(x, 8, 4, kernel=1, name="down")
    _unbalance(net)
    model = net.save(tmp_path / "m.onnx", y)
    result = _equalize(net, model, {"x": 3 * net.feed(2)["x"]})
    assert [(pair.first, pair.second) for pair in result.equalized] == [
        ("up", "depthwise"),
        ("depthwise", "down"),
    ]
    up, middle = _ranges(result.model, "up_w"), _ranges(result.model, "depthwise_w")
    down = _ranges(result.model, "down_w", axis=1)
    np.testing.assert_allclose(up, middle, rtol=5e-3)
    np.testing.assert_allclose(middle, down, rtol=5e-3)


@pytest.mark.parametrize("trans", [0, 1])
def test_linear_layers_and_what_lies_before_them(tmp_path: Path, trans: int) -> None:
    net = Net(3, 6, 6)
    x = net.op("ReduceMean", net.op("Relu", net.conv("x", 3, 8, name="a")), axes=[2, 3])
    net.opset = 17
    net.nodes[-1].attribute.append(helper.make_attribute("keepdims", 0))
    x = net.op("Relu", net.gemm(x, 8, 10, name="b", trans=trans))
    _unbalance(net)
    model = net.save(tmp_path / "m.onnx", net.gemm(x, 10, 4, name="c", trans=trans))
    result = _equalize(net, model, net.feed(3))
    assert [(pair.first, pair.second) for pair in result.equalized] == [("a", "b"), ("b", "c")]


def test_a_flattened_plane_shares_the_scale_of_its_channel(tmp_path: Path) -> None:
    net = Net(3, 4, 5)
    x = net.flatten(net.op("Relu", net.conv("x", 3, 6, name="a")))
    _unbalance(net)
    model = net.save(tmp_path / "m.onnx", net.gemm(x, 120, 4, name="b"))
    (pair,) = _equalize(net, model, net.feed(3)).equalized
    assert (pair.first, pair.second) == ("a", "b")


def test_layers_without_bias(tmp_path: Path) -> None:
    net = Net(3, 9, 9)
    x = net.op("Relu", net.conv("x", 3, 8, name="a", bias=False))
    y = net.conv(x, 8, 6, name="b", bias=False)
    _unbalance(net)
    result = _equalize(net, net.save(tmp_path / "m.onnx", y), net.feed(2))
    first, second = _ranges(result.model, "a_w"), _ranges(result.model, "b_w", axis=1)
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_dead_channels_are_left_and_nothing_overflows(tmp_path: Path) -> None:
    net = Net(3, 9, 9)
    y = net.conv(net.op("Relu", net.conv("x", 3, 8, name="a")), 8, 6, name="b")
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in net.constants}
    arrays["a_w"][1] = 0
    arrays["a_w"][2] *= 1e-30
    arrays["b_w"][:, 3] = 0
    for tensor in net.constants:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))
    model = net.save(tmp_path / "m.onnx", y)
    result = _equalize(net, model, net.feed(2))
    old, new = ({t.name: numpy_helper.to_array(t) for t in onnx.load(m.path).graph.initializer}
                for m in (model, result.model))  # fmt: skip
    np.testing.assert_array_equal(new["a_w"][[1, 3]], old["a_w"][[1, 3]])
    assert np.abs(new["a_b"]).max() < 3 * np.abs(old["a_b"]).max()


def _sigmoid(net: Net, x: str) -> str:
    return net.op("Sigmoid", x)


def _silu(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x))


def _hard_swish(net: Net, x: str) -> str:
    return net.op("HardSwish", x)


def _high_clip(net: Net, x: str) -> str:
    low = net.constant("low", np.float32(-1).reshape(()))
    return net.op("Clip", x, low, net.constant("high", np.float32(1).reshape(())))


def _residual(net: Net, x: str) -> str:
    return net.op("Add", x, net.constant("one", np.ones((1, 8, 1, 1), np.float32)))


def _read_twice(net: Net, x: str) -> str:
    x = net.op("Relu", x)
    net.op("ReduceMax", x, name="spy")
    return x


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (_sigmoid, "goes to Sigmoid, which does not pass a scale on"),
        (_silu, "its output is read by 2 nodes"),
        (_hard_swish, "goes to HardSwish"),
        (_high_clip, "a Clip that does not start at 0"),
        (_residual, "goes to Add"),
        (_read_twice, "its output is read by 2 nodes"),
    ],
)
def test_what_must_not_be_scaled_is_left_with_the_reason(
    tmp_path: Path, between, reason: str
) -> None:
    net = Net(3, 9, 9)
    y = net.conv(between(net, net.conv("x", 3, 8, name="a")), 8, 6, name="b")
    results = (y, "spy_out") if between is _read_twice else (y,)
    model = net.save(tmp_path / "m.onnx", *results)
    result = _equalize(net, model, net.feed(2))
    assert result.equalized == ()
    (found,) = (skip for skip in result.skipped if skip.where == "a")
    assert reason in found.reason
    assert found.what == "equalization"
    old, new = (onnx.load(item.path).graph for item in (model, result.model))
    assert list(old.initializer) == list(new.initializer)


def test_graph_outputs_keep_their_values(tmp_path: Path) -> None:
    net = Net(3, 9, 9)
    x = net.op("Relu", net.conv("x", 3, 8, name="a"))
    model = net.save(tmp_path / "m.onnx", net.conv(x, 8, 6, name="b"), x)
    assert _equalize(net, model, net.feed(2)).equalized == ()


@pytest.mark.parametrize("what", ["w", "b"])
def test_shared_weights_are_left(tmp_path: Path, what: str) -> None:
    net = Net(8, 9, 9)
    x = net.op("Relu", net.conv("x", 8, 8, name="a"))
    x = net.op("Relu", net.conv(x, 8, 8, name="b"))
    y = net.conv(x, 8, 8, name="c")
    position = {"w": 1, "b": 2}[what]
    net.nodes[-1].input[position] = net.nodes[0].input[position]
    net.constants = [tensor for tensor in net.constants if tensor.name != f"c_{what}"]
    model = net.save(tmp_path / "m.onnx", y)
    result = _equalize(net, model, net.feed(2))
    assert result.equalized == ()
    assert any("are used elsewhere as well" in skip.reason for skip in result.skipped)


def test_residual_blocks_are_equalized_inside_alone(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    result = _equalize(net, model, net.feed(3))
    assert [(pair.first, pair.second) for pair in result.equalized] == [("block_a", "block_b")]
    reasons = {skip.where: skip.reason for skip in result.skipped}
    assert set(reasons) == {"stem", "block_b", "depthwise", "main", "shortcut", "head"}
    assert "Add" in reasons["block_b"]
    assert reasons["depthwise"] == "its output is read by 2 nodes"


def test_convolutions_around_the_new_ceilings_still_run_in_int8(tmp_path: Path) -> None:
    net = Net(3, 9, 9)
    x = net.clip6(net.conv("x", 3, 8, name="a"))
    x = net.clip6(net.conv(x, 8, 8, groups=8, name="b"))
    y = net.conv(x, 8, 6, name="c")
    _unbalance(net)
    feeds = {"x": 3 * net.feed(16)["x"]}
    equalized = _equalize(net, net.save(tmp_path / "m.onnx", y), feeds).model
    ranges = calibrate(equalized, [feeds])
    path = tmp_path / "q.onnx"
    quantized = quantize_int8(equalized, ranges, PRESETS["onnxruntime"], path).model
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3
    assert sqnr(run(equalized, feeds)[0], run(quantized, feeds)[0]) > 25


def test_the_model_itself_is_never_overwritten(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    with pytest.raises(QuantizeError, match="is the float model itself"):
        equalize(model, model.path)


def test_a_mean_over_channels_passes_no_scale_on(tmp_path: Path) -> None:
    """As many rows are left as there were channels."""
    net = Net(3, 8, 8, opset=17)
    x = net.op("ReduceMean", net.conv("x", 3, 8, name="first"), axes=[1, 3], keepdims=0)
    model = net.save(tmp_path / "m.onnx", net.gemm(x, 8, 5, name="second"))
    result = _equalize(net, model, net.feed(4))
    assert result.equalized == ()
