"""Channel-last chains over pixels → the same chains over a list of tokens: rank 4 → rank 3.

ConvNeXt and its kin turn a map to channels last, norm each pixel and send it through linear layers:
Transpose, LayerNormalization, MatMul, Gelu, MatMul. OpenVINO has no kernel for a norm over the last
axis of rank 4, and takes fewer operators into a MatMul of that rank than into one of rank 3. A
Reshape of adjacent axes moves nothing, so the values stay the same bit by bit.
"""

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from export.onnx.graph import GraphIndex, TensorNames, attribute, is_standard
from export.onnx.tensor_types import float_shapes

_CHANNELS_LAST = [0, 2, 3, 1]
_WORTH = frozenset({"LayerNormalization", "MatMul"})
_BINARY = frozenset({"Add", "Div", "Mul", "Sub"})
_UNARY = frozenset({"Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish"}) | {
    "Relu",
    "Sigmoid",
    "Softplus",
    "Tanh",
}

Shapes = dict[str, tuple[int | None, ...]]


def flatten_tokens(model: onnx.ModelProto) -> int:
    """Rewrite `model` in place behind every Transpose to channels last, and count the places.

    Left alone is what has no norm and no MatMul, and what has a dynamic size other than the batch.
    Every node and every tensor keeps its name; a Reshape stands where a chain begins and ends.
    """
    graph, shapes = GraphIndex(model), float_shapes(model)
    regions = {}
    for node in graph.nodes:
        if node.op_type == "Transpose" and attribute(node, "perm", None) == _CHANNELS_LAST:
            region = _grow(graph, shapes, node.output[0])
            if any(graph.nodes[number].op_type in _WORTH for number in region):
                regions[node.output[0]] = region
    rewriter = _Rewriter(model, graph, shapes)
    for start, region in regions.items():
        rewriter.flatten(start, region)
    rewriter.finish()
    return len(regions)


def _grow(graph: GraphIndex, shapes: Shapes, start: str) -> list[int]:
    """Numbers of the nodes behind `start` that treat every pixel alike, in the graph's order."""
    inside, region = {start}, []
    for number, node in enumerate(graph.nodes):
        results = [name for name in node.output if name]
        if len(results) != 1 or not is_standard(node) or not _is_map(shapes, results[0]):
            continue
        if inside.intersection(node.input) and _is_pointwise(graph, node, inside):
            inside.add(results[0])
            region.append(number)
    return region if _is_map(shapes, start) else []


def _is_map(shapes: Shapes, name: str) -> bool:
    """Rank 4 with all sizes but the batch known."""
    shape = shapes.get(name, ())
    return len(shape) == 4 and None not in shape[1:]


def _is_pointwise(graph: GraphIndex, node: NodeProto, inside: set[str]) -> bool:
    if node.op_type in _UNARY:
        return True
    if node.op_type == "LayerNormalization":
        return attribute(node, "axis", -1) in (-1, 3) and node.input[0] in inside
    if node.op_type == "MatMul":
        weight = graph.constant(node.input[1])
        return node.input[0] in inside and weight is not None and len(weight.dims) == 2
    return node.op_type in _BINARY and all(
        name in inside or _is_per_channel(graph, name) for name in node.input
    )


def _is_per_channel(graph: GraphIndex, name: str) -> bool:
    constant = graph.constant(name)
    return constant is not None and len(constant.dims) <= 1


class _Rewriter:
    """Puts Reshapes around regions."""

    def __init__(self, model: onnx.ModelProto, graph: GraphIndex, shapes: Shapes) -> None:
        self._model, self._graph, self._shapes = model, graph, shapes
        self._names = TensorNames(model)
        self._reshapes: dict[str, NodeProto] = {}
        self._changed: set[str] = set()

    def flatten(self, start: str, region: list[int]) -> None:
        """Rank 3 from `start` to the end of the region."""
        tokens = {start: self._names.take(f"{start}_tokens")}
        self._reshape(start, start, tokens[start])
        for number in region:
            name = self._graph.nodes[number].output[0]
            self._changed.add(name)
            if self._is_read_outside(name, region):
                tokens[name] = self._names.take(f"{name}_tokens")
                self._reshape(name, tokens[name], name)
        for number in region:
            node = self._graph.nodes[number]
            node.input[:] = [tokens.get(name, name) for name in node.input]
            node.output[0] = tokens.get(node.output[0], node.output[0])
            for item in node.attribute:
                if node.op_type == "LayerNormalization" and item.name == "axis":
                    item.i = -1

    def finish(self) -> None:
        """Write the nodes back, each Reshape behind the node that it reads; drop stale shapes."""
        graph, body = self._model.graph, []
        for node in self._graph.nodes:
            body.append(node)
            body.extend(self._reshapes[name] for name in node.output if name in self._reshapes)
        del graph.node[:]
        graph.node.extend(body)
        kept = [value for value in graph.value_info if value.name not in self._changed]
        del graph.value_info[:]
        graph.value_info.extend(kept)

    def _is_read_outside(self, name: str, region: list[int]) -> bool:
        graph = self._graph
        shown = name in graph.outputs or name in graph.captured
        return shown or any(reader not in region for reader in graph.readers[name])

    def _reshape(self, like: str, source: str, result: str) -> None:
        """A Reshape to tokens where `source` is the map `like` itself, else back to the map."""
        _, height, width, channels = (size or 0 for size in self._shapes[like])
        to_tokens = source == like
        sizes = (0, height * width, channels) if to_tokens else (0, height, width, channels)
        shape = self._names.take(f"{like}_sizes")
        values = numpy_helper.from_array(np.asarray(sizes, np.int64), shape)
        self._model.graph.initializer.append(values)
        name = self._names.take(f"{result}_reshape")
        node = helper.make_node("Reshape", [source, shape], [result], name=name)
        producer = self._graph.nodes[self._graph.producer[like]]
        node.metadata_props.extend(producer.metadata_props)
        self._reshapes[source] = node
