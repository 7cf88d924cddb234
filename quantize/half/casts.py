"""Rewrites a float32 graph so that every node runs in the type chosen for it.

Where a producer and its readers differ, one Cast, shared by the readers, stands behind the
producer. Casts that the model has already are retyped like any node.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from quantize.half.typed_graph import FLOAT, HalfType, TypedGraph, copy_node

_TYPE_ATTRIBUTES = ("to", "output_dtype", "dtype")


def retype(
    proto: onnx.ModelProto, graph: TypedGraph, kept: Collection[int], *, keep_io_types: bool
) -> None:
    """Rewrite nodes, initializers and, unless `keep_io_types`, inputs and outputs of `proto`.

    Args:
        proto: the model that `graph` was made from; changed in place.
        graph: its types.
        kept: numbers of the nodes that stay in float32.
        keep_io_types: float32 inputs and outputs stay so.
    """
    casts = _Casts(graph, FLOAT if keep_io_types else graph.half.element)
    wanted = _wanted_types(graph, kept, casts.public)
    body: list[NodeProto] = list(casts.after([v.name for v in proto.graph.input], wanted))
    for number, node in enumerate(graph.nodes):
        renamed = copy_node(node)
        for is_output, position, name, allowed in graph.slots(node):
            kind = graph.half.element if allowed and number not in kept else FLOAT
            if is_output:
                casts.native[name] = kind
                renamed.output[position] = casts.name(name, kind)
            else:
                renamed.input[position] = casts.name(name, kind)
        if number not in kept:
            _retype_attributes(renamed, graph.half)
        body.append(renamed)
        body.extend(casts.after(node.output, wanted))
    _retype_initializers(proto, graph, wanted, casts)
    del proto.graph.node[:]
    proto.graph.node.extend(body)
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        if graph.types.get(value.name) == FLOAT:
            value.type.tensor_type.elem_type = casts.public


def _wanted_types(graph: TypedGraph, kept: Collection[int], public: int) -> dict[str, set[int]]:
    """Tensor → the types that its readers ask for; a graph output asks for `public`."""
    wanted: dict[str, set[int]] = defaultdict(set)
    for name in graph.outputs:
        wanted[name].add(public)
    for number, node in enumerate(graph.nodes):
        for is_output, _, name, allowed in graph.slots(node):
            if not is_output:
                half = allowed and number not in kept
                wanted[name].add(graph.half.element if half else FLOAT)
    return wanted


class _Casts:
    """Names of every tensor in both types, and the Casts between them."""

    def __init__(self, graph: TypedGraph, public: int) -> None:
        self._graph = graph
        self.public = public
        self.native: dict[str, int] = dict.fromkeys(graph.inputs, public)
        self._taken = set(graph.types) | {name for node in graph.nodes for name in node.output}
        self._names: dict[tuple[str, int], str] = {}

    def name(self, name: str, kind: int) -> str:
        """The tensor's name in type `kind`: its own where it is made so and no output forbids."""
        key = (name, kind)
        if key not in self._names:
            if name in self._graph.outputs:
                own = self.public
            else:
                own = FLOAT if name in self._graph.constants else self.native[name]
            self._names[key] = name if kind == own else self._fresh(name, kind)
        return self._names[key]

    def after(self, names: Collection[str], wanted: dict[str, set[int]]) -> Iterator[NodeProto]:
        """The Casts that stand behind the tensors `names`."""
        for name in names:
            made = self.native.get(name)
            for kind in sorted(wanted.get(name, set()) - {made}) if made else ():
                source, result = self.name(name, made or FLOAT), self.name(name, kind)
                yield helper.make_node("Cast", [source], [result], name=f"{result}_Cast", to=kind)

    def _fresh(self, name: str, kind: int) -> str:
        candidate = f"{name}_{'fp32' if kind == FLOAT else self._graph.half.name}"
        while candidate in self._taken:
            candidate += "_"
        self._taken.add(candidate)
        return candidate


def _retype_attributes(node: NodeProto, half: HalfType) -> None:
    for item in node.attribute:
        if item.name in _TYPE_ATTRIBUTES and item.i == FLOAT:
            item.i = half.element
        if node.op_type == "ConstantOfShape" and item.t.data_type == FLOAT:
            item.t.CopyFrom(_to_half(item.t, "", half))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        zero = numpy_helper.from_array(np.zeros(1, half.dtype))
        node.attribute.append(helper.make_attribute("value", zero))


def _retype_initializers(
    proto: onnx.ModelProto, graph: TypedGraph, wanted: dict[str, set[int]], casts: _Casts
) -> None:
    half = graph.half
    for tensor in list(proto.graph.initializer):
        if tensor.name not in graph.constants or half.element not in wanted[tensor.name]:
            continue
        new = _to_half(tensor, casts.name(tensor.name, half.element), half)
        proto.graph.initializer.append(new)
        if FLOAT not in wanted[tensor.name]:
            proto.graph.initializer.remove(tensor)


def _to_half(tensor: TensorProto, name: str, half: HalfType) -> TensorProto:
    with np.errstate(under="ignore", over="raise"):
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(half.dtype), name)
