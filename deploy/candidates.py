"""Which engines in which precisions are tried, and the files that each of them opens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.availability import find_obstacle
from deploy.engines.base import EngineSpec, Feeds, name_candidate
from deploy.process import call_in_child
from export.artifacts import OnnxModel
from export.errors import DeployError, EngineError, NothingToQuantizeError
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.adjustments import Adjustments
from quantize.bf16 import convert_bf16
from quantize.calibrate import Ranges
from quantize.dynamic import quantize_dynamic
from quantize.fp16 import Fp16Options, convert_fp16
from quantize.int8 import quantize_int8
from quantize.losses import Losses, measure_rounding
from quantize.matmuls import weight_share
from quantize.scheme import PRESETS
from quantize.weight_only import WEIGHT_PRESETS, quantize_weights


@dataclass(frozen=True)
class Plan:
    """One candidate before anything is built.

    Attributes:
        graph: the ONNX graph that it opens or is built from; see `GRAPHS`.
        variant: see `EngineSpec`.
    """

    engine: str
    precision: str
    graph: str
    variant: str = ""

    @property
    def name(self) -> str:
        """As reports call it."""
        return name_candidate(self)


PLANS = (
    Plan("onnxruntime", "fp32", "fp32"),
    Plan("onnxruntime", "int8", "int8-onnxruntime"),
    Plan("openvino", "fp32", "fp32"),
    Plan("openvino", "bf16", "fp32"),
    Plan("openvino", "int8", "int8-openvino"),
    Plan("tensorrt_rtx", "fp16", "fp16-tensorrt"),
    Plan("tensorrt_rtx", "bf16", "bf16-tensorrt"),
    Plan("tensorrt_rtx", "int8", "int8-tensorrt"),
)

PRODUCT_PLANS = (
    Plan("onnxruntime", "int8", "int8-dynamic", "dynamic"),
    Plan("onnxruntime", "int8", "int8-weights", "weights"),
    Plan("onnxruntime", "int4", "int4-weights", "weights"),
    Plan("openvino", "int8", "int8-weights", "weights"),
    Plan("openvino", "int4", "int4-weights", "weights"),
)
"""For models whose work is to multiply by matrices, as transformers do; see `choose_plans`."""

MIN_PRODUCT_SHARE = 0.5
MIN_PRODUCT_WEIGHTS = 2**18
"""A megabyte of float32: below it there is nothing to save."""

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
        plan = self.plan
        return EngineSpec(
            plan.engine, plan.precision, str(self.file), threads, variant=plan.variant
        )


def correct_nothing(target: str) -> None:
    """For int8 models whose biases stay as they are."""


@dataclass(frozen=True)
class _Sources:
    """What graphs are made from."""

    model: OnnxModel
    ranges: Ranges | DeployError
    stage: Path
    scratch: Path
    samples: tuple[Feeds, ...] = ()
    corrections: Callable[[str], Adjustments | None] = correct_nothing

    def calibrated(self) -> Ranges:
        if isinstance(self.ranges, DeployError):
            raise self.ranges
        return self.ranges

    def quantize(self, target: str, path: Path) -> OnnxModel:
        """The int8 model for a key of `PRESETS`."""
        return quantize_int8(
            self.model,
            self.calibrated(),
            PRESETS[target],
            path,
            adjustments=self.corrections(target),
        ).model

    def losses(self, half: str) -> Losses | None:
        """What single nodes lose in a 16-bit float; None where nothing was given to tell it by."""
        return measure_rounding(self.model, self.samples, half=half) if self.samples else None


def _int8_for(target: str) -> Callable[[_Sources], OnnxModel]:
    """The maker of the Q/DQ file that `target` opens as it is."""

    def make(sources: _Sources) -> OnnxModel:
        path = sources.stage / f"{target}-int8" / "model.onnx"
        path.parent.mkdir()
        return sources.quantize(target, path)

    return make


def _tensorrt_fp16(sources: _Sources) -> OnnxModel:
    ranges = None if isinstance(sources.ranges, DeployError) else sources.ranges
    options = Fp16Options(sources.losses("fp16"))
    path = sources.scratch / "fp16.onnx"
    return convert_fp16(sources.model, path, ranges=ranges, options=options).model


def _tensorrt_int8(sources: _Sources) -> OnnxModel:
    """int8 by Q/DQ, and the float remainder in fp16: fp32 there would cost more than int8 gains."""
    ranges, scratch = sources.calibrated(), sources.scratch
    quantized = sources.quantize("tensorrt", scratch / "int8-fp32.onnx")
    options, path = Fp16Options(sources.losses("fp16")), scratch / "int8-fp16.onnx"
    return convert_fp16(quantized, path, ranges=ranges, options=options).model


def _tensorrt_bf16(sources: _Sources) -> OnnxModel:
    losses = sources.losses("bf16")
    return convert_bf16(sources.model, sources.scratch / "bf16.onnx", losses=losses).model


def _dynamic(sources: _Sources) -> OnnxModel:
    path = sources.stage / "onnx-int8-dynamic" / "model.onnx"
    return quantize_dynamic(sources.model, path).model


def _weights_in(precision: str) -> Callable[[_Sources], OnnxModel]:
    """The maker of the file whose weights alone are in `precision`."""

    def make(sources: _Sources) -> OnnxModel:
        path = sources.stage / f"onnx-{precision}-weights" / "model.onnx"
        return quantize_weights(sources.model, WEIGHT_PRESETS[precision], path).model

    return make


GRAPHS: Mapping[str, Callable[[_Sources], OnnxModel]] = {
    "fp32": lambda sources: sources.model,
    "int8-onnxruntime": _int8_for("onnxruntime"),
    "int8-openvino": _int8_for("openvino"),
    "int8-dynamic": _dynamic,
    "int8-weights": _weights_in("int8"),
    "int4-weights": _weights_in("int4"),
    "fp16-tensorrt": _tensorrt_fp16,
    "bf16-tensorrt": _tensorrt_bf16,
    "int8-tensorrt": _tensorrt_int8,
}


def build_candidates(
    model: OnnxModel,
    ranges: Ranges | DeployError,
    *,
    stage: Path,
    scratch: Path,
    gpu: str | None,
    samples: tuple[Feeds, ...] = (),
    corrections: Callable[[str], Adjustments | None] = correct_nothing,
    progress: ProgressCallback = ignore_progress,
) -> tuple[Candidate, ...]:
    """Make the file of every plan; one that fails keeps its reason and the rest go on.

    Args:
        model: the fused float32 model, inside `stage`.
        ranges: the calibration, or why there is none.
        stage: the staged bundle; files that an engine opens land here.
        scratch: for what nobody opens later.
        gpu: name of the NVIDIA GPU, if there is one.
        samples: a few batches, to measure on what single nodes lose in 16 bits.
        corrections: of the biases of the int8 model for a key of `PRESETS`.
        progress: told after every plan.
    """
    sources = _Sources(model, ranges, stage, scratch, samples, corrections)
    graphs: dict[str, OnnxModel | DeployError] = {}
    candidates = []
    plans = choose_plans(model)
    for index, plan in enumerate(plans):
        progress(Progress("build candidates", index, len(plans), plan.name))
        obstacle = find_obstacle(plan.engine, plan.precision)
        if obstacle is not None:
            candidates.append(Candidate(plan, "not_run", obstacle))
            continue
        if plan.graph not in graphs:
            graphs[plan.graph] = _make_graph(plan.graph, sources)
        candidates.append(_build(plan, graphs[plan.graph], stage, gpu))
    progress(Progress("build candidates", len(plans), len(plans)))
    return tuple(candidates)


def choose_plans(model: OnnxModel) -> tuple[Plan, ...]:
    """`PLANS`, and `PRODUCT_PLANS` where they are worth their time.

    That is where at least half of the multiplications, and a quarter of a million weights, are
    those of MatMul and Gemm with constant weights: transformers, and not convolutional networks.
    """
    share, weights = weight_share(model)
    worth = share >= MIN_PRODUCT_SHARE and weights >= MIN_PRODUCT_WEIGHTS
    return PLANS + PRODUCT_PLANS if worth else PLANS


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
