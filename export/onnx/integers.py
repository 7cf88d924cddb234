"""What is known of the integers of an ONNX graph, whatever its inputs hold: types, and bounds.

A tensor is a *size* where it comes from shapes and constants alone, and so is a natural number that
no arithmetic of a graph overflows; it is *natural* where it is not below zero; else nothing is
known. Every rule errs to the side of knowing nothing.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from export.onnx.graph import is_standard
from export.onnx.tensor_types import without_weights

Array = np.ndarray[Any, Any]

_SIGNED = frozenset({TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64})
_UNSIGNED = frozenset(
    {TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64}
)
_SMALL = frozenset({TensorProto.BOOL, TensorProto.UINT8, TensorProto.UINT16})
_NARROW = _SMALL | {TensorProto.INT8, TensorProto.INT16}
"""Types whose values, cast to int32 or int64, are never the least one."""
_WRAPPING = frozenset({TensorProto.INT8, TensorProto.INT16})
"""Types in which natural numbers of others may be negative, as 255 is -1."""
_LARGEST_SIZE = 2**31 - 1
_MOVES = frozenset({"Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity"}) | {
    "Reshape",
    "Slice",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}
"""Operators that hand on values of their first input and make no others."""


class Kind(IntEnum):
    """What is known of a tensor; the larger, the more."""

    ANY = 0
    NATURAL = 1
    SIZE = 2


class IntegerFacts:
    """What is known in one graph of a model; names of the graphs around it count as well.

    Attributes:
        graph: the one that names are looked up in.
    """

    def __init__(
        self, graph: GraphProto, types: GraphProto, outer: "IntegerFacts | None" = None
    ) -> None:
        self.graph = graph
        self._outer = outer
        given = (*types.value_info, *types.input, *types.output)
        self._types: dict[str, int] = {
            value.name: value.type.tensor_type.elem_type for value in given
        }
        self._types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output if name}
        fed = {value.name for value in graph.input}
        self._constants = {t.name: t for t in graph.initializer if t.name not in fed}
        self._local = fed | {*self._producers, *self._constants}
        self._kinds: dict[str, Kind] = {}

    def type_of(self, name: str) -> int:
        """Its `TensorProto.DataType`; UNDEFINED where inference did not find it."""
        found = self._types.get(name, TensorProto.UNDEFINED)
        if found == TensorProto.UNDEFINED and self._outer is not None and name not in self._local:
            return self._outer.type_of(name)
        return found

    def is_integer(self, name: str) -> bool:
        """Whether it holds integers."""
        return self.type_of(name) in _SIGNED | _UNSIGNED

    def may_be_minus_one(self, name: str) -> bool:
        """Whether a value of it may be -1."""
        values = self.constant(name)
        if values is not None:
            return bool((values == -1).any())
        return self._kind(name) == Kind.ANY and not self._replaces_minus_one(name)

    def may_be_zero(self, name: str) -> bool:
        """Whether a value of it may be zero; sizes are taken for such as are not."""
        values = self.constant(name)
        if values is not None:
            return not values.all()
        return self._kind(name) != Kind.SIZE and not self._has_bound(name)

    def may_be_least(self, name: str) -> bool:
        """Whether a value of it may be the least one of its type."""
        values = self.constant(name)
        if values is not None:
            least = np.iinfo(values.dtype).min if values.dtype.kind == "i" else None
            return bool((values == least).any())
        node = self._producer(name)
        if node is not None and node.op_type == "Cast" and self.type_of(node.input[0]) in _NARROW:
            return False
        return self._kind(name) == Kind.ANY

    def constant(self, name: str) -> Array | None:
        """Its values, where they are in the graph itself."""
        scope = self._scope(name)
        if scope is None:
            return None
        tensor = scope._constants.get(name)
        node = scope._producers.get(name)
        if node is not None and node.op_type == "Constant" and is_standard(node):
            item = node.attribute[0]
            if item.name in ("value_int", "value_ints"):
                return np.asarray(helper.get_attribute_value(item), np.int64)
            tensor = item.t if item.name == "value" else None
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
            return None
        return numpy_helper.to_array(tensor)

    def _scope(self, name: str) -> "IntegerFacts | None":
        """The innermost graph that has `name`."""
        if name in self._local or self._outer is None:
            return self if name in self._local else None
        return self._outer._scope(name)

    def _producer(self, name: str) -> NodeProto | None:
        scope = self._scope(name)
        node = None if scope is None else scope._producers.get(name)
        return node if node is not None and is_standard(node) else None

    def _replaces_minus_one(self, name: str) -> bool:
        """Whether it is ``Where(b == -1, c, b)`` with a constant c that is not -1."""
        node = self._producer(name)
        if node is None or node.op_type != "Where":
            return False
        condition, replacement, kept = node.input
        asked = self._producer(condition)
        if asked is None or asked.op_type != "Equal" or kept not in asked.input:
            return False
        compared = [self.constant(other) for other in asked.input if other != kept]
        values = self.constant(replacement)
        return (
            values is not None
            and not (values == -1).any()
            and any(other is not None and (other == -1).all() for other in compared)
        )

    def _has_bound(self, name: str) -> bool:
        """Whether it is the larger one of anything and a constant above zero."""
        node = self._producer(name)
        if node is not None and node.op_type == "Clip":
            limits = [self._is_positive(limit) for limit in node.input[1:] if limit]
            return len(node.input) > 1 and bool(node.input[1]) and all(limits)
        return (
            node is not None and node.op_type == "Max" and any(map(self._is_positive, node.input))
        )

    def _is_positive(self, name: str) -> bool:
        values = self.constant(name)
        return values is not None and bool((values > 0).all())

    def _kind(self, name: str) -> Kind:
        """What is known of `name`; in one walk over what it is computed from."""
        scope = self._scope(name)
        if scope is None:
            return Kind.ANY
        stack = [name]
        while stack:  # no recursion: graphs are thousands of nodes deep
            current = stack[-1]
            node = scope._producers.get(current)
            inner = [] if node is None else [n for n in node.input if n in scope._local]
            unknown = [n for n in inner if n not in scope._kinds]
            if unknown and current not in scope._kinds:
                stack += unknown
                continue
            stack.pop()
            scope._kinds.setdefault(current, scope._judge(current, node))
        return scope._kinds[name]

    def _judge(self, name: str, node: NodeProto | None) -> Kind:
        values = self.constant(name)
        if values is not None:
            return _judge_values(values)
        if node is None or not is_standard(node):
            return Kind.ANY
        return self._judge_operator(node, [self._known(given) for given in node.input])

    def _known(self, name: str) -> Kind:
        if name in self._kinds or self._outer is None or name in self._local:
            return self._kinds.get(name, Kind.ANY)
        return self._outer._kind(name)

    def _judge_operator(self, node: NodeProto, kinds: list[Kind]) -> Kind:
        match node.op_type:
            case "Shape" | "Size":
                return Kind.SIZE
            case "Cast":
                return self._judge_cast(node, kinds[0])
            case "Concat" | "Min" | "Div" | "Mod":
                return min(kinds)
            case "Where":
                return min(kinds[1:])
            case "Add" | "Mul":
                return Kind.SIZE if min(kinds) == Kind.SIZE else Kind.ANY
            case "Max":
                return min(kinds) or min(max(kinds), Kind.NATURAL)
            case "Clip":
                given = [kind for kind, name in zip(kinds, node.input, strict=True) if name][1:]
                bounded = len(kinds) > 1 and node.input[1] and min(given) > Kind.ANY
                return Kind.NATURAL if bounded else Kind.ANY
            case kind if kind in _MOVES:
                return kinds[0]
        return Kind.ANY

    def _judge_cast(self, node: NodeProto, kind: Kind) -> Kind:
        source = self.type_of(node.input[0])
        target = next(item.i for item in node.attribute if item.name == "to")
        if target in _WRAPPING:
            return Kind.ANY
        if source in _SMALL:
            return max(kind, Kind.NATURAL)
        if source not in _SIGNED:
            return Kind.ANY
        widens = target == TensorProto.INT64
        return kind if kind == Kind.SIZE or widens else Kind.ANY


def _judge_values(values: Array) -> Kind:
    """A constant is a size where int32 has room for it."""
    if values.dtype.kind not in "iub" or not (values >= 0).all():
        return Kind.ANY
    return Kind.SIZE if (values <= _LARGEST_SIZE).all() else Kind.NATURAL


def list_facts(model: onnx.ModelProto) -> list[IntegerFacts]:
    """What is known in the graph of `model` and in every graph within it, the outermost first."""
    typed = onnx.shape_inference.infer_shapes(without_weights(model))
    return list(_list(model.graph, typed.graph, None))


def list_subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs that are attributes of `node`: branches, and bodies of loops."""
    return [
        graph
        for item in node.attribute
        for graph in ([item.g] if item.type == AttributeProto.GRAPH else item.graphs)
    ]


def _list(
    graph: GraphProto, typed: GraphProto, outer: IntegerFacts | None
) -> Iterator[IntegerFacts]:
    facts = IntegerFacts(graph, typed, outer)
    yield facts
    for node, twin in zip(graph.node, typed.node, strict=True):
        for inner, inner_typed in zip(list_subgraphs(node), list_subgraphs(twin), strict=True):
            yield from _list(inner, inner_typed, facts)
