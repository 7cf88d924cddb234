"""ONNX float32 → ONNX in bfloat16 by Casts: for TensorRT, which takes precision from the graph.

bfloat16 has float32's range and 8 bits of precision: nothing overflows, and nodes stay in float32
for the reasons of `half_reasons` alone, among them operators that TensorRT has in float32
and float16 only (`quantize.half.half_rules`). OpenVINO needs no such file, its own hint computes
a float32 file in bfloat16. ONNX Runtime has no bfloat16 kernels on the CPU.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from export.artifacts import OnnxModel, Skip
from export.errors import QuantizeError
from export.onnx.files import read_model, write_model
from export.onnx.graph import node_label
from quantize.half.casts import retype
from quantize.half.half_reasons import find_reasons
from quantize.half.losses import Losses
from quantize.half.opset import raise_opset
from quantize.half.typed_graph import BF16, TypedGraph, check_names

MIN_OPSET = 22
"""The first opset whose Conv and pools take bfloat16; an older model is raised to it."""


@dataclass(frozen=True)
class Bf16Result:
    """The bfloat16 model, and the nodes that stay in float32 with the reason."""

    model: OnnxModel
    kept_fp32: tuple[Skip, ...]


def convert_bf16(
    model: OnnxModel,
    path: Path,
    *,
    keep_fp32: Collection[str] = (),
    losses: Losses | None = None,
) -> Bf16Result:
    """Write `model` in bfloat16 to `path`; the signature keeps its names and float32.

    Args:
        model: the float32 model; its file is not changed.
        path: the file to write; not `model.path`.
        keep_fp32: names of nodes that stay in float32.
        losses: what single nodes lose, from ``measure_rounding(..., half="bf16")``.

    Raises:
        QuantizeError: subgraphs (If, Loop, Scan), an unknown name in `keep_fp32`, an operator
            whose types cannot be inferred or whose meaning changes up to opset 22, one that
            TensorRT cannot build beside bfloat16, or `path` is the model itself.
    """
    if model.path.resolve() == path.resolve():
        raise QuantizeError(f"{path} is the float model itself; write the bf16 one elsewhere.")
    proto = read_model(model.path)
    check_names(proto, keep_fp32)
    opset = raise_opset(proto, MIN_OPSET)
    graph = TypedGraph(proto, BF16)
    reasons = find_reasons(proto, graph, keep_fp32, losses)
    retype(proto, graph, reasons, keep_io_types=True)
    write_model(proto, path)
    skips = tuple(
        Skip(node_label(graph.nodes[number]), "bf16", reason)
        for number, reason in sorted(reasons.items())
    )
    return Bf16Result(replace(model, path=path, opset=opset), skips)
