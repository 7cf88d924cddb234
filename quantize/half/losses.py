"""What each node of a float32 model loses by itself when its tensors are rounded to 16 bits.

Every node gets a twin that reads the same float32 values, rounded to float16 or bfloat16,
computes in float32, and has its result rounded. ``SQNR = sum(y**2) / sum((y - y_twin)**2)`` over
all samples, y being the float32 result: rounding, underflow, overflow and cancellation of this one
node, without what came before it. Sums that an engine gathers in 16 bits lose more;
`quantize.half.half_reasons` keeps the long ones in float32 for that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.artifacts import OnnxModel
from export.errors import QuantizeError
from export.onnx.execute import ExposedModel
from export.onnx.files import read_model
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.calibration.calibrate import batch_size
from quantize.half.typed_graph import BF16, FLOAT, FP16, HalfType, TypedGraph, copy_node

MIN_OPSET = 11
"""The first opset that compares floats with Equal."""
_HALVES: Mapping[str, HalfType] = {half.name: half for half in (FP16, BF16)}
_ROUND_NOTHING = frozenset(
    {"Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Shape"}
    | {"Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where", "Dropout"}
    | {"DequantizeLinear", "QuantizeLinear"}
)
"""They move values; what is rounded is counted where it was made."""
_RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"})


@dataclass(frozen=True)
class Losses:
    """What single nodes lose.

    Attributes:
        half: ``fp16`` or ``bf16``.
        samples: how many were run.
        sqnr_db: first output of a node → its SQNR in dB; infinite where nothing is lost, minus
            infinite where the result is not finite any more or all of it is lost.
    """

    half: str
    samples: int
    sqnr_db: Mapping[str, float]


def measure_rounding(
    model: OnnxModel,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    half: str = "fp16",
    progress: ProgressCallback = ignore_progress,
    threads: int = 0,
) -> Losses:
    """Run `model` on every batch, each node beside its rounded twin.

    Args:
        model: the float32 model; its file is read, never written.
        batches: one mapping a batch, an array for every graph input; consumed once.
        half: ``fp16`` or ``bf16``.
        progress: called after each batch with ``Progress("measure rounding", samples done, 0)``.
        threads: of ONNX Runtime; 0 lets it choose.

    Raises:
        QuantizeError: no batches, an opset below 11, or subgraphs.
        EngineError: ONNX Runtime refuses the model or a batch.
    """
    if model.opset < MIN_OPSET:
        raise QuantizeError(
            f"opset {model.opset} cannot compare floats; export with opset {MIN_OPSET} or later"
        )
    proto = read_model(model.path)
    scores = _add_twins(proto, TypedGraph(proto, _HALVES[half]))
    totals = {name: np.zeros(2) for name in scores}
    done = 0
    names = [name for pair in scores.values() for name in pair]
    with ExposedModel(proto, names, threads=threads) as exposed:
        for batch in batches:
            values = exposed(batch)
            for name, pair in scores.items():
                totals[name] += [float(values[part]) for part in pair]
            done += batch_size(model, batch)
            progress(Progress("measure rounding", done, 0))
    if not done:
        raise QuantizeError("No batches to measure rounding on; pass at least one of real inputs.")
    return Losses(half, done, {name: _decibels(*total) for name, total in totals.items()})


def _add_twins(proto: onnx.ModelProto, graph: TypedGraph) -> dict[str, tuple[str, str]]:
    """Put the twins into `proto`; first output → the names of signal and noise."""
    zero = numpy_helper.from_array(np.zeros((), np.float32), "rounding_zero")
    proto.graph.initializer.append(zero)
    body: list[NodeProto] = []
    rounded: dict[str, str] = {}
    scores: dict[str, tuple[str, str]] = {}

    def round_to(name: str, result: str) -> str:
        narrow = helper.make_node("Cast", [name], [f"{result}_narrow"], to=graph.half.element)
        body.extend([narrow, helper.make_node("Cast", [f"{result}_narrow"], [result], to=FLOAT)])
        return result

    for node in graph.nodes:
        body.append(copy_node(node))
        slots = list(graph.slots(node))
        measured = any(out and not position and half for out, position, _, half in slots)
        if not measured or node.op_type in _ROUND_NOTHING | _RANDOM:
            continue
        twin = copy_node(node)
        twin.name = f"{node.name}_rounding_twin" if node.name else ""
        for is_output, position, name, half in slots:
            if not is_output and half:
                if name not in rounded:
                    rounded[name] = round_to(name, f"{name}_rounded")
                twin.input[position] = rounded[name]
        twin.output[:] = [f"{name}_twin" if name else "" for name in node.output]
        body.append(twin)
        result = round_to(twin.output[0], f"{twin.output[0]}_rounded")
        nodes, scores[node.output[0]] = _score(node.output[0], result)
        body.extend(nodes)
    del proto.graph.node[:]
    proto.graph.node.extend(body)
    return scores


def _score(name: str, twin: str) -> tuple[list[NodeProto], tuple[str, str]]:
    """Nodes for sum(y**2) and sum((y - twin)**2) in float64; infinities that agree are no noise."""
    same, difference = f"{twin}_same", f"{twin}_difference"
    infinite, finite = f"{twin}_infinite", f"{twin}_finite"
    nodes = [
        helper.make_node("Equal", [name, twin], [same]),
        helper.make_node("Sub", [name, twin], [f"{twin}_raw"]),
        helper.make_node("Where", [same, "rounding_zero", f"{twin}_raw"], [difference]),
        helper.make_node("IsInf", [name], [infinite]),
        helper.make_node("Where", [infinite, "rounding_zero", name], [finite]),
    ]
    results = (f"{twin}_signal", f"{twin}_noise")
    for source, result in zip((finite, difference), results, strict=True):
        wide = f"{source}_double"
        nodes.append(helper.make_node("Cast", [source], [wide], to=TensorProto.DOUBLE))
        nodes.append(helper.make_node("ReduceSumSquare", [wide], [result], keepdims=0))
    return nodes, results


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return float("inf")
    if not np.isfinite(noise) or signal == 0:
        return float("-inf")
    return float(10 * np.log10(signal / noise))
