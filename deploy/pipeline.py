"""`build`: a trained model in, a verified bundle out. Its stages stand there, top to bottom."""

import contextlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from deploy.bundle.folder import Bundle, read_bundle
from deploy.bundle.packing import forget_failure, pack_bundle, write_failure
from deploy.bundle.plugin_files import stage_plugins
from deploy.bundle.staging import make_plain, stage_bundle
from deploy.cache import open_cache
from deploy.candidates.calibration import Calibrator
from deploy.candidates.corrections import Corrections
from deploy.candidates.files import build_candidates
from deploy.candidates.plans import GpuTarget
from deploy.config import BuildConfig
from deploy.engines.device import CUDA, choose_device
from deploy.findings import Findings, describe_one_way, make_report
from deploy.judging.checking import check_candidates
from deploy.judging.eager import settle_eager
from deploy.judging.recording import RecordedReference
from deploy.judging.reference import Reference
from deploy.judging.verdicts import choose, hold_to_float32, judge_candidate, judge_latency
from deploy.measuring.latency import LatencySettings, measure
from deploy.measuring.machine import describe_machine, usable_cores
from deploy.measuring.peaks import measure_peaks
from deploy.measuring.profiling import add_census
from deploy.results import CandidateResult
from deploy.reuse import build_key, find_built
from deploy.search.assignments import SearchReport, search
from deploy.search.sources import Sources
from deploy.source import Problem, open_problem
from export.artifacts import OnnxModel
from export.capture.ladder import Exported, export_model
from export.errors import ConfigError, DeployError, GateError
from export.fusion.options import FusionOptions
from export.gpu import read_gpu
from export.onnx.cost import count_row_bytes, model_cost
from export.progress import Progress, ProgressCallback, ignore_progress
from export.tensorrt.plugins import read_plugins
from quantize.audit import Finding
from quantize.calibration.ranges import Ranges

_ROUNDING_BATCHES = 2
"""Batches of calibration samples on which the losses of 16 bits are measured."""

_ONE_AT_A_TIME = threading.RLock()
"""Held by the build of this process: side by side they would time each other, and torch's exporters
change torch while they run."""


def _forget_builds() -> None:
    """In a process that was forked, which has no other thread that could let go."""
    global _ONE_AT_A_TIME
    _ONE_AT_A_TIME = threading.RLock()


os.register_at_fork(after_in_child=_forget_builds)


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

    Builds of several threads happen one after the other.

    Args:
        model: a model file in any of its forms, or a module (which is not changed).
        config: the options; inputs must come from it or from its data.
        output: the bundle's folder; default: that of `config`, else ``NAME.deploy`` beside the
            model file.
        progress: told what goes on.

    Returns:
        The bundle. Its winner is ``torch`` where nothing beats eager. Where a sound one stands at
        `output` already and nothing that it depends on has changed, it is that one, `reused`.

    Raises:
        InputError: the model, the options or the data cannot be used.
        ExportError: the model cannot be exported on any rung.
        GateError: no candidate gives the model's answers; the message says where the report is.
    """
    config = config or BuildConfig()
    plugins = read_plugins(config.plugin)
    target = make_plain(_choose_output(model, output or config.output))
    clock, device = _Clock(progress), choose_device(config.device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ONE_AT_A_TIME)
        machine = describe_machine()
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deploy-")))
        with clock.stage("load"):
            problem = open_problem(model, config, scratch)
        key = build_key(problem, replace(config, device=device), machine)
        anew = config.remeasure or config.no_cache
        if not anew and (unchanged := find_built(target, key)) is not None:
            return unchanged
        stage = stack.enter_context(stage_bundle(target))
        threads = _choose_threads(config)
        options = stage_plugins(config.engine_options(), plugins, stage)
        cache = open_cache(enabled=not config.no_cache)
        with clock.stage("export"):
            exported, problem = _export(problem, config, stage, progress)
            problem = replace(problem, row_bytes=count_row_bytes(exported.onnx))
            problem = problem.check_repeats()
        reference = Reference(problem.module, problem.signature, threads=threads)
        recorded = RecordedReference(reference)
        with clock.stage("calibrate"):
            calibrator = Calibrator(problem, config, threads, cache, progress)
            ranges = _calibrate(calibrator, exported.onnx)
            corrections = Corrections(calibrator, exported.onnx, ranges)
        with clock.stage("build candidates"):
            built = build_candidates(
                exported.onnx,
                ranges,
                stage=stage,
                scratch=scratch,
                target=GpuTarget(options, config.target == "cuda", read_gpu(), config.device),
                samples=tuple(itertools.islice(calibrator.batches(), _ROUNDING_BATCHES)),
                corrections=corrections,
                threads=threads,
                progress=progress,
            )
        with clock.stage("check parity"):
            specs = {c.name: c.spec(threads) for c in built if c.status == "built"}
            if device == CUDA:  # eager there is held against eager here
                specs["torch"] = problem.baseline_spec(threads, device)
            plan = problem.check_plan()
            parity = check_candidates(recorded, specs, problem.evaluation, plan, progress)
        eager = settle_eager(device, config.device, parity)
        baseline = problem.baseline_spec(threads, eager.device)
        judged: tuple[CandidateResult, ...] = tuple(
            judge_candidate(candidate, parity, threads, problem.kind, config) for candidate in built
        )
        one_way = describe_one_way(exported)
        audit: tuple[Finding, ...] = ()
        searched: SearchReport | None = None
        if problem.kind != "synthetic" and not isinstance(ranges, DeployError):
            with clock.stage("audit data"):
                audit = calibrator.audit(exported.onnx, ranges)
            with clock.stage("search"):
                sources = Sources(
                    model=exported.onnx,
                    ranges=ranges,
                    corrections=corrections,
                    calibrator=calibrator,
                    reference=recorded,
                    stage=stage,
                    scratch=scratch,
                )
                judged, searched = search(judged, sources)
        judged = hold_to_float32(judged, one_way=one_way is not None)
        with clock.stage("measure peaks"):
            peaks = measure_peaks(threads=threads)
        with clock.stage("measure latency"):
            feeds = problem.latency_feeds()
            timed = [result.spec for result in judged if result.spec and result.parity]
            settings = LatencySettings(seconds=config.measure_seconds, seed=config.seed)
            latency = measure(baseline, timed, feeds, settings, progress)
        results = tuple(judge_latency(result, latency) for result in judged)
        with clock.stage("census"):
            results = tuple(add_census(result, feeds, progress) for result in results)
        winner = choose(results, config.seed)
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
            search=searched,
            audit=audit,
            eager=eager,
            options=options,
        )
        if not any(result.parity_holds for result in results):
            where = write_failure(target, make_report(findings, config, clock.seconds))
            first = results[0]
            raise GateError(
                "No candidate gives the model's answers, so nothing is shipped. "
                f"{first.name}: {first.reason}. {f'{one_way} ' if one_way else ''}"
                f"The report says more: {where}"
            )
        with clock.stage("pack"):
            pack_bundle(stage, findings, reference, config, clock.seconds, build_key=key)
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
    places = (attempt.place for attempt in exported.attempts if attempt.batch and attempt.place)
    problem = problem.with_static_batch(next(places, ""))
    again = export(problem)
    return replace(again, attempts=(*exported.attempts, *again.attempts)), problem


def _calibrate(calibrator: Calibrator, model: OnnxModel) -> Ranges | DeployError:
    """The ranges of all float tensors; a model without them still has float engines."""
    try:
        return calibrator(model)
    except DeployError as error:
        return error
