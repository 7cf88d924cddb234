"""Integer divisions that end a process → such as do not.

The least integer of a type divided by -1 has no result in that type, and the CPU answers by a
signal (SIGFPE) that ends the process: ONNX Runtime divides int32 and int64 as they come, and its
older releases their remainder. Where a divisor may be -1 and a dividend the least integer, a node
gets another divisor b', and a division another dividend:

    b' = Where(b == -1, 1, b)        a / b → (a * Where(b == -1, -1, 1)) / b'        a % b → a % b'

Products wrap, so the least integer divided by -1 is itself, as ``torch.floor_divide`` has it; every
other result stays what it was. Division by zero is left alone, since it has no result: from 1.26 on
ONNX Runtime refuses it, and its older releases end as above.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from export.onnx.graph import TensorNames, attribute, is_standard, node_label
from export.onnx.integers import Array, IntegerFacts, list_facts, list_subgraphs

_TRAPPING = frozenset({TensorProto.INT32, TensorProto.INT64})
"""Narrower ones are divided as int32, which has room for their results."""


def guard_division(model: onnx.ModelProto) -> int:
    """Rewrite `model` in place where the least integer may be divided by -1, and count the places.

    Left alone is where neither can be: divisors and dividends that are constants without such a
    value, or come from shapes, or are bounded. Every node and every tensor keeps its name.
    """
    names, places = TensorNames(model), 0

    def store(wanted: str, values: Array) -> str:
        name = names.take(wanted)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    for facts, found in itertools.groupby(_find(model, _may_overflow), lambda pair: pair[0]):
        writer = _Writer(facts, names, store)
        for _, node in found:
            writer.guard(node)
            places += 1
        writer.finish()
    if places:
        _drop_unread(model.graph)
    return places


def find_trapping(model: onnx.ModelProto, *, by_zero: bool = False) -> tuple[str, ...]:
    """What to call the integer divisions of `model` by which values of its inputs end a process.

    Args:
        model: its weights need not be loaded.
        by_zero: name those as well whose divisor may be zero.
    """
    return tuple(
        node_label(node)
        for _, node in _find(
            model,
            lambda facts, node: (
                _may_overflow(facts, node) or (by_zero and facts.may_be_zero(node.input[1]))
            ),
        )
    )


def _find(
    model: onnx.ModelProto, exposed: Callable[[IntegerFacts, NodeProto], bool]
) -> list[tuple[IntegerFacts, NodeProto]]:
    """The integer divisions that are `exposed`, with what is known where they stand."""
    if not any(_divides(node) for node in _walk(model.graph)):
        return []
    return [
        (facts, node)
        for facts in list_facts(model)
        for node in facts.graph.node
        if _divides(node) and facts.is_integer(node.output[0]) and exposed(facts, node)
    ]


def _may_overflow(facts: IntegerFacts, node: NodeProto) -> bool:
    dividend, divisor = node.input
    return (
        facts.type_of(node.output[0]) in _TRAPPING
        and facts.may_be_minus_one(divisor)
        and facts.may_be_least(dividend)
    )


def _divides(node: NodeProto) -> bool:
    """Whether it is a division, or a remainder but that of C, which is computed in double."""
    if not is_standard(node):
        return False
    return node.op_type == "Div" or (node.op_type == "Mod" and not attribute(node, "fmod", 0))


def _walk(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for inner in list_subgraphs(node):
            yield from _walk(inner)


def _drop_unread(graph: GraphProto) -> None:
    """Forget the initializers that nothing reads, as a divisor that another one replaced."""
    read = {name for node in _walk(graph) for name in node.input}
    for within in (graph, *(g for node in _walk(graph) for g in list_subgraphs(node))):
        read |= {value.name for value in (*within.output, *within.input)}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)


class _Writer:
    """Puts nodes in front of the divisions of one graph.

    Args:
        store: makes a constant of the model, of the name wished for and these values.
        names: of all tensors of the model.
    """

    def __init__(
        self, facts: IntegerFacts, names: TensorNames, store: Callable[[str, Array], str]
    ) -> None:
        self._facts, self._names, self._store = facts, names, store
        self._pairs: dict[str, tuple[str, str]] = {}
        self._before: dict[str, list[NodeProto]] = {}

    def guard(self, node: NodeProto) -> None:
        """Give `node` a divisor that is not -1, and the dividend that goes with it."""
        dividend, divisor = node.input
        if divisor not in self._pairs:
            values = self._facts.constant(divisor)
            if values is None:
                self._pairs[divisor] = self._compute(node, divisor)
            else:
                ones, minus = np.ones_like(values), values == -1
                self._pairs[divisor] = (
                    self._store(f"{divisor}_sign", np.where(minus, -ones, ones)),
                    self._store(f"{divisor}_not_minus_one", np.where(minus, ones, values)),
                )
        sign, node.input[1] = self._pairs[divisor]
        if node.op_type == "Div":
            node.input[0] = self._add(node, "Mul", [dividend, sign], f"{dividend}_signed")

    def finish(self) -> None:
        """Write the nodes back, each behind what was put in front of it."""
        graph = self._facts.graph
        body = [
            part for node in graph.node for part in (*self._before.get(node.output[0], ()), node)
        ]
        del graph.node[:]
        graph.node.extend(body)

    def _compute(self, node: NodeProto, divisor: str) -> tuple[str, str]:
        """The sign that goes to the dividend, and the divisor without it, as tensors."""
        kind = helper.tensor_dtype_to_np_dtype(self._facts.type_of(node.output[0]))
        one = self._store(f"one_{kind}", np.ones((), kind))
        minus_one = self._store(f"minus_one_{kind}", -np.ones((), kind))
        asked = self._add(node, "Equal", [divisor, minus_one], f"{divisor}_is_minus_one")
        return (
            self._add(node, "Where", [asked, minus_one, one], f"{divisor}_sign"),
            self._add(node, "Where", [asked, one, divisor], f"{divisor}_not_minus_one"),
        )

    def _add(self, node: NodeProto, kind: str, inputs: list[str], wanted: str) -> str:
        """A new node in front of `node`, of the same module of the user; the name of its output."""
        output = self._names.take(wanted)
        new = helper.make_node(kind, inputs, [output], name=self._names.take(f"node_{output}"))
        new.metadata_props.extend(node.metadata_props)
        self._before.setdefault(node.output[0], []).append(new)
        return output
