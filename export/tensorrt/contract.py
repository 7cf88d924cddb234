"""What TensorRT wants of a graph, told before its parser tells it in its own words.

Precision is in the graph alone. int8 is explicit: symmetric, with zero point 0, weights rounded a
channel at a time and biases in float. What is allowed but slow, float32 between two int8 layers of
a graph that is otherwise 16 bits wide, is found by `find_stray_float`.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from export.errors import EngineError
from export.onnx.cost import read_path
from export.onnx.files import read_model
from export.onnx.graph import GraphIndex, attribute
from export.onnx.tensor_types import element_types

_CODES = frozenset(
    {
        TensorProto.INT8,
        TensorProto.INT4,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.FLOAT4E2M1,
    }
)
"""What TensorRT takes between Q and DQ."""
_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}
"""Along which axis of its weights a layer may have a scale for each output channel."""
_HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})
_BOUNDARIES = frozenset({"QuantizeLinear", "DequantizeLinear"})
_LOOPS = frozenset({"GRU", "LSTM", "RNN"})
_MOVING = frozenset({"Cast", "Reshape", "Transpose", "Flatten", "Identity", "Squeeze", "Unsqueeze"})


def check_contract(path: Path, title: str) -> None:
    """Refuse a graph that `title` would not take for its quantization, all places at once.

    Args:
        path: the ONNX file.
        title: the product, as people call it.

    Raises:
        EngineError: what is wrong, where, and how to mend it.
        LoadError: the file is not ONNX.
    """
    model = read_model(path)
    index = GraphIndex(model)
    types = element_types(model)
    complaints: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in _BOUNDARIES:
            for complaint in _check_boundary(node, index, types):
                complaints.setdefault(complaint, []).append(read_path(node))
    if complaints:
        listed = "; ".join(
            f"{complaint} (at {', '.join(dict.fromkeys(where))})"
            for complaint, where in complaints.items()
        )
        raise EngineError(
            f"{title} does not take the quantization of {path.name}: {listed}. Quantize it for "
            "TensorRT: symmetric int8, zero point 0, weights a channel at a time, float biases."
        )


def _check_boundary(node: NodeProto, index: GraphIndex, types: dict[str, int]) -> Iterator[str]:
    codes = node.output[0] if node.op_type == "QuantizeLinear" else node.input[0]
    kind = types.get(codes, TensorProto.INT8)
    if kind not in _CODES:
        name = TensorProto.DataType.Name(kind).lower()
        what = "biases must stay float" if kind == TensorProto.INT32 else "int8 is signed"
        yield f"codes of type {name}, where {what}"
        return
    if len(node.input) > 2 and node.input[2]:
        zero = index.constant(node.input[2])
        if zero is None:
            yield "a zero point that is computed, where it must be 0"
        elif numpy_helper.to_array(zero).astype(float).any():
            yield "a zero point that is not 0"
    scale = index.constant(node.input[1])
    if scale is not None and not (numpy_helper.to_array(scale).astype(float) > 0).all():
        yield "a scale that is not positive"
    if scale is not None and math.prod(scale.dims) > 1 and node.op_type == "DequantizeLinear":
        yield from _check_axis(node, index)


def _check_axis(node: NodeProto, index: GraphIndex) -> Iterator[str]:
    """Scales a channel are for constant weights, along the axis of their output channels."""
    if attribute(node, "block_size", 0):
        return
    if index.constant(node.input[0]) is None:
        if _is_quantized_constant(node, index):
            return
        yield "a scale for each channel of an activation, where one must do for all"
        return
    for reader in index.readers[node.output[0]]:
        wanted = _CHANNEL_AXIS.get(index.nodes[reader].op_type)
        if wanted is not None and attribute(node, "axis", 1) != wanted:
            yield f"weights with a scale along axis {attribute(node, 'axis', 1)}, not {wanted}"


def _is_quantized_constant(node: NodeProto, index: GraphIndex) -> bool:
    """Whether what is dequantized are constant weights behind a QuantizeLinear."""
    producer = index.producer.get(node.input[0])
    if producer is None or index.nodes[producer].op_type != "QuantizeLinear":
        return False
    return index.constant(index.nodes[producer].input[0]) is not None


def read_stray_float(path: Path) -> tuple[str, ...]:
    """What `find_stray_float` finds in an ONNX file.

    Raises:
        LoadError: the file is not ONNX.
    """
    return find_stray_float(read_model(path, weights=False))


def find_stray_float(model: onnx.ModelProto) -> tuple[str, ...]:
    """Module paths of layers in float32 that stand between int8 layers of a 16-bit graph.

    Such a layer is correct, and costs its own time in float32 and two conversions. In a graph
    without 16-bit tensors float32 is what was asked for, and nothing is stray.
    """
    types = element_types(model)
    if not _HALVES & set(types.values()):
        return ()
    index = GraphIndex(model)
    found: dict[str, None] = {}
    for node in model.graph.node:
        if node.op_type in _BOUNDARIES | _MOVING or not _is_float(node, types):
            continue
        before = any(_leads_to_int8(name, index, forward=False) for name in node.input)
        behind = any(_leads_to_int8(name, index, forward=True) for name in node.output)
        if before and behind:
            found[read_path(node)] = None
    return tuple(found)


def find_stray_loops(model: onnx.ModelProto) -> tuple[str, ...]:
    """Module paths of recurrent layers in float32 in a 16-bit graph.

    TensorRT runs them as loops, and its builder fails on many of them where a Cast from 16 bits
    comes before.
    """
    types = element_types(model)
    if not _HALVES & set(types.values()):
        return ()
    loops = [node for node in model.graph.node if node.op_type in _LOOPS]
    return tuple(dict.fromkeys(read_path(node) for node in loops if _is_float(node, types)))


def _is_float(node: NodeProto, types: dict[str, int]) -> bool:
    return any(types.get(name) == TensorProto.FLOAT for name in node.output)


def _leads_to_int8(name: str, index: GraphIndex, *, forward: bool) -> bool:
    """Whether the next node that is more than a move, on this side, is a Q or a DQ."""
    if index.constant(name) is not None:
        return False
    number = index.producer.get(name)
    nodes = index.readers[name] if forward else [] if number is None else [number]
    for number in nodes:
        node = index.nodes[number]
        if node.op_type in _BOUNDARIES:
            return not (node.op_type == "DequantizeLinear" and _dequantizes_weights(node, index))
        if node.op_type in _MOVING:
            next_name = node.output[0] if forward else node.input[0]
            if _leads_to_int8(next_name, index, forward=forward):
                return True
    return False


def _dequantizes_weights(node: NodeProto, index: GraphIndex) -> bool:
    return index.constant(node.input[0]) is not None or _is_quantized_constant(node, index)
