"""Means over the spatial axes: what is rewritten, what is not, and that int8 runs them."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from test_nets import Net, run, sqnr

from export.artifacts import OnnxModel
from export.onnx.files import read_model
from export.onnx.tensor_types import float_tensors
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.placement.pooling import use_global_pooling
from quantize.scheme import PRESETS


def _mean(net: Net, x: str, axes: tuple[int, ...], *, keep: bool, name: str = "mean") -> str:
    """Axes as an attribute before opset 18, as an input from then on."""
    if net.opset < 18:
        return net.op("ReduceMean", x, name=name, keepdims=int(keep), axes=list(axes))
    constant = net.constant(f"{name}_axes", np.asarray(axes, np.int64))
    return net.op("ReduceMean", x, constant, name=name, keepdims=int(keep))


def _operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize(
    ("shape", "axes", "keep", "becomes"),
    [
        ((3, 5, 4), (2, 3), True, ["GlobalAveragePool"]),
        ((3, 5, 4), (-1, -2), False, ["GlobalAveragePool", "Flatten"]),
        ((3, 5), (2,), False, ["GlobalAveragePool", "Flatten"]),
        ((3, 5, 4), (2,), True, ["ReduceMean"]),
        ((3, 5, 4), (1, 2, 3), True, ["ReduceMean"]),
        ((3,), (1,), True, ["ReduceMean"]),
    ],
)
def test_only_a_mean_over_exactly_the_spatial_axes_is_rewritten(
    tmp_path: Path,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    keep: bool,
    becomes: list[str],
    opset: int,
) -> None:
    net = Net(*shape, opset=opset)
    model = read_model(net.save(tmp_path / "mean.onnx", _mean(net, "x", axes, keep=keep)).path)
    twins = use_global_pooling(model)
    assert _operators(model) == becomes
    assert model.graph.node[0].name == "mean"
    assert twins == ({"y_pool": "y"} if "Flatten" in becomes else {})
    onnx.checker.check_model(model, full_check=True)
    feeds = net.feed(2)
    (found,) = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_allclose(found, feeds["x"].mean(axes, keepdims=keep), atol=1e-6)


def test_a_mean_of_whole_numbers_and_one_over_unknown_axes_are_left() -> None:
    whole = helper.make_tensor_value_info("whole", TensorProto.INT32, ["batch", 3, 4, 4])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 4, 4])
    axes = helper.make_tensor_value_info("axes", TensorProto.INT64, [2])
    fixed = helper.make_tensor("fixed", TensorProto.INT64, [2], [2, 3])
    nodes = [
        helper.make_node("ReduceMean", ["whole", "fixed"], ["a"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["b"]),
        helper.make_node("ReduceMean", ["x"], ["c"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, kind, None)
        for name, kind in zip("abc", (TensorProto.INT32, *[TensorProto.FLOAT] * 2), strict=True)
    ]
    graph = helper.make_graph(nodes, "net", [whole, x, axes], outputs, [fixed])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    assert use_global_pooling(model) == {}
    assert _operators(model) == ["ReduceMean"] * 3


def _pooled_classifier(
    folder: Path, *, keep: bool, opset: int = 20, last: bool = False
) -> tuple[Net, OnnxModel]:
    """Two convolutions, the mean of 8x8, and, unless the mean is the `last`, a Gemm."""
    net = Net(3, 8, 8, opset=opset)
    x = net.op("Relu", net.conv(net.op("Relu", net.conv("x", 3, 8)), 8, 16, name="last"))
    x = _mean(net, x, (2, 3), keep=keep)
    if not last:
        x = net.gemm(net.flatten(x) if keep else x, 16, 10)
    return net, net.save(folder / f"pooled-{keep}-{opset}-{last}.onnx", x)


def _run_by_onnxruntime(model: OnnxModel) -> Counter[str]:
    """Operators of the graph that ONNX Runtime really runs, counted."""
    path = model.path.with_name("optimized.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    return Counter(_operators(onnx.load(path)))


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("everything", [True, False])
def test_onnxruntime_pools_in_int8_with_ranges_found_under_the_names_of_the_float_model(
    tmp_path: Path, keep: bool, opset: int, everything: bool
) -> None:
    net, model = _pooled_classifier(tmp_path, keep=keep, opset=opset)
    tensors = float_tensors(model.path) if everything else None
    ranges = calibrate(model, [net.feed(32)], tensors=tensors)
    assert "mean_out" in ranges.ranges
    quantized = quantize_int8(model, ranges, PRESETS["onnxruntime"], tmp_path / "int8.onnx").model
    operators = _run_by_onnxruntime(quantized)
    assert operators["QLinearGlobalAveragePool"] == 1
    assert operators["QLinearConv"] == 2
    assert operators["QGemm"] == 1
    assert operators["DequantizeLinear"] == operators["ReduceMean"] == 0
    feeds = net.feed(16, seed=2)
    assert sqnr(run(model, feeds)[0], run(quantized, feeds)[0]) > 25


@pytest.mark.parametrize("keep", [True, False])
def test_a_mean_that_is_the_output_keeps_its_name_and_shape(tmp_path: Path, keep: bool) -> None:
    net, model = _pooled_classifier(tmp_path, keep=keep, last=True)
    ranges = calibrate(model, [net.feed(32)])
    for target, scheme in PRESETS.items():
        quantized = quantize_int8(model, ranges, scheme, tmp_path / f"{target}.onnx").model
        feeds = net.feed(5, seed=2)
        expected = run(model, feeds)[0]
        assert [value.name for value in onnx.load(quantized.path).graph.output] == ["y"]
        assert sqnr(expected, run(quantized, feeds)[0].reshape(expected.shape)) > 25


def test_the_float_model_is_left_as_it_is(tmp_path: Path) -> None:
    net, model = _pooled_classifier(tmp_path, keep=False)
    before = model.path.read_bytes()
    ranges = calibrate(model, [net.feed(4)])
    quantize_int8(model, ranges, PRESETS["onnxruntime"], tmp_path / "int8.onnx")
    assert model.path.read_bytes() == before
    assert _operators(onnx.load(model.path)).count("ReduceMean") == 1
    kept = {node.name for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert {"mean", "mean_flatten"} <= kept
