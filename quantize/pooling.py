"""A mean over all spatial axes → GlobalAveragePool, which ONNX Runtime runs in int8.

``AdaptiveAvgPool2d(1)`` and ``x.mean((2, 3))`` leave the exporter as ReduceMean, which has no int8
kernel there. The float32 model keeps it: ONNX Runtime's GlobalAveragePool adds up a plane in one
sum, and over 64x64 values it loses two to eight times as much as ReduceMean (ONNX Runtime 1.32 on
x86 with AVX-512).
"""

import onnx
from onnx import NodeProto, helper, numpy_helper

from export.graph import GraphIndex, attribute, is_standard
from export.tensor_types import float_ranks


def use_global_pooling(model: onnx.ModelProto) -> dict[str, str]:
    """Rewrite `model` in place; a Flatten follows a pool where the mean keeps no axes.

    Returns:
        Every tensor that is new, with the tensor of the original model that holds the same values:
        a range calibrated on the original under that name holds for the new one.
    """
    means = {node.output[0] for node in _find_means(model)}
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    twins: dict[str, str] = {}
    body: list[NodeProto] = []
    for node in model.graph.node:
        if not means.intersection(node.output):
            body.append(node)
            continue
        mean = node.output[0]
        if attribute(node, "keepdims", 1):
            body.append(_replace(node, "GlobalAveragePool", node.input[0], mean))
            continue
        pooled = _name_freely(f"{mean}_pool", taken)
        twins[pooled] = mean
        body.append(_replace(node, "GlobalAveragePool", node.input[0], pooled))
        flatten = _replace(node, "Flatten", pooled, mean)
        flatten.name = f"{node.name}_flatten"
        body.append(flatten)
    del model.graph.node[:]
    model.graph.node.extend(body)
    return twins


def _replace(node: NodeProto, kind: str, source: str, result: str) -> NodeProto:
    """A node of another operator, with its defaults, under the name and metadata of `node`."""
    new = helper.make_node(kind, [source], [result], name=node.name)
    new.metadata_props.extend(node.metadata_props)
    return new


def _find_means(model: onnx.ModelProto) -> list[NodeProto]:
    """The ReduceMean nodes over exactly the spatial axes of a float tensor."""
    nodes = [n for n in model.graph.node if n.op_type == "ReduceMean" and is_standard(n)]
    if not nodes:
        return []
    graph, ranks = GraphIndex(model), float_ranks(model)
    found = []
    for node in nodes:
        rank, axes = ranks.get(node.input[0], 0), _read_axes(node, graph)
        if rank >= 3 and {axis % rank for axis in axes} == set(range(2, rank)):
            found.append(node)
    return found


def _read_axes(node: NodeProto, graph: GraphIndex) -> list[int]:
    """Of the attribute before opset 18, of the constant input from then on; empty where unknown."""
    if (axes := attribute(node, "axes", None)) is not None:
        return list(axes)
    constant = graph.constant(node.input[1]) if len(node.input) > 1 else None
    return [] if constant is None else [int(a) for a in numpy_helper.to_array(constant).ravel()]


def _name_freely(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name
