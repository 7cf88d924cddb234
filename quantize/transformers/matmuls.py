"""The MatMul and Gemm nodes of a model that multiply by constant weights: what transformers do.

They are where int8 without calibration, and weights in fewer bits, pay. `weight_share` says how
much of a model's work stands in them.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, numpy_helper

from export.artifacts import OnnxModel, Skip
from export.errors import NothingToQuantizeError, QuantizeError
from export.onnx.cost import model_cost
from export.onnx.graph import GraphIndex, attribute, is_standard, name_node, node_label
from quantize.placement.matching import read_constant_weight

MIN_WEIGHTS = 4096
"""Elements below which a matrix stays float: it is little work, and its scales cost some."""


@dataclass(frozen=True)
class ConstantMatMul:
    """``y = x @ w + bias`` with constant `w`.

    Attributes:
        node: its number in the graph.
        weight: name of the stored tensor.
        transposed: it is stored as [N, K].
        bias: of a Gemm; None without.
    """

    node: int
    weight: str
    transposed: bool
    bias: str | None


@dataclass
class MatMuls:
    """Those found, in the graph's order, and those that stay float with the reason."""

    found: list[ConstantMatMul] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)


def find_matmuls(graph: GraphIndex, *, what: str, keep_float: Collection[str] = ()) -> MatMuls:
    """All MatMul and Gemm nodes of `graph` that have constant float32 weights.

    Args:
        graph: of the float model.
        what: the precision, for the skips.
        keep_float: names of nodes that stay float.

    Raises:
        QuantizeError: `keep_float` names a node that is not there.
        NothingToQuantizeError: there is none.
    """
    names = {name_node(node) for node in graph.nodes}
    if unknown := sorted(set(keep_float) - names):
        raise QuantizeError(f"keep_float names no node of the model: {', '.join(unknown)}")
    result = MatMuls()
    for number, node in enumerate(graph.nodes):
        if node.op_type not in ("MatMul", "Gemm") or not is_standard(node):
            continue
        use = _match(graph, number, keep_float)
        if isinstance(use, str):
            result.skipped.append(Skip(node_label(node), what, use))
        else:
            result.found.append(use)
    if not result.found:
        reasons = "; ".join(f"{skip.where}: {skip.reason}" for skip in result.skipped[:3])
        raise NothingToQuantizeError(
            "The model has no MatMul or Gemm to put in fewer bits"
            + (f": {reasons}" if reasons else "; its work is elsewhere.")
        )
    return result


def read_weight(graph: GraphIndex, use: ConstantMatMul) -> np.ndarray:
    """The weights as [K, N], float32.

    Raises:
        QuantizeError: they hold NaN or infinity.
    """
    tensor = graph.constant(use.weight)
    assert tensor is not None  # find_matmuls has matched it
    weight: np.ndarray = numpy_helper.to_array(tensor)
    if not np.isfinite(weight).all():
        label = node_label(graph.nodes[use.node])
        raise QuantizeError(f"The weights of {label} hold NaN or infinity.")
    return np.ascontiguousarray(weight.T) if use.transposed else weight


def weight_share(model: OnnxModel) -> tuple[float, int]:
    """How much of a model multiplies by the weights of a MatMul or Gemm.

    Returns:
        Their share of the MACs of one sample, 0 to 1, and the number of those weights.
    """
    cost = model_cost(model)
    layers = [layer for layer in cost.layers if layer.op in ("MatMul", "Gemm") and layer.parameters]
    share = sum(layer.macs for layer in layers) / cost.macs if cost.macs else 0.0
    return share, sum(layer.parameters for layer in layers)


def _match(graph: GraphIndex, number: int, keep_float: Collection[str]) -> ConstantMatMul | str:
    node = graph.nodes[number]
    tensor = read_constant_weight(graph, node, keep_float)
    if isinstance(tensor, str):
        return tensor
    if len(tensor.dims) != 2:
        return f"its weights have rank {len(tensor.dims)}, not 2"
    if tensor.dims[0] * tensor.dims[1] < MIN_WEIGHTS:
        return f"{tensor.dims[0]}x{tensor.dims[1]} weights are too few to gain by"
    if node.op_type == "MatMul":
        return ConstantMatMul(number, node.input[1], False, None)
    return _match_gemm(node, number)


def _match_gemm(node: NodeProto, number: int) -> ConstantMatMul | str:
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    plain = attribute(node, "alpha", 1.0) == 1.0 and not attribute(node, "transA", 0)
    if not plain or (bias and attribute(node, "beta", 1.0) != 1.0):
        return "Gemm with alpha, beta or transA is no plain product"
    return ConstantMatMul(number, node.input[1], bool(attribute(node, "transB", 0)), bias)
