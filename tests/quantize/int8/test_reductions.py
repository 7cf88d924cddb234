"""Reductions that keep their axes: the same values, and right answers of OpenVINO behind them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from test_nets import Net, run, sqnr

from deploy.engines import EngineSpec
from deploy.engines.process import EngineProcess
from export.artifacts import OnnxModel
from export.onnx.files import read_model
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.int8.reductions import keep_reduced_axes
from quantize.scheme import NARROW, PRESETS

KINDS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2")


def reduce(net: Net, kind: str, x: str, axes: tuple[int, ...] | None, *, keep: int = 0) -> str:
    """Axes as an attribute before opset 18, as an input from then on; so of sums before it."""
    if axes is None:
        return net.op(kind, x, keepdims=keep)
    if net.opset < 18 and kind != "ReduceSum":
        return net.op(kind, x, keepdims=keep, axes=list(axes))
    name = net.constant(f"axes{len(net.nodes)}", np.asarray(axes, np.int64))
    return net.op(kind, x, name, keepdims=keep)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("axes", [(1,), (-2,), (1, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_shapes_are_as_before(
    tmp_path: Path, kind: str, axes: tuple[int, ...], opset: int
) -> None:
    net = Net(5, 7, 4, opset=opset)
    path = net.save(tmp_path / "net.onnx", net.op("Relu", reduce(net, kind, "x", axes))).path
    model = read_model(path)
    keep_reduced_axes(model)
    onnx.checker.check_model(model, full_check=True)
    assert operators(model) == [kind, "Squeeze", "Relu"]
    feed = net.feed(3)
    (expected,), (found,) = (
        ReferenceEvaluator(each).run(None, feed) for each in (str(path), model)
    )
    np.testing.assert_array_equal(found, expected)
    assert model.graph.node[0].metadata_props == model.graph.node[1].metadata_props


@pytest.mark.parametrize(
    "build",
    [
        lambda net: reduce(net, "ReduceMean", "x", (1,), keep=1),
        lambda net: net.op("Expand", reduce(net, "ReduceMean", "x", None), net.op("Shape", "x")),
        lambda net: net.op("Cast", reduce(net, "ReduceMax", net.op("Cast", "x", to=7), (1,)), to=1),
        lambda net: net.op("Softmax", "x"),
    ],
    ids=["keeps them", "drops all", "integers", "no reduction"],
)
def test_others_stay(tmp_path: Path, build: Callable[[Net], str]) -> None:
    net = Net(5, 4)
    model = read_model(net.save(tmp_path / "net.onnx", build(net)).path)
    before = operators(model)
    keep_reduced_axes(model)
    assert operators(model) == before


def scaled(net: Net, x: str) -> str:
    """By a constant a channel, of which the first is far larger than the others."""
    scale = np.r_[100, net.random.uniform(0.5, 1.5, 63)].astype(np.float32)
    return net.op("Mul", x, net.constant(f"scale{len(net.nodes)}", scale))


def shifted(net: Net, x: str) -> str:
    shift = net.random.normal(0, 3, 64).astype(np.float32)
    return net.op("Add", x, net.constant(f"shift{len(net.nodes)}", shift))


def build(net: Net, kind: str, axes: tuple[int, ...], place: str) -> str:
    """A reduction over tokens between two linear layers, and a constant a channel beside it."""
    weight = net.random.normal(0, 0.125, (64, 64)).astype(np.float32)
    x = net.op("MatMul", "x", net.constant("first", weight))
    if place == "before":
        return net.gemm(reduce(net, kind, scaled(net, x), axes), 64, 10)
    pooled = reduce(net, kind, x, axes)
    return net.gemm((scaled if place == "factor behind" else shifted)(net, pooled), 64, 10)


def answer_of_openvino(model: OnnxModel, feed: dict[str, np.ndarray]) -> np.ndarray:
    spec = EngineSpec("openvino", "int8", str(model.path), threads=1)
    with EngineProcess(spec) as process:
        return next(iter(process(feed).values()))


@pytest.mark.parametrize(
    ("kind", "shape", "axes", "place"),
    [
        ("ReduceMean", (12, 64), (1,), "before"),
        ("ReduceMean", (5, 7, 64), (1, 2), "before"),
        ("ReduceSum", (12, 64), (1,), "factor behind"),
        ("ReduceMax", (12, 64), (1,), "before"),
        ("ReduceMean", (12, 64), (1,), "summand behind"),
    ],
)
def test_openvino_answers_as_onnxruntime_does_behind_a_reduction(
    tmp_path: Path, kind: str, shape: tuple[int, ...], axes: tuple[int, ...], place: str
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    net = Net(*shape)
    model = net.save(tmp_path / "net.onnx", build(net, kind, axes, place))
    feed = net.feed(16)
    path = tmp_path / "int8.onnx"
    scheme = replace(PRESETS["openvino"], weight_levels=NARROW)  # which no kernel saturates
    int8 = quantize_int8(model, calibrate(model, [feed]), scheme, path).model
    (exact,), (expected,) = run(model, feed), run(int8, feed)
    found = answer_of_openvino(int8, feed)
    assert sqnr(exact, found) > max(20, sqnr(exact, expected) - 2)


def test_only_where_the_target_needs_it(tmp_path: Path) -> None:
    net = Net(12, 64)
    model = net.save(tmp_path / "net.onnx", build(net, "ReduceMean", (1,), "before"))
    ranges = calibrate(model, [net.feed(8)])
    for target in ("onnxruntime", "tensorrt"):
        path = tmp_path / f"{target}.onnx"
        quantize_int8(model, ranges, PRESETS[target], path)
        assert "Squeeze" not in operators(read_model(path))
