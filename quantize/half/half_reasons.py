"""Why a node stays in float32 while the rest of the graph goes to a 16-bit float.

What the values say of overflow is float16's own matter (`fp16`); here is what holds for
float16 and bfloat16 alike: operators that ONNX gives no such type, arithmetic that ends in
integers, sums too long or too wide to be gathered in 16 bits, and what was measured to lose much.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.errors import QuantizeError
from export.onnx.graph import attribute, name_node, node_label
from export.onnx.tensor_types import float_shapes
from quantize.half.half_rules import HALF_RULES
from quantize.half.losses import Losses
from quantize.half.typed_graph import Slot, TypedGraph

Reasons = dict[int, str]
"""Node number → why it stays in float32."""

LONG_SUM = 1024
"""A sum of more terms stays in float32: added up in float16 it may lose 10 of its 11 bits."""

MIN_NODE_SQNR_DB: Mapping[str, float] = {"fp16": 40.0, "bf16": 25.0}
"""What one node may lose by itself: as much as the whole model may lose at its outputs."""

_TYPED_BY_ATTRIBUTE = frozenset(
    {"Bernoulli", "BlackmanWindow", "EyeLike", "HammingWindow", "HannWindow", "MelWeightMatrix"}
    | {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_INDEX_ARITHMETIC = frozenset(
    {"Add", "Cast", "Ceil", "Concat", "Div", "Floor", "Gather", "Mul", "Round", "Slice", "Sqrt"}
    | {"Squeeze", "Sub", "Unsqueeze"}
)
_SQUARE_SUMS = frozenset({"ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"})
_SUMS = frozenset({"ReduceL1", "ReduceLogSum", "ReduceMean", "ReduceSum"}) | _SQUARE_SUMS
_PLANE_SUMS = frozenset({"GlobalAveragePool", "GlobalLpPool", "InstanceNormalization"})
_GUARDED = frozenset({"Add", "Clip", "Max", "Sub"})
_CARRIES_SCALE = frozenset(
    {"Add", "Clip", "Expand", "Identity", "Max", "Pow", "Reciprocal", "Reshape", "Sqrt", "Squeeze"}
    | {"Unsqueeze"}
)
_USES_SCALE = frozenset({"Div", "Log", "Mul"})


def find_reasons(
    proto: onnx.ModelProto, graph: TypedGraph, keep_fp32: Collection[str], losses: Losses | None
) -> Reasons:
    """The reasons that hold for both types; nodes without float tensors have none.

    Raises:
        QuantizeError: an operator whose types cannot be inferred, or that TensorRT has no engine of
            in this type.
    """
    _refuse(graph)
    reasons: Reasons = {}
    for number, node in enumerate(graph.nodes):
        slots = list(graph.slots(node))
        _check_types(graph, number)
        if not slots:
            continue
        if name_node(node) in keep_fp32:
            reasons[number] = "kept in fp32 as asked"
        elif reason := _operator_reason(graph, number, slots):
            reasons[number] = reason
    _keep_long_sums(proto, graph, reasons)
    _keep_scales(graph, reasons)
    _keep_integers(graph, reasons)
    _keep_lossy(graph, losses, reasons)
    return reasons


def _refuse(graph: TypedGraph) -> None:
    refused = HALF_RULES[graph.half.name].refused
    labels = [f"{node_label(n)} ({n.op_type})" for n in graph.nodes if n.op_type in refused]
    if labels:
        raise QuantizeError(
            f"TensorRT builds no {', '.join(sorted(refused))} in {graph.half.words}, and fails on "
            f"one in float32 beside {graph.half.words} layers: {', '.join(labels)}. Take TF32 or "
            "float16 for this model, or an LSTM in place of a GRU."
        )


def _operator_reason(graph: TypedGraph, number: int, slots: list[Slot]) -> str:
    node, half = graph.nodes[number], graph.half
    tensors = [name for name in (*node.input, *node.output) if name]
    if graph.schema(node) is None:
        return f"ONNX does not define {node.domain}.{node.op_type}"
    if any(graph.types.get(name) == TensorProto.UNDEFINED for name in tensors):
        return f"{node.op_type} handles a sequence or an optional"
    if node.op_type in _TYPED_BY_ATTRIBUTE or node.op_type == "Constant":
        return f"the type of {node.op_type} is fixed by an attribute"
    if not any(allowed for *_, allowed in slots):
        return f"{node.op_type} takes no {half.words} at opset {graph.opset()}"
    if node.op_type in HALF_RULES[half.name].float32:
        return f"TensorRT builds no {node.op_type} in {half.words}"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        scale = graph.constants.get(node.input[1])
        if scale is None:
            return "its scale is not constant"
        values = numpy_helper.to_array(scale)
        if values.min() < half.tiny or values.max() > half.largest:
            return f"its scale is not a normal {half.words} number"
    return ""


def _keep_long_sums(proto: onnx.ModelProto, graph: TypedGraph, reasons: Reasons) -> None:
    shapes = float_shapes(proto)
    for number, node in enumerate(graph.nodes):
        if number in reasons or node.op_type not in _SUMS | _PLANE_SUMS:
            continue
        if node.op_type in _SQUARE_SUMS:
            reasons[number] = f"{node.op_type} adds up squares or powers, wider than its result"
            continue
        shape = shapes.get(node.input[0])
        if shape is None:  # of integers, which stay, or not known
            continue
        axes = range(2, len(shape)) if node.op_type in _PLANE_SUMS else _axes(proto, node, shape)
        # an axis of unknown size counts as 1: it is the batch, but for models that say otherwise
        terms = int(np.prod([shape[axis] or 1 for axis in axes], dtype=np.int64))
        if terms > LONG_SUM:
            reasons[number] = f"it adds up {terms:,} values"


def _axes(
    proto: onnx.ModelProto, node: onnx.NodeProto, shape: tuple[int | None, ...]
) -> Iterable[int]:
    """The reduced axes; all of them where none are given or they are not constant."""
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1:
        stored = (t for t in proto.graph.initializer if t.name == node.input[1])
        constants = (
            item.t
            for other in proto.graph.node
            if other.op_type == "Constant" and other.output[0] == node.input[1]
            for item in other.attribute
        )
        tensor = next((t for source in (stored, constants) for t in source), None)
        axes = None if tensor is None else numpy_helper.to_array(tensor).ravel().tolist()
    return axes or range(len(shape))


def _keep_scales(graph: TypedGraph, reasons: Reasons) -> None:
    """Variances, and divisors with a guard too small for 16 bits, up to where they scale a tensor.

    A square may be far larger or smaller than what it is the square of; a guard of 1e-12 would be
    0, and 0 divided by it no longer 0.
    """
    for number, node in enumerate(graph.nodes):
        if _is_square(graph, number):
            readers = graph.readers[node.output[0]]
            kinds = {graph.nodes[reader].op_type for reader in readers}
            if readers and kinds <= {"ReduceMean", "ReduceSum"}:
                _keep_chain(graph, number, "it computes a variance or a norm", reasons)
        elif node.op_type in _GUARDED and _has_guard(graph, number):
            _keep_chain(graph, number, f"its guard against 0 is 0 in {graph.half.words}", reasons)


def _keep_chain(graph: TypedGraph, number: int, reason: str, reasons: Reasons) -> None:
    waiting, seen = [number], {number}
    while waiting:
        current = waiting.pop()
        reasons.setdefault(current, reason)
        for reader in graph.readers[graph.nodes[current].output[0]]:
            kind = graph.nodes[reader].op_type
            if kind in _USES_SCALE:
                reasons.setdefault(reader, reason)
            elif (kind in _CARRIES_SCALE or kind in _SUMS) and reader not in seen:
                seen.add(reader)
                waiting.append(reader)


def _is_square(graph: TypedGraph, number: int) -> bool:
    node = graph.nodes[number]
    if node.op_type == "Pow":
        return graph.scalar(node.input[1]) == 2
    return node.op_type == "Mul" and node.input[0] == node.input[1]


def _has_guard(graph: TypedGraph, number: int) -> bool:
    """A constant of one value that is not 0, but would be."""
    values = [graph.scalar(name) for name in graph.nodes[number].input[1:2]]
    if graph.nodes[number].op_type in ("Add", "Max"):
        values.append(graph.scalar(graph.nodes[number].input[0]))
    with np.errstate(under="ignore", over="ignore"):
        return any(value and not graph.half.dtype.type(value) for value in values)


def _keep_integers(graph: TypedGraph, reasons: Reasons) -> None:
    """float16 counts exactly to 2048, bfloat16 to 256: what ends in an integer stays in float32."""
    integral: set[int] = set()
    for number in reversed(range(len(graph.nodes))):
        node = graph.nodes[number]
        floats = [name for is_output, _, name, _ in graph.slots(node) if is_output]
        ends = node.op_type == "Cast" and not floats and _is_integer(graph, node.output[0])
        readers = [reader for name in floats for reader in graph.readers[name]]
        feeds = bool(readers) and all(reader in integral for reader in readers)
        feeds = feeds and not any(name in graph.outputs for name in floats)
        if ends or (feeds and node.op_type in _INDEX_ARITHMETIC):
            integral.add(number)
            if any(True for _ in graph.slots(node)):
                reasons.setdefault(number, "it computes integers")


def _keep_lossy(graph: TypedGraph, losses: Losses | None, reasons: Reasons) -> None:
    """Nodes measured to lose much by themselves, and those that make what they read."""
    if losses is None:
        return
    if losses.half != graph.half.name:
        raise QuantizeError(f"The losses were measured for {losses.half}, not {graph.half.name}.")
    least = MIN_NODE_SQNR_DB[graph.half.name]
    for number, node in enumerate(graph.nodes):
        measured = losses.sqnr_db.get(node.output[0])
        if measured is None or measured >= least:
            continue
        reasons.setdefault(
            number, f"{graph.half.words} alone costs it {_decibels(measured)}, below {least:g} dB"
        )
        for name in node.input:
            if name in graph.producer and graph.types.get(name) == TensorProto.FLOAT:
                label = node_label(node)
                reasons.setdefault(graph.producer[name], f"{label} cannot bear its result rounded")


def _decibels(value: float) -> str:
    return f"all but {value:.0f} dB" if np.isfinite(value) else "its values"


def _is_integer(graph: TypedGraph, name: str) -> bool:
    return graph.types.get(name) in (TensorProto.INT64, TensorProto.INT32)


def _check_types(graph: TypedGraph, number: int) -> None:
    node = graph.nodes[number]
    for name in node.output:
        if name and name not in graph.types:
            raise QuantizeError(
                f"The type of tensor {name!r}, made by {node_label(node)} ({node.op_type}), cannot "
                "be inferred; export with a plain ONNX operator, or declare it in value_info."
            )
