"""`build`: a trained model in, a verified bundle out. Its stages stand there, top to bottom."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from deploy.bundle import Bundle, read_bundle
from deploy.candidates import Candidate, build_candidates
from deploy.checking import CheckPlan, check_candidates
from deploy.config import BuildConfig
from deploy.engines.base import Feeds
from deploy.findings import Findings, make_report
from deploy.gates import NO_CALIBRATION_DATA, choose_winner, judge_parity, judge_speed
from deploy.latency import LatencyReport, LatencySettings, measure
from deploy.machine import describe_machine, usable_cores
from deploy.packing import forget_failure, pack_bundle, write_failure
from deploy.parity import ParityReport
from deploy.peaks import measure_peaks
from deploy.reference import Reference
from deploy.results import CandidateResult
from deploy.source import Problem, open_problem
from deploy.staging import stage_bundle
from export.cost import model_cost
from export.errors import ConfigError, DeployError, GateError
from export.execute import float_tensors
from export.fusion.options import FusionOptions
from export.ladder import Exported, export_model
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.calibrate import Ranges, calibrate

_CALIBRATION_BATCH = 8


@dataclass
class _Clock:
    """Seconds of every stage, and the report to the caller that one begins."""

    progress: ProgressCallback
    seconds: list[tuple[str, float]] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress(Progress(name))
        started = time.perf_counter()
        yield
        self.seconds.append((name, time.perf_counter() - started))


def build(
    model: Path | str | nn.Module,
    config: BuildConfig | None = None,
    *,
    output: Path | str | None = None,
    progress: ProgressCallback = ignore_progress,
) -> Bundle:
    """Take a trained model to a bundle: fuse, export, quantize, check, measure, choose, pack.

    Args:
        model: a model file in any of its forms, or a module (which is not changed).
        config: the options; inputs must come from it or from its data.
        output: the bundle's folder; default: that of `config`, else ``NAME.deploy`` beside the
            model file.
        progress: told what goes on.

    Returns:
        The bundle. Its winner is ``torch`` where nothing beats eager.

    Raises:
        InputError: the model, the options or the data cannot be used.
        ExportError: the model cannot be exported on any rung.
        GateError: no candidate gives the model's answers; the message says where the report is.
    """
    config = config or BuildConfig()
    target = _choose_output(model, output or config.output)
    clock = _Clock(progress)
    machine = describe_machine()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deploy-")))
        with clock.stage("load"):
            problem = open_problem(model, config, scratch)
        stage = stack.enter_context(stage_bundle(target))
        threads = _choose_threads(config)
        reference = Reference(problem.module, problem.signature, threads=threads)
        with clock.stage("export"):
            exported, problem = _export(problem, config, stage, progress)
        with clock.stage("calibrate"):
            ranges = _calibrate(problem, exported, config, threads, progress)
        with clock.stage("build candidates"):
            built = build_candidates(
                exported.onnx,
                ranges,
                stage=stage,
                scratch=scratch,
                gpu=machine.gpu,
                progress=progress,
            )
        with clock.stage("check parity"):
            specs = {c.name: c.spec(threads) for c in built if c.status == "built"}
            plan = CheckPlan(problem.static_batch, problem.classes_of)
            parity = check_candidates(reference, specs, problem.evaluation, plan, progress)
        baseline = problem.baseline_spec(threads)
        judged = [_judge(candidate, parity, threads, problem, config) for candidate in built]
        with clock.stage("measure latency"):
            peaks = measure_peaks(threads=threads)
            feeds = problem.latency_feeds()
            timed = [result.spec for result in judged if result.spec and result.parity]
            settings = LatencySettings(seconds=config.measure_seconds, seed=config.seed)
            latency = measure(baseline, timed, feeds, settings, progress)
        results = tuple(_judge_latency(result, latency) for result in judged)
        winner = _choose(results, config.seed)
        findings = Findings(
            problem=problem,
            exported=exported,
            cost=model_cost(exported.onnx, batch=problem.latency_batch),
            machine=machine,
            peaks=peaks,
            results=results,
            latency=latency,
            threads=threads,
            winner=winner,
            floor_reason=reference.floor_reason,
        )
        if not any(result.parity_holds for result in results):
            where = write_failure(target, make_report(findings, config, clock.seconds))
            first = results[0]
            raise GateError(
                "No candidate gives the model's answers, so nothing is shipped. "
                f"{first.name}: {first.reason}. The report says more: {where}"
            )
        with clock.stage("pack"):
            pack_bundle(stage, findings, reference, config, clock.seconds)
    forget_failure(target)
    return read_bundle(target)


def _choose_output(model: Path | str | nn.Module, output: Path | str | None) -> Path:
    if output is not None:
        return Path(output)
    if isinstance(model, nn.Module):
        return Path(f"{type(model).__name__.lower()}.deploy")
    return Path(model).with_suffix(".deploy")


def _choose_threads(config: BuildConfig) -> int:
    if config.threads > usable_cores():
        raise ConfigError(
            f"--threads {config.threads}: this machine has {usable_cores()} usable cores, and more "
            "threads than cores measure nothing. Leave it out to use all."
        )
    return config.threads or usable_cores()


def _export(
    problem: Problem, config: BuildConfig, stage: Path, progress: ProgressCallback
) -> tuple[Exported, Problem]:
    """To ONNX; a model that cannot have a dynamic batch keeps the one of its inputs instead."""

    def export(problem: Problem) -> Exported:
        return export_model(
            problem.module,
            problem.trace_feeds(),
            stage,
            signature=problem.signature,
            static_batch=problem.static_batch is not None,
            opset=config.opset,
            program=problem.program,
            fusion=FusionOptions(merge_always=config.merge_always),
            progress=progress,
        )

    exported = export(problem)
    if exported.dynamic_batch or problem.static_batch is not None:
        return exported, problem
    problem = problem.with_static_batch()
    again = export(problem)
    return replace(again, attempts=(*exported.attempts, *again.attempts)), problem


def _calibrate(
    problem: Problem,
    exported: Exported,
    config: BuildConfig,
    threads: int,
    progress: ProgressCallback,
) -> Ranges | DeployError:
    """The ranges of all float tensors; a model without them still has float engines."""
    data = problem.calibration
    size = problem.static_batch or _CALIBRATION_BATCH
    batches = (batch for batch in data.batches(size) if _full(batch, problem.static_batch))
    try:
        return calibrate(
            exported.onnx,
            batches,
            observer=config.observer,
            tensors=float_tensors(exported.onnx.path),
            total=len(data),
            threads=threads,
            progress=progress,
        )
    except DeployError as error:
        return error


def _full(batch: Feeds, size: int | None) -> bool:
    return size is None or len(next(iter(batch.values()))) == size


def _judge(
    candidate: Candidate,
    parity: dict[str, ParityReport | str],
    threads: int,
    problem: Problem,
    config: BuildConfig,
) -> CandidateResult:
    """What the parity gate says of one candidate."""
    result = CandidateResult(
        name=candidate.name,
        engine=candidate.plan.engine,
        precision=candidate.plan.precision,
        status="not_run" if candidate.status == "not_run" else "failed",
        reason=candidate.reason,
        file=candidate.file,
        size_bytes=_size(candidate.file),
    )
    if candidate.status != "built":
        if result.precision == "int8" and result.file is not None and problem.kind == "synthetic":
            return replace(result, status="rejected", reason=NO_CALIBRATION_DATA)
        return result
    report = parity[candidate.name]
    if isinstance(report, str):
        return replace(result, status="failed", reason=report)
    verdict = judge_parity(report, result.precision, kind=problem.kind, config=config)
    return replace(
        result,
        status="ok" if verdict.passed else "rejected",
        reason=verdict.reason,
        spec=candidate.spec(threads),
        parity=report,
        verdict=verdict,
    )


def _size(file: Path | None) -> int | None:
    """Bytes of an engine's file with its external data."""
    if file is None:
        return None
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))


def _judge_latency(result: CandidateResult, latency: LatencyReport) -> CandidateResult:
    """Add the times; a candidate that holds its parity must also beat eager."""
    if result.name in latency.failed:
        return replace(result, status="failed", reason=latency.failed[result.name], verdict=None)
    if result.name not in latency.engines:
        return result
    times = latency.engines[result.name]
    verdict = judge_speed(times)
    if result.status != "ok" or verdict.passed:
        return replace(result, latency=times)
    return replace(result, latency=times, status="rejected", reason=verdict.reason)


def _choose(results: tuple[CandidateResult, ...], seed: int) -> str:
    passed = {
        result.name: (result.precision, result.latency)
        for result in results
        if result.status == "ok" and result.latency is not None
    }
    return choose_winner(passed, seed=seed) or "torch"
