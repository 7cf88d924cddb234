"""The walk that applies a rule table of `rules` to a graph: which tensors get Q/DQ."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import NodeProto, TensorProto

from export.artifacts import Skip
from export.onnx.graph import GraphIndex, is_standard, name_node, node_label
from export.onnx.tensor_types import element_types
from quantize.placement.matching import WeightUse, keeps_codes, match_weights, zero_based_ceiling
from quantize.placement.pixels import find_pixels
from quantize.placement.rules import RULES, OpRule
from quantize.scheme import NARROW, PRESETS, QuantScheme


@dataclass(frozen=True)
class ActivationUse:
    """One activation tensor that gets a Q/DQ pair.

    Attributes:
        like: the tensor whose range it takes: itself, or the source of a chain of copies.
        ceiling: upper bound of its range (Clip(0, c)); None when there is none.
        from_zero: the range starts at 0, so an unsigned zero point is 0.
        read_by_all: every reader takes the dequantized tensor, not only the int8 operators.
        pair: it has a Q/DQ pair of its own; else it holds what a pair before it left.
        symmetric: zero point 0 whatever the scheme says: int8, or uint8 where nothing is below 0.
        narrow: int8 in the range of the scheme's weights, in whose place it is multiplied.
        pixels: it is a cast of a uint8 input, so that uint8 codes hold it as it is.
    """

    like: str
    ceiling: float | None = None
    from_zero: bool = False
    read_by_all: bool = False
    pair: bool = True
    symmetric: bool = False
    narrow: bool = False
    pixels: bool = False


@dataclass
class Placement:
    """What `place` decided; node numbers count in the graph's order."""

    activations: dict[str, ActivationUse] = field(default_factory=dict)
    weights: list[WeightUse] = field(default_factory=list)
    int8: set[int] = field(default_factory=set)
    skipped: list[Skip] = field(default_factory=list)


def place(graph: GraphIndex, scheme: QuantScheme) -> Placement:
    """Apply the rule table of `scheme` to `graph`."""
    walk = _Walk(graph, scheme)
    walk.start()
    walk.spread()
    result = walk.result
    for name, use in result.activations.items():
        if scheme.unsigned_activations and find_pixels(graph, use.like) is not None:
            result.activations[name] = replace(use, pixels=True)
    return result


def tensors_to_calibrate(graph: GraphIndex) -> tuple[str, ...]:
    """Names of the tensors whose range some preset needs, in the graph's order.

    The order lets calibration name a NaN where it starts.
    """
    names: dict[str, None] = {}
    for scheme in PRESETS.values():
        rules = RULES[scheme.placement]
        placement = place(graph, scheme)
        names.update((use.like, None) for use in placement.activations.values())
        for number, node in enumerate(graph.nodes):
            if rules.get(node.op_type, _NO_RULE).role == "residual" and _residual_operands(
                graph, number, placement
            ):
                names.update((name, None) for name in node.input)
    return tuple(sorted(names, key=lambda name: graph.producer.get(name, -1)))


_NO_RULE = OpRule("copy")
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_PARTS = frozenset({"Slice", "Split"})
"""What takes a tensor apart; its parts may differ in range unless one layer made them all."""


class _Walk:
    """One application of a rule table; `result` is filled as it goes."""

    def __init__(self, graph: GraphIndex, scheme: QuantScheme) -> None:
        self._graph, self._scheme = graph, scheme
        self._rules: Mapping[str, OpRule] = RULES[scheme.placement]
        self._narrow = scheme.weight_levels <= NARROW
        self._types: Mapping[str, int] | None = None
        self.result = Placement()

    def start(self) -> None:
        """The operators with weights, the tensors that they read and those that follow them."""
        result = self.result
        for number, node in enumerate(self._graph.nodes):
            rule = self._rules.get(node.op_type)
            if rule is None or rule.role != "weighted" or not is_standard(node):
                continue
            if rule.products and self._is_product(node):
                result.int8.add(number)
                for position, name in enumerate(node.input):
                    known = result.activations.get(name, ActivationUse(name))
                    narrow = known.narrow or (position == 1 and self._narrow)
                    result.activations[name] = replace(known, symmetric=True, narrow=narrow)
                continue
            use = match_weights(self._graph, number, self._scheme)
            if isinstance(use, str):
                result.skipped.append(Skip(node_label(node), "int8", use))
            else:
                result.weights.append(use)
                result.int8.add(number)
                result.activations.setdefault(node.input[0], ActivationUse(node.input[0]))
        for use in result.weights:
            self._place_output(use.node)

    def _is_product(self, node: NodeProto) -> bool:
        """Whether two computed float32 tensors are multiplied, as in attention."""
        if any(self._graph.constant(name) is not None for name in node.input):
            return False
        if name_node(node) in self._scheme.keep_float:
            return False
        if self._types is None:
            self._types = element_types(self._graph.model)
        return all(self._types.get(name) == TensorProto.FLOAT for name in node.input)

    def spread(self) -> None:
        """Take in the operators between the weighted ones, until nothing changes."""
        changed = True
        while changed:
            before = len(self.result.int8)
            for number, node in enumerate(self._graph.nodes):
                rule = self._rules.get(node.op_type)
                if rule is None or rule.role == "weighted" or number in self.result.int8:
                    continue
                if name_node(node) not in self._scheme.keep_float and is_standard(node):
                    self._follow(number, rule)
                    if rule.pulls and number not in self.result.int8:
                        self._pull(number, rule)
            for use in self.result.weights:
                self._place_output(use.node)
            changed = len(self.result.int8) > before

    def _follow(self, number: int, rule: OpRule) -> None:
        """Int8 because of what it reads."""
        node, result = self._graph.nodes[number], self.result
        if rule.role == "residual":
            operands = _residual_operands(self._graph, number, result)
            if operands:
                result.int8.add(number)
                result.activations.setdefault(operands[-1], ActivationUse(operands[-1]))
        elif rule.role == "join":
            if rule.inner and self._only_leaves(node):
                return
            if all(name in result.activations for name in node.input):
                result.int8.add(number)
                self._place_output(number)
        else:
            source = result.activations.get(node.input[0])
            if source is None or not source.read_by_all or not keeps_codes(node):
                return
            result.int8.add(number)
            if rule.role == "average":
                self._place_output(number)
            else:
                self._share(number, source, rule)

    def _only_leaves(self, node: NodeProto) -> bool:
        """Whether all that becomes of its outputs is moved, put together and returned."""
        graph = self._graph
        if any(name in graph.captured for name in node.output):
            return False
        for reader in (number for name in node.output for number in graph.readers[name]):
            follower = graph.nodes[reader]
            rule = self._rules.get(follower.op_type)
            passes = rule is not None and (rule.role == "copy" or rule.inner)
            if not passes or follower.op_type == "MaxPool" or not self._only_leaves(follower):
                return False
        return True

    def _pull(self, number: int, rule: OpRule) -> None:
        """Int8 because of who reads it."""
        graph, result, node = self._graph, self.result, self._graph.nodes[number]
        name = self._result_of(number, rule)
        wanted = [made for made in (name, *node.output[1:]) if made in result.activations]
        if not wanted or not keeps_codes(node):
            return
        operands = list(node.input) if rule.role == "join" else [node.input[0]]
        if any(graph.constant(operand) is not None for operand in operands):
            return
        if rule.role == "join" and not any(self._is_int8_made(operand) for operand in operands):
            return
        if rule.role == "average" and graph.only_reader(operands[0]) is None:
            return
        if node.op_type in _PARTS and not self._is_layer(operands[0]):
            return
        result.int8.add(number)
        follows = [result.activations[n] for n in wanted] if rule.role == "copy" else []
        symmetric = any(use.symmetric for use in follows)
        narrow = any(use.narrow for use in follows)
        for operand in operands:
            known = result.activations.get(operand, ActivationUse(operand))
            symmetric, narrow = symmetric or known.symmetric, narrow or known.narrow
            result.activations[operand] = replace(
                known, read_by_all=True, symmetric=symmetric, narrow=narrow
            )
        if rule.role == "copy":
            self._share(number, result.activations[operands[0]], rule)
        else:
            self._place_output(number)

    def _share(self, number: int, source: ActivationUse, rule: OpRule) -> None:
        """What an operator only moves keeps the parameters of its source."""
        for name in self._graph.nodes[number].output:
            if name:
                self.result.activations[name] = replace(source, pair=rule.output != "never")

    def _is_layer(self, tensor: str) -> bool:
        """Whether an int8 operator made it, perhaps with an activation behind it."""
        graph, number = self._graph, self._graph.producer.get(tensor, -1)
        if number >= 0 and zero_based_ceiling(graph, number) is not None:
            number = graph.producer.get(graph.nodes[number].input[0], -1)
        return number in self.result.int8

    def _is_int8_made(self, tensor: str) -> bool:
        return tensor in self.result.activations or (
            self._graph.producer.get(tensor, -1) in self.result.int8
        )

    def _result_of(self, number: int, rule: OpRule) -> str:
        """The tensor that an operator leaves, behind the activation that belongs to it."""
        name = self._graph.nodes[number].output[0]
        folded = self._graph.only_reader(name) if rule.folds else None
        if folded is not None and zero_based_ceiling(self._graph, folded) is not None:
            return str(self._graph.nodes[folded].output[0])
        return str(name)

    def _place_output(self, number: int) -> None:
        """Q/DQ behind an int8 operator, after the activation that belongs to it."""
        graph, result = self._graph, self.result
        rule = self._rules[graph.nodes[number].op_type]
        if rule.output == "never":
            return
        name = self._result_of(number, rule)
        if rule.output == "if_read" and name not in result.activations:
            return
        ceiling = None
        if name != graph.nodes[number].output[0]:
            folded = graph.producer[name]
            ceiling = zero_based_ceiling(graph, folded)
            result.int8.add(folded)
        bound = ceiling if ceiling is not None and np.isfinite(ceiling) else None
        known = result.activations.get(name, ActivationUse(name))
        result.activations[name] = replace(
            known,
            like=name,
            ceiling=bound,
            from_zero=ceiling is not None,
            read_by_all=True,
            pair=True,
        )


def _residual_operands(graph: GraphIndex, number: int, result: Placement) -> list[str]:
    """Operands of an Add after an int8 convolution; the last one is the one to quantize."""
    made: list[str] = []
    others: list[str] = []
    for name in graph.nodes[number].input:
        if graph.constant(name) is not None:
            return []
        producer = graph.producer.get(name, -1)
        convolution = producer in result.int8 and graph.nodes[producer].op_type in _CONVOLUTIONS
        (made if convolution and graph.only_reader(name) is not None else others).append(name)
    return made + others if made else []
