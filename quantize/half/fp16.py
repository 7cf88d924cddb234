"""ONNX float32 → ONNX in float16 by Casts.

Every node with float tensors runs in one of the two types (`quantize.half.casts`). A node stays in
float32 for one of the reasons of `half_reasons`, or when a constant or an observed value
of it comes near 65504, where float16 ends.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, numpy_helper

from export.artifacts import OnnxModel, Skip, TensorSpec
from export.errors import QuantizeError
from export.onnx.files import read_model, write_model
from export.onnx.graph import attribute, node_label
from quantize.calibration.ranges import Ranges
from quantize.half.casts import retype
from quantize.half.half_reasons import Reasons, find_reasons
from quantize.half.losses import Losses
from quantize.half.typed_graph import FLOAT, FP16, Slot, TypedGraph, check_names

FP16_MAX = FP16.largest
HEADROOM = 2.0
"""What was observed may be exceeded by this factor before float16 ends."""

_CARRIES_MASK = frozenset(
    {"Add", "Cast", "Concat", "Expand", "Gather", "Identity", "Mul", "Reshape", "Slice", "Sub"}
    | {"Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where"}
)
_READS_MASK = frozenset({"Softmax", "LogSoftmax"})
_VALUE = "a constant of it is beyond 65504"


@dataclass(frozen=True)
class Fp16Result:
    """The float16 model, and the nodes that stay in float32 with the reason."""

    model: OnnxModel
    kept_fp32: tuple[Skip, ...]


@dataclass(frozen=True)
class Fp16Options:
    """What else is known or wanted.

    Attributes:
        losses: what single nodes lose, from `quantize.half.losses.measure_rounding`.
        keep_io_types: float32 inputs and outputs stay so; else they become float16, and the
            signature says it.
    """

    losses: Losses | None = None
    keep_io_types: bool = True


def convert_fp16(
    model: OnnxModel,
    path: Path,
    *,
    keep_fp32: Collection[str] = (),
    ranges: Ranges | None = None,
    options: Fp16Options = Fp16Options(),
) -> Fp16Result:
    """Write `model` in float16 to `path`; the signature keeps its names and, by default, its types.

    Q/DQ pairs of an int8 model run in float16 as well from opset 19 on, where their scales are
    normal float16 numbers.

    Args:
        model: the float32 model; its file is not changed.
        path: the file to write; not `model.path`.
        keep_fp32: names of nodes that stay in float32.
        ranges: observed ranges of any tensors (calibrate with ``tensors=float_tensors(...)``);
            nodes that touch one beyond half of 65504 stay in float32. Without them, only constants
            tell.
        options: measured losses, and the types of inputs and outputs.

    Raises:
        QuantizeError: subgraphs (If, Loop, Scan), an unknown name in `keep_fp32`, an operator
            whose types cannot be inferred, an input or output beyond float16 that shall become it,
            or `path` is the model itself.
    """
    if model.path.resolve() == path.resolve():
        raise QuantizeError(f"{path} is the float model itself; write the fp16 one elsewhere.")
    proto = read_model(model.path)
    check_names(proto, keep_fp32)
    graph = TypedGraph(proto, FP16)
    wide = _wide_tensors(ranges)
    if not options.keep_io_types:
        _refuse_wide_io(graph, wide)
    reasons = find_reasons(proto, graph, keep_fp32, options.losses)
    _keep_wide(graph, wide, reasons)
    retype(proto, graph, reasons, keep_io_types=options.keep_io_types)
    write_model(proto, path)
    converted = replace(model, path=path)
    if not options.keep_io_types:
        inputs, outputs = (_in_half(specs) for specs in (model.inputs, model.outputs))
        converted = replace(converted, inputs=inputs, outputs=outputs)
    skips = tuple(
        Skip(node_label(graph.nodes[number]), "fp16", reason)
        for number, reason in sorted(reasons.items())
    )
    return Fp16Result(converted, skips)


def _wide_tensors(ranges: Ranges | None) -> dict[str, float]:
    """Tensors observed too near the end of float16, with their largest value."""
    largest = {
        name: max(abs(low), abs(high))
        for name, (low, high) in ((ranges.extents or ranges.ranges) if ranges else {}).items()
    }
    return {name: value for name, value in largest.items() if value > FP16_MAX / HEADROOM}


def _refuse_wide_io(graph: TypedGraph, wide: dict[str, float]) -> None:
    for name in sorted((graph.inputs | graph.outputs) & wide.keys()):
        raise QuantizeError(
            f"{name!r} holds values up to {wide[name]:.3g}, and float16 ends at 65504; keep the "
            "types of inputs and outputs (keep_io_types)."
        )


def _in_half(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    return tuple(
        replace(spec, dtype="float16") if spec.dtype == "float32" else spec for spec in specs
    )


def _keep_wide(graph: TypedGraph, wide: dict[str, float], reasons: Reasons) -> None:
    wide_constants = {name for name, tensor in graph.constants.items() if _is_wide(tensor)}
    for number, node in enumerate(graph.nodes):
        if number in reasons:
            continue
        reason = _value_reason(list(graph.slots(node)), wide, wide_constants)
        value = attribute(node, "value", None) if node.op_type == "ConstantOfShape" else None
        if value is not None and _is_wide(value):
            reason = _VALUE
        if reason:
            reasons[number] = reason
    _keep_masks(graph, reasons)


def _value_reason(slots: list[Slot], wide: dict[str, float], wide_constants: set[str]) -> str:
    for _, _, name, half in slots:
        if half and name in wide_constants:
            return _VALUE
        if name in wide:
            return f"tensor {name!r} was observed at {wide[name]:.3g}; float16 ends at 65504"
    return ""


def _keep_masks(graph: TypedGraph, reasons: Reasons) -> None:
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


def _is_wide(tensor: TensorProto) -> bool:
    if tensor.data_type != FLOAT:
        return False
    values = np.abs(numpy_helper.to_array(tensor))
    return bool((np.isfinite(values) & (values > FP16_MAX)).any())
