"""ONNX float32 → ONNX in float16 by Casts; graph inputs and outputs stay float32.

Every node with float tensors runs in one of the two types. Where a producer and its readers differ,
one Cast, shared by the readers, stands behind the producer. A node stays in float32 when ONNX gives
its operator no float16, when a constant or an observed value of it passes 65504, or when it
computes integers.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from export.artifacts import OnnxModel, Skip
from export.errors import QuantizeError
from export.execute import element_types, read_model, write_model
from quantize.calibrate import Ranges
from quantize.placement import attribute, node_label

FP16_MAX = 65504.0
FP16_TINY = 2.0**-14
"""Smallest normal float16."""

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_TYPED_BY_ATTRIBUTE = frozenset(
    {"Bernoulli", "BlackmanWindow", "EyeLike", "HammingWindow", "HannWindow", "MelWeightMatrix"}
    | {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
_INDEX_ARITHMETIC = frozenset(
    {"Add", "Cast", "Ceil", "Concat", "Div", "Floor", "Gather", "Mul", "Round", "Slice", "Sqrt"}
    | {"Squeeze", "Sub", "Unsqueeze"}
)
_CARRIES_MASK = frozenset(
    {"Add", "Cast", "Concat", "Expand", "Gather", "Identity", "Mul", "Reshape", "Slice", "Sub"}
    | {"Transpose", "Unsqueeze", "Where"}
)
_READS_MASK = frozenset({"Softmax", "LogSoftmax"})


@dataclass(frozen=True)
class Fp16Result:
    """The float16 model, and the nodes that stay in float32 with the reason."""

    model: OnnxModel
    kept_fp32: tuple[Skip, ...]


def convert_fp16(
    model: OnnxModel,
    path: Path,
    *,
    keep_fp32: Collection[str] = (),
    ranges: Ranges | None = None,
) -> Fp16Result:
    """Write `model` in float16 to `path`; the signature keeps its names and float32.

    Q/DQ pairs of an int8 model run in float16 as well from opset 19 on, where their scales are
    normal float16 numbers.

    Args:
        model: the float32 model; its file is not changed.
        path: the file to write; not `model.path`.
        keep_fp32: names of nodes that stay in float32.
        ranges: observed ranges of any tensors (calibrate with ``tensors=float_tensors(...)``);
            nodes that touch one beyond 65504 stay in float32. Without them, only constants tell.

    Raises:
        QuantizeError: subgraphs (If, Loop, Scan), an unknown name in `keep_fp32`, an operator
            whose types cannot be inferred, or `path` is the model itself.
    """
    if model.path.resolve() == path.resolve():
        raise QuantizeError(f"{path} is the float model itself; write the fp16 one elsewhere.")
    proto = read_model(model.path)
    _refuse(proto, keep_fp32)
    _lift_constants(proto)
    graph = _TypedGraph(proto)
    reasons = _reasons_for_fp32(graph, keep_fp32, ranges)
    _retype(proto, graph, reasons)
    write_model(proto, path)
    skips = tuple(
        Skip(node_label(graph.nodes[number]), "fp16", reason)
        for number, reason in sorted(reasons.items())
    )
    return Fp16Result(replace(model, path=path), skips)


class _TypedGraph:
    """Nodes, element types, float initializers and readers of the original float32 graph."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.nodes = [_copy_node(node) for node in proto.graph.node]
        self.types = element_types(proto)
        self.outputs = {value.name for value in proto.graph.output}
        inputs = {value.name for value in proto.graph.input}
        self.inputs = {name for name in inputs if self.types.get(name) == _FLOAT}
        self.constants = {
            tensor.name: tensor
            for tensor in proto.graph.initializer
            if tensor.name not in inputs and tensor.data_type == _FLOAT
        }
        self.readers: dict[str, list[int]] = defaultdict(list)
        for number, node in enumerate(self.nodes):
            for name in node.input:
                self.readers[name].append(number)
        self._opsets = {item.domain: item.version for item in proto.opset_import}

    def slots(self, node: NodeProto) -> Iterator[tuple[bool, int, str, bool]]:
        """(is output, position, tensor, may be float16) for every float tensor of `node`."""
        schema = self.schema(node)
        for is_output, names in ((False, node.input), (True, node.output)):
            for position, name in enumerate(names):
                if name and self.types.get(name) == _FLOAT:
                    yield is_output, position, name, _allows_half(schema, is_output, position)

    def schema(self, node: NodeProto) -> onnx.defs.OpSchema | None:
        """The operator's schema; None for an operator that ONNX does not define."""
        version = self._opsets.get(node.domain, self._opsets.get("ai.onnx", 1))
        try:
            return onnx.defs.get_schema(node.op_type, version, node.domain)
        except onnx.defs.SchemaError:
            return None

    def opset(self) -> int:
        """Version of the default domain."""
        return int(self._opsets.get("", self._opsets.get("ai.onnx", 1)))


def _refuse(proto: onnx.ModelProto, keep_fp32: Collection[str]) -> None:
    names = {node.name or node.output[0] for node in proto.graph.node}
    unknown = sorted(set(keep_fp32) - names)
    if unknown:
        raise QuantizeError(f"keep_fp32 names no node of the model: {', '.join(unknown)}")
    for node in proto.graph.node:
        if any(
            item.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for item in node.attribute
        ):
            raise QuantizeError(
                f"{node_label(node)} ({node.op_type}) holds a subgraph, whose outer tensors "
                "have no place for a Cast; export without control flow, or keep fp32 or bf16."
            )


def _lift_constants(proto: onnx.ModelProto) -> None:
    """Float Constant nodes become initializers, so that there is one kind of constant."""
    outputs = {value.name for value in proto.graph.output}
    for node in list(proto.graph.node):
        if node.op_type != "Constant" or node.output[0] in outputs:
            continue
        value = helper.get_attribute_value(node.attribute[0])
        if node.attribute[0].name in ("value_float", "value_floats"):
            value = numpy_helper.from_array(np.asarray(value, np.float32))
        if isinstance(value, TensorProto) and value.data_type == _FLOAT:
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            proto.graph.node.remove(node)


def _reasons_for_fp32(
    graph: _TypedGraph, keep_fp32: Collection[str], ranges: Ranges | None
) -> dict[int, str]:
    """Node number → why it stays in float32; nodes without float tensors are not in it."""
    wide = {
        name
        for name, span in (ranges.ranges if ranges else {}).items()
        if max(abs(span[0]), abs(span[1])) > FP16_MAX
    }
    wide_constants = {name for name, tensor in graph.constants.items() if _is_wide(tensor)}
    reasons: dict[int, str] = {}
    for number, node in enumerate(graph.nodes):
        slots = list(graph.slots(node))
        _check_types(graph, node)
        if not slots:
            continue
        if (node.name or node.output[0]) in keep_fp32:
            reasons[number] = "kept in fp32 as asked"
        else:
            reason = _operator_reason(graph, node, slots)
            reason = reason or _value_reason(slots, wide, wide_constants)
            if reason:
                reasons[number] = reason
    _follow_masks(graph, wide_constants, reasons)
    _follow_integers(graph, reasons)
    return reasons


def _operator_reason(
    graph: _TypedGraph, node: NodeProto, slots: list[tuple[bool, int, str, bool]]
) -> str:
    tensors = [name for name in (*node.input, *node.output) if name]
    if graph.schema(node) is None:
        return f"ONNX does not define {node.domain}.{node.op_type}"
    if any(graph.types.get(name) == TensorProto.UNDEFINED for name in tensors):
        return f"{node.op_type} handles a sequence or an optional"
    if node.op_type in _TYPED_BY_ATTRIBUTE or node.op_type == "Constant":
        return f"the type of {node.op_type} is fixed by an attribute"
    if not any(half for *_, half in slots):
        return f"{node.op_type} takes no float16 at opset {graph.opset()}"
    if node.op_type == "ConstantOfShape":
        value = attribute(node, "value", None)
        return _VALUE if value is not None and _is_wide(value) else ""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        scale = graph.constants.get(node.input[1])
        if scale is None:
            return "its scale is not constant"
        values = numpy_helper.to_array(scale)
        if values.min() < FP16_TINY or values.max() > FP16_MAX:
            return "its scale is not a normal float16 number"
    return ""


_VALUE = "a constant of it is beyond 65504"


def _value_reason(
    slots: list[tuple[bool, int, str, bool]], wide: set[str], wide_constants: set[str]
) -> str:
    for _, _, name, half in slots:
        if half and name in wide_constants:
            return _VALUE
        if name in wide:
            return f"tensor {name!r} was observed beyond 65504"
    return ""


def _follow_masks(graph: _TypedGraph, wide: set[str], reasons: dict[int, str]) -> None:
    """A mask of -1e9 would become -inf in a Cast: whatever carries it, and its softmax, stay."""
    carriers = {
        name
        for number, reason in reasons.items()
        if reason == _VALUE and (graph.nodes[number].op_type in _CARRIES_MASK | {"ConstantOfShape"})
        for name in graph.nodes[number].output
    }
    for number, node in enumerate(graph.nodes):
        if not any(name in carriers for name in node.input):
            continue
        if node.op_type in _CARRIES_MASK | _READS_MASK and any(True for _ in graph.slots(node)):
            reasons.setdefault(number, "it reads values beyond 65504, such as an attention mask")
        if node.op_type in _CARRIES_MASK:
            carriers.update(node.output)


def _follow_integers(graph: _TypedGraph, reasons: dict[int, str]) -> None:
    """float16 counts exactly to 2048 only: arithmetic that ends in an integer stays in float32."""
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


def _is_integer(graph: _TypedGraph, name: str) -> bool:
    return graph.types.get(name) in (TensorProto.INT64, TensorProto.INT32)


def _check_types(graph: _TypedGraph, node: NodeProto) -> None:
    for name in node.output:
        if name and name not in graph.types:
            raise QuantizeError(
                f"The type of tensor {name!r}, made by {node_label(node)} ({node.op_type}), cannot "
                "be inferred; export with a plain ONNX operator, or declare it in value_info."
            )


def _retype(proto: onnx.ModelProto, graph: _TypedGraph, reasons: dict[int, str]) -> None:
    """Rewrite nodes and initializers of `proto` in place."""
    casts = _Casts(graph)
    for name in sorted(graph.inputs):
        casts.native[name] = _FLOAT
    body: list[NodeProto] = []
    wanted = _wanted_types(graph, reasons)
    body.extend(casts.after(proto.graph.input, wanted))
    for number, node in enumerate(graph.nodes):
        renamed = _copy_node(node)
        for is_output, position, name, allowed in graph.slots(node):
            half = allowed and number not in reasons
            if is_output:
                casts.native[name] = _HALF if half else _FLOAT
                renamed.output[position] = casts.name(name, casts.native[name])
            else:
                renamed.input[position] = casts.name(name, _HALF if half else _FLOAT)
        if number not in reasons:
            _retype_attributes(renamed, graph)
        body.append(renamed)
        body.extend(casts.after(node.output, wanted))
    _retype_initializers(proto, graph, wanted, casts)
    del proto.graph.node[:]
    proto.graph.node.extend(body)
    del proto.graph.value_info[:]


def _wanted_types(graph: _TypedGraph, reasons: dict[int, str]) -> dict[str, set[int]]:
    """Tensor → the types that its readers ask for; a graph output asks for float32."""
    wanted: dict[str, set[int]] = defaultdict(set)
    for name in graph.outputs:
        wanted[name].add(_FLOAT)
    for number, node in enumerate(graph.nodes):
        for is_output, _, name, allowed in graph.slots(node):
            if not is_output:
                wanted[name].add(_HALF if allowed and number not in reasons else _FLOAT)
    return wanted


class _Casts:
    """Names of every tensor in both types, and the Casts between them."""

    def __init__(self, graph: _TypedGraph) -> None:
        self._graph = graph
        self.native: dict[str, int] = {}
        self._taken = set(graph.types) | {name for node in graph.nodes for name in node.output}
        self._names: dict[tuple[str, int], str] = {}

    def name(self, name: str, kind: int) -> str:
        """The tensor's name in type `kind`: its own where it is made so and need not be float32."""
        key = (name, kind)
        if key not in self._names:
            public = name in self._graph.outputs
            own = _FLOAT if public or name in self._graph.constants else self.native[name]
            self._names[key] = name if kind == own else self._fresh(name, kind)
        return self._names[key]

    def after(
        self, names: Collection[str] | Collection[onnx.ValueInfoProto], wanted: dict[str, set[int]]
    ) -> Iterator[NodeProto]:
        """The Casts that stand behind the tensors `names`."""
        for item in names:
            name = item if isinstance(item, str) else item.name
            made = self.native.get(name)
            for kind in sorted(wanted.get(name, set()) - {made}) if made else ():
                source, result = self.name(name, made or _FLOAT), self.name(name, kind)
                yield helper.make_node("Cast", [source], [result], name=f"{result}_Cast", to=kind)

    def _fresh(self, name: str, kind: int) -> str:
        candidate = f"{name}_{'fp16' if kind == _HALF else 'fp32'}"
        while candidate in self._taken:
            candidate += "_"
        self._taken.add(candidate)
        return candidate


def _retype_attributes(node: NodeProto, graph: _TypedGraph) -> None:
    for item in node.attribute:
        if item.name in ("to", "output_dtype", "dtype") and item.i == _FLOAT:
            item.i = _HALF
        if node.op_type == "ConstantOfShape" and item.t.data_type == _FLOAT:
            item.t.CopyFrom(_to_half(item.t, ""))
    if node.op_type == "ConstantOfShape" and not node.attribute:
        zero = numpy_helper.from_array(np.zeros(1, np.float16))
        node.attribute.append(helper.make_attribute("value", zero))


def _retype_initializers(
    proto: onnx.ModelProto, graph: _TypedGraph, wanted: dict[str, set[int]], casts: _Casts
) -> None:
    for tensor in list(proto.graph.initializer):
        if tensor.name not in graph.constants or _HALF not in wanted[tensor.name]:
            continue
        proto.graph.initializer.append(_to_half(tensor, casts.name(tensor.name, _HALF)))
        if _FLOAT not in wanted[tensor.name]:
            proto.graph.initializer.remove(tensor)


def _to_half(tensor: TensorProto, name: str) -> TensorProto:
    with np.errstate(under="ignore", over="raise"):
        return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name)


def _is_wide(tensor: TensorProto) -> bool:
    if tensor.data_type != _FLOAT:
        return False
    values = np.abs(numpy_helper.to_array(tensor))
    return bool((np.isfinite(values) & (values > FP16_MAX)).any())


def _allows_half(schema: onnx.defs.OpSchema | None, is_output: bool, position: int) -> bool:
    if schema is None:
        return False
    formals = schema.outputs if is_output else schema.inputs
    formal = formals[min(position, len(formals) - 1)]
    return "tensor(float16)" in formal.types


def _copy_node(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
