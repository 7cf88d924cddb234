"""Every plan with its file: what an engine opens, or is built from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from deploy.bundle.preflight import explain_mismatch, read_host
from deploy.cache import hash_parts
from deploy.candidates.graphs import GraphSources, correct_nothing, make_graph
from deploy.candidates.plans import GpuTarget, Plan, choose_plans
from deploy.engines.availability import find_obstacle
from deploy.engines.base import EngineSpec, Feeds
from deploy.engines.device import NO_GPU, needs_gpu
from deploy.engines.process import call_in_child
from export.artifacts import OnnxModel, TensorSpec
from export.errors import DeployError, NothingToQuantizeError
from export.progress import Progress, ProgressCallback, ignore_progress
from export.tensorrt.contract import read_stray_float
from export.tensorrt.products import PRODUCTS
from export.tensorrt.record import EngineFile, EngineRecord
from quantize.calibration.ranges import Ranges
from quantize.int8.adjustments import Adjustments

_LATER = "; deploy finish judges it where it runs"


@dataclass(frozen=True)
class Candidate:
    """A plan with its file, or the reason why there is none.

    Attributes:
        status: ``built`` can be run here; ``not_run`` may have a file that this machine cannot run.
        file: absolute, inside the staged bundle.
        source: of an engine built ahead of time, or to be built elsewhere, the ONNX file that it
            is built from.
        record: of one that was built, what it needs and was made of.
        inputs: of the model, with the ranges of their dynamic axes.
        stray_float: of an engine of TensorRT, see `export.tensorrt.contract.find_stray_float`.
    """

    plan: Plan
    status: Literal["built", "failed", "not_run"]
    reason: str | None = None
    file: Path | None = None
    source: Path | None = None
    record: EngineRecord | None = None
    inputs: tuple[TensorSpec, ...] = ()
    stray_float: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As reports call it."""
        return self.plan.name

    def spec(self, threads: int) -> EngineSpec:
        """How to open it."""
        plan = self.plan
        return EngineSpec(
            plan.engine,
            plan.precision,
            str(self.file),
            threads,
            inputs=self.inputs,
            variant=plan.variant,
            record=self.record,
            source=None if self.source is None else str(self.source),
        )


def build_candidates(
    model: OnnxModel,
    ranges: Ranges | DeployError,
    *,
    stage: Path,
    scratch: Path,
    target: GpuTarget | None = None,
    samples: tuple[Feeds, ...] = (),
    corrections: Callable[[str], Adjustments | None] = correct_nothing,
    threads: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> tuple[Candidate, ...]:
    """Make the file of every plan; one that fails keeps its reason and the rest go on.

    Args:
        model, ranges, stage, scratch, samples, corrections, threads: see `GraphSources`.
        target: what is built for GPUs.
        progress: told after every plan, and of the build of every engine.
    """
    target = target or GpuTarget()
    sources = GraphSources(model, ranges, stage, scratch, samples, corrections, threads)
    graphs: dict[str, OnnxModel | DeployError] = {}
    candidates = []
    plans = choose_plans(model, target)
    for index, plan in enumerate(plans):
        progress(Progress("build candidates", index, len(plans), plan.name))
        obstacle = find_obstacle(plan.engine, plan.precision, plan.variant)
        later = plan.engine == "onnxruntime" and needs_gpu(plan)  # its file is one for elsewhere
        if obstacle is not None and plan.engine != "tensorrt" and not later:
            candidates.append(Candidate(plan, "not_run", obstacle))
            continue
        if plan.graph not in graphs:
            graphs[plan.graph] = make_graph(plan.graph, sources)
        graph = graphs[plan.graph]
        if isinstance(graph, DeployError):
            kind: Literal["failed", "not_run"] = "failed"
            if isinstance(graph, NothingToQuantizeError):
                kind = "not_run"
            candidates.append(Candidate(plan, kind, str(graph)))
        elif plan.engine in PRODUCTS:
            candidate = _build_engine(plan, graph, sources, target, progress)
            candidates.append(replace(candidate, stray_float=read_stray_float(graph.path)))
        else:
            built = Candidate(plan, "built", file=graph.path, inputs=graph.inputs)
            if obstacle is not None:
                built = replace(built, status="not_run", reason=f"{obstacle}{_LATER}")
            candidates.append(built)
    progress(Progress("build candidates", len(plans), len(plans)))
    return tuple(candidates)


def _build_engine(
    plan: Plan,
    graph: OnnxModel,
    sources: GraphSources,
    target: GpuTarget,
    progress: ProgressCallback,
) -> Candidate:
    """An engine of TensorRT; where it can only be built elsewhere, the file to build it from."""
    if not PRODUCTS[plan.engine].ahead_of_time:
        missing = NO_GPU if target.gpu is None else find_obstacle(plan.engine, plan.precision)
        if missing is not None:
            reason = f"{missing}; deploy finish builds it where there is one"
            return Candidate(plan, "not_run", reason, file=graph.path, source=graph.path)
    try:
        built: EngineFile = call_in_child(
            "export.tensorrt:build_engine",
            model=graph,
            path=sources.stage / plan.name / "model.engine",
            engine=plan.engine,
            options=target.options_for(plan.engine),
            progress=progress,
        )
    except DeployError as error:  # options that one product has not stop no other candidate
        return Candidate(plan, "failed", str(error))
    record = built.record
    if plan.precision == "int8":
        record = replace(record, calibration_sha256=_hash_ranges(sources.calibrated()))
    candidate = Candidate(plan, "built", None, built.path, graph.path, record, graph.inputs)
    obstacle = _explain_unfit(candidate, target)
    return candidate if obstacle is None else replace(candidate, status="not_run", reason=obstacle)


def _explain_unfit(candidate: Candidate, target: GpuTarget) -> str | None:
    """Why an engine that was built cannot run here; asked before anything opens it."""
    if target.gpu is None or candidate.file is None:
        return NO_GPU
    host = replace(read_host(), gpu=target.gpu)
    return explain_mismatch(candidate.record, candidate.file, host)


def _hash_ranges(ranges: Ranges) -> str:
    """Of the symmetric ranges, which the engines of GPUs are quantized by."""
    return hash_parts({name: [float(x) for x in span] for name, span in ranges.symmetric.items()})
