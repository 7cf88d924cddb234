"""Shape inference that also does the arithmetic of sizes: what a graph computes from its shapes.

An exporter writes the size of an enlarged map as a product of sizes of the map before, through
operators that ONNX's own propagation stops at, and every shape behind it stays unknown. Where the
inputs have sizes, all of that are small constants. Needs no torch.
"""

import math
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from export.onnx.graph import is_standard
from export.onnx.tensor_types import without_weights

Array = np.ndarray[Any, Any]

_ARITHMETIC = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Mod", "Neg", "Min", "Max", "Floor", "Ceil", "Cast"),
        *("Concat", "Constant", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Unsqueeze"),
    }
)
_FEW = 64
"""Elements, above which a tensor holds no sizes."""


def infer_sizes(model: onnx.ModelProto) -> onnx.GraphProto:
    """The graph with the shape of every value that follows from those of its inputs.

    Args:
        model: its inputs have sizes. It may be changed: nodes that compute sizes become constants.
    """
    light = without_weights(model)
    while True:
        graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        if not _store_sizes(light, graph):
            return graph


def read_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """The shapes of all values that are known to the last size."""
    shapes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _store_sizes(model: onnx.ModelProto, inferred: onnx.GraphProto) -> bool:
    """Whether nodes of `model` became constants."""
    shapes = read_shapes(inferred)
    known = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) <= _FEW and tensor.data_location != onnx.TensorProto.EXTERNAL
    }
    outputs = {value.name for value in model.graph.output}
    kept, done = [], []
    for node in model.graph.node:
        value = None if outputs & {*node.output} else _compute(node, known, shapes, model)
        if value is None or value.size > _FEW:
            kept.append(node)
        else:
            known[node.output[0]] = value
            done.append(numpy_helper.from_array(value, node.output[0]))
    if done:
        model.graph.initializer.extend(done)
        del model.graph.node[:]
        model.graph.node.extend(kept)
    return bool(done)


def _compute(
    node: onnx.NodeProto,
    known: dict[str, Array],
    shapes: dict[str, tuple[int, ...]],
    model: onnx.ModelProto,
) -> Array | None:
    if not is_standard(node):
        return None
    if node.op_type == "Shape" and node.input[0] in shapes:
        ends = {item.name: item.i for item in node.attribute}
        return np.array(shapes[node.input[0]][ends.get("start", 0) : ends.get("end")], np.int64)
    if node.op_type not in _ARITHMETIC or not all(name in known for name in node.input if name):
        return None
    names = [name for name in node.input if name]
    inputs = [onnx.helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(names)]
    result = onnx.helper.make_empty_tensor_value_info(node.output[0])
    graph = onnx.helper.make_graph([node], "size", inputs, [result])
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    (value,) = ReferenceEvaluator(alone).run(None, {name: known[name] for name in names})
    return np.asarray(value)
