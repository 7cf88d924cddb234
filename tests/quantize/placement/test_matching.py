"""Along which axis the channels of weights lie, and what is made of the codes that go in."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.onnx.graph import FIXED, GraphIndex
from quantize.placement.layers import linear_layers
from quantize.placement.matching import WeightUse, keeps_codes, match_weights
from quantize.scheme import PRESETS
from quantize.transformers.matmuls import find_matmuls

CHANNELS = 6


@pytest.mark.parametrize(
    ("operator", "options", "shape"),
    [
        ("Conv", {}, (CHANNELS, 4, 3, 3)),
        ("ConvTranspose", {}, (4, CHANNELS, 3, 3)),
        ("Gemm", {}, (4, CHANNELS)),
        ("Gemm", {"transB": 1}, (CHANNELS, 4)),
        ("MatMul", {}, (4, CHANNELS)),
    ],
)
def test_the_axis_of_the_channels_is_that_of_the_outputs(
    operator: str, options: dict[str, int], shape: tuple[int, ...]
) -> None:
    weight = numpy_helper.from_array(np.ones(shape, np.float32), "w")
    bias = numpy_helper.from_array(np.ones(CHANNELS, np.float32), "b")
    names = ["x", "w"] if operator == "MatMul" else ["x", "w", "b"]
    node = helper.make_node(operator, names, ["y"], name="layer", **options)
    data = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [data], [result], [weight, bias])
    for scheme in PRESETS.values():
        use = match_weights(GraphIndex(helper.make_model(graph)), 0, scheme)
        assert isinstance(use, WeightUse)
        assert shape[use.axis] == CHANNELS


@pytest.mark.parametrize(
    ("operator", "outputs", "options", "kept"),
    [
        ("MaxPool", ["y"], {}, True),
        ("MaxPool", ["y", ""], {}, True),
        ("MaxPool", ["y", "indices"], {}, False),
        ("Split", ["y", "z"], {}, True),
        ("Resize", ["y"], {}, True),
        ("Resize", ["y"], {"mode": "nearest"}, True),
        ("Resize", ["y"], {"mode": "linear"}, False),
    ],
)
def test_only_what_moves_values_keeps_their_codes(
    operator: str, outputs: list[str], options: dict[str, str], kept: bool
) -> None:
    assert keeps_codes(helper.make_node(operator, ["x"], outputs, **options)) is kept


def test_what_stands_for_the_arithmetic_of_an_operator_stays_float() -> None:
    random = np.random.default_rng(0)
    matrices = [
        numpy_helper.from_array(random.normal(size=(64, 64)).astype(np.float32), name)
        for name in (f"{FIXED}fourier", "trained")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", f"{FIXED}fourier"], ["h"], name="transform"),
        helper.make_node("MatMul", ["h", "trained"], ["y"], name="layer"),
    ]
    data = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])
    graph = GraphIndex(helper.make_model(helper.make_graph(nodes, "g", [data], [result], matrices)))
    assert "arithmetic of an operator" in str(match_weights(graph, 0, PRESETS["tensorrt"]))
    assert [use.node for use in find_matmuls(graph, what="int4").found] == [1]
    assert linear_layers(graph) == (1,)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, None),
        ({"alpha": 2.0}, "alpha, beta or transA"),
        ({"beta": 0.5}, "alpha, beta or transA"),
        ({"transA": 1}, "alpha, beta or transA"),
        ({"constant": True}, "its data input is constant"),
    ],
)
def test_a_gemm_that_has_no_int8_kernel_stays_float(
    options: dict[str, float | bool], reason: str | None
) -> None:
    options = dict(options)
    shapes = {"w": (4, CHANNELS), "b": (CHANNELS,)} | ({"x": (3, 4)} if options else {})
    stored = ["w", "b", "x"] if options.pop("constant", False) else ["w", "b"]
    values = [numpy_helper.from_array(np.ones(shapes[name], np.float32), name) for name in stored]
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", **options)
    data = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    inputs = [] if "x" in stored else data
    graph = GraphIndex(helper.make_model(helper.make_graph([node], "g", inputs, [result], values)))
    for scheme in PRESETS.values():
        found = match_weights(graph, 0, scheme)
        assert isinstance(found, WeightUse) if reason is None else reason in str(found)
