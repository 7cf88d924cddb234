"""Which engines in which precisions are tried, and the files that each of them opens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.availability import find_obstacle
from deploy.engines.base import EngineSpec
from deploy.process import call_in_child
from export.artifacts import OnnxModel
from export.errors import DeployError, EngineError, NothingToQuantizeError
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.calibrate import Ranges
from quantize.fp16 import convert_fp16
from quantize.int8 import quantize_int8
from quantize.scheme import PRESETS


@dataclass(frozen=True)
class Plan:
    """One candidate before anything is built.

    Attributes:
        graph: the ONNX graph that it opens or is built from; see `GRAPHS`.
    """

    engine: str
    precision: str
    graph: str

    @property
    def name(self) -> str:
        """As reports call it."""
        return f"{self.engine}-{self.precision}"


PLANS = (
    Plan("onnxruntime", "fp32", "fp32"),
    Plan("onnxruntime", "int8", "int8-x86"),
    Plan("openvino", "fp32", "fp32"),
    Plan("openvino", "bf16", "fp32"),
    Plan("openvino", "int8", "int8-x86"),
    Plan("tensorrt_rtx", "fp16", "fp16-tensorrt"),
    Plan("tensorrt_rtx", "int8", "int8-tensorrt"),
)

_AHEAD_OF_TIME = ("tensorrt_rtx",)


@dataclass(frozen=True)
class Candidate:
    """A plan with its file, or the reason why there is none.

    Attributes:
        status: ``built`` can be run here; ``not_run`` may have a file that this machine cannot run.
        file: absolute, inside the staged bundle.
    """

    plan: Plan
    status: Literal["built", "failed", "not_run"]
    reason: str | None = None
    file: Path | None = None

    @property
    def name(self) -> str:
        """As reports call it."""
        return self.plan.name

    def spec(self, threads: int) -> EngineSpec:
        """How to open it."""
        return EngineSpec(self.plan.engine, self.plan.precision, str(self.file), threads)


@dataclass(frozen=True)
class _Sources:
    """What graphs are made from."""

    model: OnnxModel
    ranges: Ranges | DeployError
    stage: Path
    scratch: Path

    def calibrated(self) -> Ranges:
        if isinstance(self.ranges, DeployError):
            raise self.ranges
        return self.ranges


def _x86_int8(sources: _Sources) -> OnnxModel:
    path = sources.stage / "onnx-int8" / "model.onnx"
    path.parent.mkdir()
    return quantize_int8(sources.model, sources.calibrated(), PRESETS["x86"], path).model


def _tensorrt_fp16(sources: _Sources) -> OnnxModel:
    ranges = None if isinstance(sources.ranges, DeployError) else sources.ranges
    return convert_fp16(sources.model, sources.scratch / "fp16.onnx", ranges=ranges).model


def _tensorrt_int8(sources: _Sources) -> OnnxModel:
    """int8 by Q/DQ, and the float remainder in fp16: fp32 there would cost more than int8 gains."""
    ranges, scratch = sources.calibrated(), sources.scratch
    quantized = quantize_int8(
        sources.model, ranges, PRESETS["tensorrt"], scratch / "int8-fp32.onnx"
    )
    return convert_fp16(quantized.model, scratch / "int8-fp16.onnx", ranges=ranges).model


GRAPHS: Mapping[str, Callable[[_Sources], OnnxModel]] = {
    "fp32": lambda sources: sources.model,
    "int8-x86": _x86_int8,
    "fp16-tensorrt": _tensorrt_fp16,
    "int8-tensorrt": _tensorrt_int8,
}


def build_candidates(
    model: OnnxModel,
    ranges: Ranges | DeployError,
    *,
    stage: Path,
    scratch: Path,
    gpu: str | None,
    progress: ProgressCallback = ignore_progress,
) -> tuple[Candidate, ...]:
    """Make the file of every plan; one that fails keeps its reason and the rest go on.

    Args:
        model: the fused float32 model, inside `stage`.
        ranges: the calibration, or why there is none.
        stage: the staged bundle; files that an engine opens land here.
        scratch: for what nobody opens later.
        gpu: name of the NVIDIA GPU, if there is one.
        progress: told after every plan.
    """
    sources = _Sources(model, ranges, stage, scratch)
    graphs: dict[str, OnnxModel | DeployError] = {}
    candidates = []
    for index, plan in enumerate(PLANS):
        progress(Progress("build candidates", index, len(PLANS), plan.name))
        obstacle = find_obstacle(plan.engine, plan.precision)
        if obstacle is not None:
            candidates.append(Candidate(plan, "not_run", obstacle))
            continue
        if plan.graph not in graphs:
            graphs[plan.graph] = _make_graph(plan.graph, sources)
        candidates.append(_build(plan, graphs[plan.graph], stage, gpu))
    progress(Progress("build candidates", len(PLANS), len(PLANS)))
    return tuple(candidates)


def _make_graph(name: str, sources: _Sources) -> OnnxModel | DeployError:
    try:
        return GRAPHS[name](sources)
    except DeployError as error:
        return error


def _build(plan: Plan, graph: OnnxModel | DeployError, stage: Path, gpu: str | None) -> Candidate:
    if isinstance(graph, NothingToQuantizeError):
        return Candidate(plan, "not_run", str(graph))
    if isinstance(graph, DeployError):
        return Candidate(plan, "failed", str(graph))
    if plan.engine not in _AHEAD_OF_TIME:
        return Candidate(plan, "built", file=graph.path)
    path = stage / plan.name / "model.engine"
    try:
        call_in_child(
            "export.tensorrt:build_engine", model=graph, path=path, precision=plan.precision
        )
    except EngineError as error:
        return Candidate(plan, "failed", str(error))
    reason = (
        "no NVIDIA GPU"
        if gpu is None
        else f"this version builds TensorRT engines and does not run them yet (GPU: {gpu})"
    )
    return Candidate(plan, "not_run", reason, path)
