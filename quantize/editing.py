"""Adds nodes to an ONNX graph, or puts them in place of others, with constants of their own."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from export.onnx.graph import GraphIndex, TensorNames


class GraphEdit:
    """Gathers changes to the nodes of `proto`; `finish` makes them.

    The graph's order stays as it is: what is new stands at the head, behind a node, or where the
    node stood that it replaces.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.graph = GraphIndex(proto)
        self._proto = proto
        self._names = TensorNames(proto)
        self._head: list[NodeProto] = []
        self._replacements: dict[int, Sequence[NodeProto]] = {}
        self._followers: dict[int, list[NodeProto]] = defaultdict(list)

    def name(self, name: str) -> str:
        """`name`, or the first of ``name_1``, ``name_2`` ... that no tensor has."""
        return self._names.take(name)

    def store(self, name: str, array: np.ndarray) -> str:
        """A new initializer; returns its name."""
        name = self.name(name)
        self._proto.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def lead(self, *nodes: NodeProto) -> None:
        """Put `nodes` before all of the graph, behind those that were put there earlier."""
        self._head.extend(nodes)

    def follow(self, number: int, nodes: Sequence[NodeProto]) -> None:
        """Put `nodes` behind node `number`, and behind those that follow it already."""
        self._followers[number].extend(nodes)

    def replace(self, number: int, nodes: Sequence[NodeProto]) -> None:
        """Put `nodes` where node `number` stands; its metadata goes to each of them."""
        for node in nodes:
            node.metadata_props.extend(self.graph.nodes[number].metadata_props)
        self._replacements[number] = nodes

    def import_domain(self, domain: str, version: int) -> None:
        """Let the model use the operators of `domain`."""
        if all(item.domain != domain for item in self._proto.opset_import):
            self._proto.opset_import.append(onnx.helper.make_opsetid(domain, version))

    def finish(self) -> None:
        """Change the model in place; constants that nobody reads any more go."""
        body = list(self._head)
        for number, node in enumerate(self.graph.nodes):
            body.extend(self._replacements.get(number, [node]))
            body.extend(self._followers.get(number, ()))
        body = self._drop_unread(body)
        del self._proto.graph.node[:]
        self._proto.graph.node.extend(body)

    def _drop_unread(self, nodes: list[NodeProto]) -> list[NodeProto]:
        kept: list[NodeProto] = []
        read = self.graph.outputs | self.graph.captured
        for node in reversed(nodes):
            constant = node.op_type in ("Constant", "Identity") and self.graph.constant(
                node.output[0]
            )
            if not constant or node.output[0] in read:
                kept.append(node)
                read.update(node.input)
        read |= self.graph.inputs
        stored = self._proto.graph.initializer
        for number in reversed(range(len(stored))):  # what stays is not copied: it may be large
            if stored[number].name not in read:
                del stored[number]
        return kept[::-1]
