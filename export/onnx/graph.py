"""Producers, readers and constants of an ONNX graph, and what to call its nodes."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import AttributeProto, NodeProto, TensorProto

STANDARD_DOMAINS = ("", "ai.onnx")
"""Both names of the domain of ONNX's own operators."""

SOURCE = "deploykit.source"
"""Key of the metadata of a node: the line of the user's source that it comes from."""
FIXED = "deploy.fixed."
"""How the names of matrices begin that stand for the arithmetic of an operator, which no training
made: rounding them to int8 would change what the operator is."""


class GraphIndex:
    """Producers, readers and constants of the top-level graph of a model, by tensor name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.nodes: list[NodeProto] = list(graph.node)
        self.outputs = {value.name for value in graph.output}
        self.inputs = {value.name for value in graph.input}
        self.uint8_inputs = {
            value.name
            for value in graph.input
            if value.type.tensor_type.elem_type == TensorProto.UINT8
        }
        self.producer: dict[str, int] = {}
        self.readers: dict[str, list[int]] = defaultdict(list)
        self._tensors = {
            tensor.name: tensor for tensor in graph.initializer if tensor.name not in self.inputs
        }
        self.captured: set[str] = set()
        for number, node in enumerate(self.nodes):
            for name in node.input:
                self.readers[name].append(number)
            self.captured.update(_captured_names(node))
            self.producer.update((name, number) for name in node.output if name)
            self._index_constant(node)

    def constant(self, name: str) -> TensorProto | None:
        """The constant tensor of that name, seen through Identity; None if it is computed."""
        return self._tensors.get(name)

    def only_reader(self, name: str) -> int | None:
        """The node that alone reads tensor `name`; None for none, several, or a graph output."""
        readers = self.readers[name]
        alone = len(readers) == 1 and name not in self.outputs and name not in self.captured
        return readers[0] if alone else None

    def _index_constant(self, node: NodeProto) -> None:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            self._tensors[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in self._tensors:
            self._tensors[node.output[0]] = self._tensors[node.input[0]]


class TensorNames:
    """The names of all tensors of a model's top-level graph, and of those that are added to it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._taken = {name for node in graph.node for name in (*node.input, *node.output)}
        self._taken.update(item.name for item in (*graph.initializer, *graph.input))
        self._taken.update(name for node in graph.node for name in _captured_names(node))

    def take(self, wanted: str) -> str:
        """`wanted`, or the first of ``wanted_1``, ``wanted_2`` ... that is free; free no longer."""
        name, number = wanted, 1
        while name in self._taken:
            name, number = f"{wanted}_{number}", number + 1
        self._taken.add(name)
        return name


def find_opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that `model` uses."""
    return max((i.version for i in model.opset_import if i.domain in STANDARD_DOMAINS), default=1)


def is_standard(node: NodeProto) -> bool:
    """Whether its operator is one of ONNX's own."""
    return node.domain in STANDARD_DOMAINS


def name_node(node: NodeProto) -> str:
    """Its name, or its first output where it has none: what options and reports call it."""
    return str(node.name or node.output[0])


def read_source(node: NodeProto) -> str:
    """``net.py:12``, the line of the user's source that it comes from; empty: not known."""
    return next((entry.value for entry in node.metadata_props if entry.key == SOURCE), "")


def node_label(node: NodeProto) -> str:
    """What to call a node in a message: its name, and the module path the exporter left on it.

    Of one that forward of the model itself made the line of the source in place of a path.
    """
    name = name_node(node)
    for item in node.metadata_props:
        if item.key == "pkg.torch.onnx.name_scopes":
            scopes = [part.strip(" '\"[]") for part in item.value.split(",")]
            paths = [part for part in scopes[:-1] if part]
            if paths:
                return f"{paths[-1]} ({name})"
    line = read_source(node)
    return f"{name} ({line})" if line else name


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Value of a node's attribute, or `default` where it is not set."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default


def _captured_names(node: NodeProto) -> Iterator[str]:
    for item in node.attribute:
        graphs = [item.g] if item.type == AttributeProto.GRAPH else list(item.graphs)
        for graph in graphs:
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from inner.input
                yield from _captured_names(inner)
