"""A mean over all spatial axes → GlobalAveragePool, which ONNX Runtime runs in int8.

``AdaptiveAvgPool2d(1)`` and ``x.mean((2, 3))`` leave the exporter as ReduceMean, which has no int8
kernel there. The float32 model keeps it: ONNX Runtime's GlobalAveragePool adds up a plane in one
sum, and over 64x64 values it loses two to eight times as much as ReduceMean (ONNX Runtime 1.32 on
x86 with AVX-512).
"""

import onnx
from onnx import NodeProto, helper, numpy_helper

from export.onnx.graph import GraphIndex, attribute, is_standard
from export.onnx.tensor_types import float_ranks
from quantize.editing import GraphEdit


def use_global_pooling(model: onnx.ModelProto) -> dict[str, str]:
    """Rewrite `model` in place; a Flatten follows a pool where the mean keeps no axes.

    Returns:
        Every tensor that is new, with the tensor of the original model that holds the same values:
        a range calibrated on the original under that name holds for the new one.
    """
    edit = GraphEdit(model)
    twins: dict[str, str] = {}
    for number in _find_means(model, edit.graph):
        node = edit.graph.nodes[number]
        source, mean = node.input[0], node.output[0]
        pooled = mean
        if not attribute(node, "keepdims", 1):
            pooled = edit.name(f"{mean}_pool")
            twins[pooled] = mean
        new = [helper.make_node("GlobalAveragePool", [source], [pooled], name=node.name)]
        if pooled != mean:
            new.append(helper.make_node("Flatten", [pooled], [mean], name=f"{node.name}_flatten"))
        edit.replace(number, new)
    edit.finish()
    return twins


def _find_means(model: onnx.ModelProto, graph: GraphIndex) -> list[int]:
    """Numbers of the ReduceMean nodes over exactly the spatial axes of a float tensor."""
    means = {
        number: node
        for number, node in enumerate(graph.nodes)
        if node.op_type == "ReduceMean" and is_standard(node)
    }
    ranks = float_ranks(model) if means else {}
    found = []
    for number, node in means.items():
        rank, axes = ranks.get(node.input[0], 0), _read_axes(node, graph)
        if rank >= 3 and {axis % rank for axis in axes} == set(range(2, rank)):
            found.append(number)
    return found


def _read_axes(node: NodeProto, graph: GraphIndex) -> list[int]:
    """Of the attribute before opset 18, of the constant input from then on; empty where unknown."""
    if (axes := attribute(node, "axes", None)) is not None:
        return list(axes)
    constant = graph.constant(node.input[1]) if len(node.input) > 1 else None
    return [] if constant is None else [int(a) for a in numpy_helper.to_array(constant).ravel()]
