"""What TensorRT does not take is named with its place; what it takes passes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.errors import EngineError
from export.tensorrt.contract import check_contract, find_stray_float

Arrays = dict[str, np.ndarray]


def make(nodes: list[NodeProto], constants: Arrays) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def quantized(**changes: np.ndarray) -> tuple[list[NodeProto], Arrays]:
    """A convolution with int8 inputs as TensorRT wants it, but for `changes`."""
    constants = {
        "s": np.float32(0.1),
        "z": np.int8(0),
        "w": np.ones((3, 2, 3, 3), np.int8),
        "ws": np.array([0.1, 0.2, 0.3], np.float32),
        "wz": np.zeros(3, np.int8),
        **changes,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize_x"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dequantize_x"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weights", axis=0),
        helper.make_node("Conv", ["d", "wd"], ["y"], name="conv"),
    ]
    return nodes, {name: np.asarray(array) for name, array in constants.items()}


def refuse(tmp_path: Path, nodes: list[NodeProto], constants: Arrays) -> str:
    path = tmp_path / "m.onnx"
    onnx.save(make(nodes, constants), path)
    with pytest.raises(EngineError) as caught:
        check_contract(path, "TensorRT")
    return str(caught.value)


def test_symmetric_int8_with_a_scale_a_channel_passes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(make(*quantized()), path)
    check_contract(path, "TensorRT")


def test_zero_points_are_named_with_their_nodes(tmp_path: Path) -> None:
    words = refuse(tmp_path, *quantized(z=np.int8(3)))
    assert "a zero point that is not 0 (at quantize_x, dequantize_x)" in words
    assert "symmetric int8, zero point 0" in words


def test_unsigned_codes_and_integer_biases_are_named(tmp_path: Path) -> None:
    assert "codes of type uint8" in refuse(tmp_path, *quantized(z=np.uint8(0)))
    nodes, constants = quantized()
    constants |= {"b": np.ones(3, np.int32), "bs": np.ones(3, np.float32)}
    nodes.insert(0, helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], name="bias", axis=0))
    nodes[-1].input.append("bd")
    words = refuse(tmp_path, nodes, constants)
    assert "codes of type int32, where biases must stay float (at bias)" in words


def test_scales_that_are_wrong_are_named(tmp_path: Path) -> None:
    assert "not positive (at quantize_x" in refuse(tmp_path, *quantized(s=np.float32(0)))
    nodes, constants = quantized()
    nodes[2].attribute[0].i = 1
    constants |= {"ws": np.ones(2, np.float32), "wz": np.zeros(2, np.int8)}
    assert "scale along axis 1, not 0 (at weights)" in refuse(tmp_path, nodes, constants)
    nodes, constants = quantized()
    constants |= {"s": np.ones(2, np.float32), "z": np.zeros(2, np.int8)}
    for node in nodes[:2]:
        node.attribute.append(helper.make_attribute("axis", 1))
    assert "each channel of an activation" in refuse(tmp_path, nodes, constants)


def test_all_places_are_in_one_message(tmp_path: Path) -> None:
    words = refuse(tmp_path, *quantized(z=np.int8(1), wz=np.ones(3, np.int8)))
    assert "(at quantize_x, dequantize_x, weights)" in words


def stray(kind: int) -> onnx.ModelProto:
    """int8, then Softplus in `kind`, then int8; 16 bits elsewhere."""
    scale = np.float32 if kind == TensorProto.FLOAT else np.float16
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="in", to=TensorProto.FLOAT16),
        helper.make_node("Relu", ["h"], ["r"], name="half"),
        helper.make_node("Cast", ["r"], ["c"], name="up", to=kind),
        helper.make_node("QuantizeLinear", ["c", "s"], ["q"], name="q0"),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"], name="d0"),
        helper.make_node("Softplus", ["d"], ["p"], name="between"),
        helper.make_node("Reshape", ["p", "shape"], ["p2"], name="move"),
        helper.make_node("QuantizeLinear", ["p2", "s"], ["q1"], name="q1"),
        helper.make_node("DequantizeLinear", ["q1", "s"], ["d1"], name="d1"),
        helper.make_node("Cast", ["d1"], ["y"], name="out", to=TensorProto.FLOAT),
    ]
    return make(nodes, {"s": np.asarray(scale(0.1)), "shape": np.array([1, 32], np.int64)})


def test_float32_between_int8_layers_of_a_16_bit_graph_is_found() -> None:
    assert find_stray_float(stray(TensorProto.FLOAT)) == ("between",)
    assert find_stray_float(stray(TensorProto.FLOAT16)) == ()
    assert find_stray_float(make(*quantized())) == ()  # all of it is float32: nothing is stray
