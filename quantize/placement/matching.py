"""What a node is to a rule: its constant weights, its activation, whether it only moves values."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from export.onnx.graph import FIXED, GraphIndex, attribute, name_node
from quantize.scheme import QuantScheme


@dataclass(frozen=True)
class WeightUse:
    """The constant operands of one int8 operator: indices of the node and of its inputs."""

    node: int
    weight: str
    axis: int
    bias: str | None


def read_constant_weight(
    graph: GraphIndex, node: NodeProto, keep_float: Collection[str]
) -> TensorProto | str:
    """The float32 weights of an operator whose data is computed, or why it stays float."""
    if name_node(node) in keep_float:
        return "kept float as asked"
    weight = graph.constant(node.input[1])
    if weight is None:
        return "its weights are not constant"
    if weight.data_type != TensorProto.FLOAT:
        return f"its weights are {TensorProto.DataType.Name(weight.data_type).lower()}, not float"
    if graph.constant(node.input[0]) is not None:
        return "its data input is constant"
    if node.input[1].startswith(FIXED):
        return "its weights are the arithmetic of an operator"
    return weight


def match_weights(graph: GraphIndex, number: int, scheme: QuantScheme) -> WeightUse | str:
    """The constant operands of a weighted operator, or the reason why it stays float."""
    node = graph.nodes[number]
    weight = read_constant_weight(graph, node, scheme.keep_float)
    if isinstance(weight, str):
        return weight
    axis = _channel_axis(node, len(weight.dims))
    if axis is None:
        return f"weights of rank {len(weight.dims)} have no channel axis"
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and not attribute(node, "transA", 0)
        if not plain or (bias and attribute(node, "beta", 1.0) != 1.0):
            return "Gemm with alpha, beta or transA has no int8 kernel"
    if bias and scheme.integer_bias:
        constant = graph.constant(bias)
        if constant is None:
            return "its bias is not constant"
        if list(constant.dims) != [weight.dims[axis]]:
            return "its bias is not one value a channel"
        if not np.isfinite(numpy_helper.to_array(constant)).all():
            return "its bias holds NaN or infinity, which is no integer"
    return WeightUse(number, node.input[1], axis, bias)


def _channel_axis(node: NodeProto, rank: int) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if rank != 2:
        return None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1


def keeps_codes(node: NodeProto) -> bool:
    """Whether what comes out is made of the very codes that go in."""
    if node.op_type == "Resize":
        return bool(attribute(node, "mode", b"nearest") == b"nearest")
    return node.op_type == "Split" or not any(node.output[1:])


def zero_based_ceiling(graph: GraphIndex, number: int) -> float | None:
    """Upper end of a Relu (infinite) or of a Clip that starts at 0; None for anything else."""
    node = graph.nodes[number]
    if node.op_type == "Relu":
        return float("inf")
    if node.op_type != "Clip" or len(node.input) < 2:
        return None
    bounds = [graph.constant(name) for name in node.input[1:3] if name]
    if any(bound is None for bound in bounds) or not node.input[1]:
        return None
    values = [float(numpy_helper.to_array(bound).reshape(())) for bound in bounds if bound]
    if values[0] != 0:
        return None
    return values[1] if len(values) > 1 else float("inf")
