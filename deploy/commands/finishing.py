"""`deploy finish`: what waited for hardware is built, checked and measured where that is.

A bundle may hold engines that could not be run where it was built, and files that engines are still
to be built from. On a machine that can, this holds them against the bundle's float32 engine, which
was itself held against eager, measures them beside it and beside the present winner, and writes the
bundle anew. Needs no torch.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploy.bundle.folder import FALLBACK, Bundle, read_bundle
from deploy.bundle.manifest import BundledEngine
from deploy.bundle.plugin_files import locate_plugins
from deploy.bundle.staging import stage_bundle
from deploy.bundle.substitutes import explain_unfit
from deploy.commands.evaluation import FloatReference, open_evaluation, plan_check
from deploy.commands.finished import Finish, FinishFindings, write_finished
from deploy.commands.verification import recorded_noise
from deploy.config import BuildConfig
from deploy.engines.availability import find_obstacle
from deploy.engines.base import EngineSpec, Feeds
from deploy.engines.device import NO_GPU
from deploy.engines.process import EngineProcess, call_in_child
from deploy.inputs.dataset import ArrayRows, Dataset
from deploy.judging.checking import CheckPlan, check_candidates
from deploy.judging.gates import DataKind, Verdict, choose_winner, judge_parity, judge_speed
from deploy.judging.parity import ParityReport
from deploy.measuring.latency import LatencyReport, LatencySettings, measure
from deploy.measuring.profiling import add_census
from deploy.results import CandidateResult
from export.artifacts import OnnxModel
from export.errors import BundleError, DeployError, EngineError
from export.gpu import read_gpu
from export.onnx.files import read_opset
from export.progress import ProgressCallback, ignore_progress
from export.tensorrt.contract import read_stray_float
from export.tensorrt.products import PRODUCTS
from export.tensorrt.record import EngineFile


@dataclass(frozen=True)
class _Work:
    """A bundle that is being finished, in the folder that will take its place."""

    bundle: Bundle
    stage: Path
    config: BuildConfig
    progress: ProgressCallback

    @property
    def baseline(self) -> str:
        """What has to be beaten: eager, where nothing had beaten it, else the float32 engine."""
        return "torch" if self.bundle.winner == "torch" else FALLBACK

    def spec(self, name: str, entry: BundledEngine | None = None) -> EngineSpec:
        """How to open an engine of the staged bundle, by its entry there where that is new."""
        config, manifest = self.config, self.bundle.manifest
        engines = manifest.engines if entry is None else {**manifest.engines, name: entry}
        staged = Bundle(self.stage, replace(manifest, engines=engines))
        return staged.spec(name, threads=config.threads, trust=config.trust)


def finish(
    path: Path | str,
    config: BuildConfig | None = None,
    *,
    progress: ProgressCallback = ignore_progress,
) -> Finish:
    """Build, check and measure here every engine of the bundle at `path` that was never run.

    Args:
        path: the bundle; it is replaced by the finished one, and only if that is whole.
        config: gates, data to judge on, threads, batch and seconds to measure.
        progress: told what goes on.

    Raises:
        BundleError: it is no sound bundle, holds nothing that waits, or has no float32 engine.
        EngineError: nothing that waits can be run here either; the reasons are in the message, and
            the bundle is as it was.
    """
    config = config or BuildConfig()
    bundle = read_bundle(path)
    waiting = {n: e for n, e in bundle.manifest.engines.items() if e.not_run is not None}
    if not waiting:
        raise BundleError(f"{bundle.path} is finished: every engine of it was run.")
    if FALLBACK not in bundle.manifest.engines:
        raise BundleError(f"{bundle.path} holds no float32 model to hold its engines against.")
    reasons = {name: _find_obstacle(bundle, name) for name in waiting}
    if all(reasons.values()):
        grouped: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            grouped.setdefault(str(reason), []).append(name)
        listed = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in grouped.items())
        raise EngineError(
            f"Nothing of {bundle.path} can be finished here: {listed}. Run deploy finish on the "
            "machine that these engines are for."
        )
    with stage_bundle(bundle.path) as stage:
        shutil.copytree(bundle.path, stage, dirs_exist_ok=True)
        work = _Work(bundle, stage, config, progress)
        made = {name: reasons[name] or _make(work, name, entry) for name, entry in waiting.items()}
        ready = {name: entry for name, entry in made.items() if isinstance(entry, BundledEngine)}
        judged, latency = _judge(work, ready)
        results = {
            name: judged.get(name) or _still_waiting(name, waiting[name], str(made[name]))
            for name in waiting
        }
        found = FinishFindings(
            bundle=bundle,
            stage=stage,
            config=config,
            baseline=work.baseline,
            ready=ready,
            results=results,
            latency=latency,
            winner=_choose(work, results, latency),
        )
        write_finished(found)
    return Finish(read_bundle(path), tuple(results.values()), latency, bundle.winner)


def _find_obstacle(bundle: Bundle, name: str) -> str | None:
    """Why this machine cannot run it, as far as that can be told before anything is built."""
    entry = bundle.manifest.engines[name]
    if entry.engine in PRODUCTS:
        if read_gpu() is None:
            return NO_GPU
        if entry.record is not None:  # built already, and kept if it is for another machine
            return explain_unfit(bundle, name)
    return find_obstacle(entry.engine, entry.precision, entry.variant)


def _make(work: _Work, name: str, entry: BundledEngine) -> BundledEngine | str:
    """The entry with its engine built, if it still has to be; or why it cannot be."""
    if entry.engine not in PRODUCTS or entry.record is not None:
        return entry
    if entry.source is None or entry.recipe is None:
        return "the bundle does not say what it is built from; build the bundle again"
    source = work.stage / entry.source
    manifest = work.bundle.manifest
    model = OnnxModel(source, manifest.inputs, manifest.outputs, read_opset(source))
    try:
        options = locate_plugins(entry.recipe, work.stage, manifest.files)
        built: EngineFile = call_in_child(
            "export.tensorrt:build_engine",
            model=model,
            path=work.stage / name / "model.engine",
            engine=entry.engine,
            options=options,
            progress=work.progress,
        )
    except DeployError as error:
        return str(error)
    file = built.path.relative_to(work.stage).as_posix()
    return replace(entry, file=file, record=built.record)


def _judge(
    work: _Work, ready: Mapping[str, BundledEngine]
) -> tuple[dict[str, CandidateResult], LatencyReport | None]:
    """Hold what is ready against the float32 engine, then measure what holds."""
    bundle, config = work.bundle, work.config
    specs = {name: work.spec(name, entry) for name, entry in ready.items()}
    evaluation, real = _open_data(work)
    with EngineProcess(work.spec(FALLBACK)) as process:
        reference = FloatReference(process, bundle.manifest.outputs)
        plan = plan_check(bundle, reference, evaluation, config) if real else _static_plan(bundle)
        parity = check_candidates(reference, specs, evaluation, plan, work.progress)
    kind: DataKind = "synthetic"
    if real:
        kind = "labelled" if plan.labelled else "unlabelled"
    noise = recorded_noise(bundle)
    results = {}
    for name, entry in ready.items():
        report = parity[name]
        verdict = (
            Verdict(False, "runs on the data", report)
            if isinstance(report, str)
            else (
                judge_parity(
                    report, entry.precision, kind=kind, config=config, recorded_noise=noise
                )
            )
        )
        results[name] = _result(work, name, entry, report, verdict)
    sound = [specs[name] for name, result in results.items() if result.parity_holds]
    if not sound:
        return results, None
    if bundle.winner not in (FALLBACK, "torch"):
        sound.append(work.spec(bundle.winner))
    settings = LatencySettings(seconds=config.measure_seconds, seed=config.seed)
    feeds = _take(evaluation, plan.static_batch or config.batch)
    latency = measure(work.spec(work.baseline), sound, feeds, settings, work.progress)
    timed = {name: _add_times(result, latency, work.baseline) for name, result in results.items()}
    told = {name: add_census(result, feeds, work.progress) for name, result in timed.items()}
    return told, latency


def _open_data(work: _Work) -> tuple[Dataset, bool]:
    """What was given to judge on, or else the bundle's golden inputs."""
    if work.config.data is not None:
        return open_evaluation(work.bundle, work.config.data, work.config), True
    golden = work.bundle.golden().inputs
    rows = {name: ArrayRows(array, array.dtype) for name, array in golden.items()}
    return Dataset(rows, None, "the golden inputs", named=True), False


def _static_plan(bundle: Bundle) -> CheckPlan:
    batch = bundle.manifest.inputs[0].shape[0]
    static = batch if isinstance(batch, int) else None
    return CheckPlan(static, inputs=bundle.manifest.inputs)


def _take(evaluation: Dataset, batch: int) -> Feeds:
    return evaluation.batch(np.arange(batch) % len(evaluation))


def _result(
    work: _Work,
    name: str,
    entry: BundledEngine,
    report: ParityReport | str,
    verdict: Verdict,
) -> CandidateResult:
    file = work.stage / entry.file
    graph = work.stage / entry.source if entry.engine in PRODUCTS and entry.source else None
    return CandidateResult(
        name=name,
        engine=entry.engine,
        precision=entry.precision,
        status="ok" if verdict.passed else "failed" if isinstance(report, str) else "rejected",
        reason=verdict.reason,
        spec=work.spec(name, entry),
        file=file,
        size_bytes=file.stat().st_size,
        parity=None if isinstance(report, str) else report,
        verdict=None if isinstance(report, str) else verdict,
        variant=entry.variant,
        record=entry.record,
        stray_float=() if graph is None else read_stray_float(graph),
    )


def _still_waiting(name: str, entry: BundledEngine, reason: str) -> CandidateResult:
    return CandidateResult(
        name, entry.engine, entry.precision, "not_run", reason, variant=entry.variant
    )


def _add_times(result: CandidateResult, latency: LatencyReport, over: str) -> CandidateResult:
    """Its times; a slower one than the baseline keeps its place in the bundle, and cannot win."""
    if result.name in latency.failed:
        return replace(
            result, status="failed", reason=latency.failed[result.name], parity=None, verdict=None
        )
    times = latency.engines.get(result.name)
    if times is None:
        return result
    verdict = judge_speed(times, over=over)
    if verdict.passed:
        return replace(result, latency=times)
    return replace(result, latency=times, status="rejected", reason=verdict.reason)


def _choose(
    work: _Work, results: Mapping[str, CandidateResult], latency: LatencyReport | None
) -> str:
    """The fastest of those that hold, the present winner among them."""
    before = work.bundle.winner
    if latency is None:
        return before
    passed = {
        name: (result.precision, result.latency)
        for name, result in results.items()
        if result.status == "ok" and result.latency is not None
    }
    if before in latency.engines:
        entry = work.bundle.manifest.engines[before]
        passed[before] = (entry.precision, latency.engines[before])
    return choose_winner(passed, seed=work.config.seed) or before
