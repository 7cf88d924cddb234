"""Where Q/DQ go: one rule table a target, and the walk that applies it.

ONNX Runtime on x86 runs an operator in int8 when it stands between DequantizeLinear and
QuantizeLinear, so there the outputs are quantized as well and the tensors that an int8 operator
made are read quantized by everybody. TensorRT wants Q/DQ on the inputs of its weighted operators,
and on the one operand of a residual Add that the convolution does not produce itself.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from export.artifacts import Skip
from quantize.scheme import PRESETS, QuantScheme


@dataclass(frozen=True)
class OpRule:
    """How one operator takes part.

    Attributes:
        role: ``weighted``: has constant weights, starts int8. ``join``: int8 when all its inputs
            are. ``residual``: one operand is quantized when the other comes from a convolution.
            ``average``: int8 when its input was made in int8. ``copy``: the same, and input and
            output share scale and zero point.
        output: whether a Q/DQ pair follows; ``if_read``: only where an int8 operator reads it.
        folds: a Relu or Clip(0, c) that alone reads the output belongs to the operator.
    """

    role: Literal["weighted", "join", "residual", "average", "copy"]
    output: Literal["always", "if_read", "never"] = "never"
    folds: bool = False


RULES: Mapping[str, Mapping[str, OpRule]] = {
    "x86": {
        "Conv": OpRule("weighted", output="always", folds=True),
        "Gemm": OpRule("weighted", output="if_read", folds=True),
        "MatMul": OpRule("weighted", output="if_read"),
        "Add": OpRule("join", output="always", folds=True),
        "Concat": OpRule("join", output="always"),
        "GlobalAveragePool": OpRule("average", output="always"),
        "AveragePool": OpRule("average", output="always"),
        "MaxPool": OpRule("copy", output="always"),
        "Flatten": OpRule("copy", output="always"),
        "Reshape": OpRule("copy", output="always"),
        "Transpose": OpRule("copy", output="always"),
        "Squeeze": OpRule("copy", output="always"),
        "Unsqueeze": OpRule("copy", output="always"),
    },
    "tensorrt": {
        "Conv": OpRule("weighted"),
        "ConvTranspose": OpRule("weighted"),
        "Gemm": OpRule("weighted"),
        "MatMul": OpRule("weighted"),
        "Add": OpRule("residual"),
    },
}
"""Rule table by `QuantScheme.placement`, rules by operator; operators not named stay float."""


@dataclass(frozen=True)
class ActivationUse:
    """One activation tensor that gets a Q/DQ pair.

    Attributes:
        like: the tensor whose range it takes: itself, or the source of a chain of copies.
        ceiling: upper bound of its range (Clip(0, c)); None when there is none.
        from_zero: the range starts at 0, so an unsigned zero point is 0.
        read_by_all: every reader takes the dequantized tensor, not only the int8 operators.
    """

    like: str
    ceiling: float | None = None
    from_zero: bool = False
    read_by_all: bool = False


@dataclass(frozen=True)
class WeightUse:
    """The constant operands of one int8 operator: indices of the node and of its inputs."""

    node: int
    weight: str
    axis: int
    bias: str | None


@dataclass
class Placement:
    """What `place` decided; node numbers count in the graph's order."""

    activations: dict[str, ActivationUse] = field(default_factory=dict)
    weights: list[WeightUse] = field(default_factory=list)
    int8: set[int] = field(default_factory=set)
    skipped: list[Skip] = field(default_factory=list)


class GraphIndex:
    """Producers, readers and constants of the top-level graph of a model, by tensor name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes: list[NodeProto] = list(graph.node)
        self.outputs = {value.name for value in graph.output}
        self.inputs = {value.name for value in graph.input}
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


def place(graph: GraphIndex, scheme: QuantScheme) -> Placement:
    """Apply the rule table of `scheme` to `graph`."""
    rules = RULES[scheme.placement]
    result = Placement()
    for number, node in enumerate(graph.nodes):
        rule = rules.get(node.op_type)
        if rule is None or rule.role != "weighted" or node.domain not in ("", "ai.onnx"):
            continue
        use = _match_weights(graph, number, scheme)
        if isinstance(use, str):
            result.skipped.append(Skip(node_label(node), "int8", use))
        else:
            result.weights.append(use)
            result.int8.add(number)
            result.activations.setdefault(node.input[0], ActivationUse(node.input[0]))
    for number in sorted(result.int8):
        _place_output(graph, rules, number, result)
    _spread(graph, rules, scheme, result)
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


def node_label(node: NodeProto) -> str:
    """What to call a node in a message: its name, and the module path the exporter left on it."""
    name = node.name or node.output[0]
    for item in node.metadata_props:
        if item.key == "pkg.torch.onnx.name_scopes":
            scopes = [part.strip(" '\"[]") for part in item.value.split(",")]
            paths = [part for part in scopes[:-1] if part]
            return f"{paths[-1]} ({name})" if paths else name
    return name


_NO_RULE = OpRule("copy")


def _match_weights(graph: GraphIndex, number: int, scheme: QuantScheme) -> WeightUse | str:
    """The constant operands of a weighted operator, or the reason why it stays float."""
    node = graph.nodes[number]
    if (node.name or node.output[0]) in scheme.keep_float:
        return "kept float as asked"
    weight = graph.constant(node.input[1])
    if weight is None:
        return "its weights are not constant"
    if weight.data_type != TensorProto.FLOAT:
        return f"its weights are {TensorProto.DataType.Name(weight.data_type).lower()}, not float"
    if graph.constant(node.input[0]) is not None:
        return "its data input is constant"
    axis = _channel_axis(node, len(weight.dims))
    if axis is None:
        return f"weights of rank {len(weight.dims)} have no channel axis"
    bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and not attribute(node, "transA", 0)
        if not plain or (bias and attribute(node, "beta", 1.0) != 1.0):
            return "Gemm with alpha, beta or transA has no int8 kernel"
    if bias and scheme.integer_bias:
        constant = graph.constant(bias)
        if constant is None:
            return "its bias is not constant"
        if list(constant.dims) != [weight.dims[axis]]:
            return "its bias is not one value a channel"
    return WeightUse(number, node.input[1], axis, bias)


def _channel_axis(node: NodeProto, rank: int) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if rank != 2:
        return None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1


def _place_output(
    graph: GraphIndex, rules: Mapping[str, OpRule], number: int, result: Placement
) -> None:
    """Q/DQ behind an int8 operator, after the activation that belongs to it."""
    rule = rules[graph.nodes[number].op_type]
    if rule.output == "never":
        return
    name = graph.nodes[number].output[0]
    folded = graph.only_reader(name) if rule.folds else None
    ceiling = _zero_based_ceiling(graph, folded) if folded is not None else None
    if folded is not None and ceiling is not None:
        name = graph.nodes[folded].output[0]
    if rule.output == "if_read" and name not in result.activations:
        return
    if folded is not None and ceiling is not None:
        result.int8.add(folded)
    bound = ceiling if ceiling is not None and np.isfinite(ceiling) else None
    result.activations[name] = ActivationUse(name, bound, ceiling is not None, read_by_all=True)


def _zero_based_ceiling(graph: GraphIndex, number: int) -> float | None:
    """Upper end of a Relu (infinite) or of a Clip that starts at 0; None for anything else."""
    node = graph.nodes[number]
    if node.op_type == "Relu":
        return float("inf")
    if node.op_type != "Clip" or len(node.input) < 2:
        return None
    bounds = [graph.constant(name) for name in node.input[1:3] if name]
    if any(bound is None for bound in bounds) or not node.input[1]:
        return None
    values = [float(numpy_helper.to_array(bound).reshape(())) for bound in bounds if bound]
    if values[0] != 0:
        return None
    return values[1] if len(values) > 1 else float("inf")


def _spread(
    graph: GraphIndex, rules: Mapping[str, OpRule], scheme: QuantScheme, result: Placement
) -> None:
    """Take in the operators between the weighted ones, until nothing changes."""
    changed = True
    while changed:
        before = len(result.int8)
        for number, node in enumerate(graph.nodes):
            rule = rules.get(node.op_type)
            name = node.name or node.output[0]
            if rule is None or rule.role == "weighted" or number in result.int8:
                continue
            if name not in scheme.keep_float and node.domain in ("", "ai.onnx"):
                _spread_to(graph, rules, number, result)
        changed = len(result.int8) > before


def _spread_to(
    graph: GraphIndex, rules: Mapping[str, OpRule], number: int, result: Placement
) -> None:
    node = graph.nodes[number]
    role = rules[node.op_type].role
    if role == "residual":
        operands = _residual_operands(graph, number, result)
        if operands:
            result.int8.add(number)
            result.activations.setdefault(operands[-1], ActivationUse(operands[-1]))
        return
    if role == "join":
        if all(name in result.activations for name in node.input):
            result.int8.add(number)
            _place_output(graph, rules, number, result)
        return
    source = result.activations.get(node.input[0])
    if source is None or not source.read_by_all or any(node.output[1:]):
        return
    result.int8.add(number)
    if role == "average":
        _place_output(graph, rules, number, result)
    else:
        result.activations[node.output[0]] = source


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


_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def _captured_names(node: NodeProto) -> Iterator[str]:
    for item in node.attribute:
        graphs = [item.g] if item.type == AttributeProto.GRAPH else list(item.graphs)
        for graph in graphs:
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from inner.input
                yield from _captured_names(inner)


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Value of a node's attribute, or `default` where it is not set."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default
