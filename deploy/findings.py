"""Everything that a build found out, and the report made of it. The schema is docs/report.md."""

import datetime
from dataclasses import asdict, dataclass, field
from typing import Any

from deploy.bundle.manifest import hash_file
from deploy.candidates.calibration import choose_observer
from deploy.config import BuildConfig
from deploy.engines.base import EngineSpec
from deploy.engines.device import CUDA
from deploy.idle_options import describe_idle
from deploy.judging.eager import ON_CPU, EagerBaseline
from deploy.judging.gates import Verdict
from deploy.judging.label_notes import describe_reading, describe_undecided
from deploy.judging.parity import ParityReport
from deploy.judging.picks import warn_of_picks
from deploy.judging.verdicts import describe_flat, describe_loose, describe_poor, describe_turned
from deploy.measuring.latency import LatencyReport
from deploy.measuring.machine import Machine
from deploy.parity_words import describe_accuracies, describe_outputs
from deploy.report import SCHEMA_VERSION
from deploy.report.census import describe_cpu, describe_float
from deploy.report.facts import WIDE, is_noisy
from deploy.report.fusion import warn_of_outliers
from deploy.report.wording import (
    format_number,
    format_ratio,
)
from deploy.results import (
    CandidateResult,
    candidate_json,
    control_json,
    decibels_json,
    gates_json,
    int8_holds,
    labelled_json,
    spec_json,
)
from deploy.search.assignments import SearchReport
from deploy.source import Problem
from export.artifacts import BATCH
from export.capture.ladder import Exported
from export.capture.remedies import warn_of_one_way
from export.onnx.cost import ModelCost
from export.tensorrt.options import BuildOptions
from quantize.audit import Finding


@dataclass(frozen=True)
class Findings:
    """What the stages of a build hand to its report and its bundle.

    Attributes:
        cost: at the batch that was measured.
        peaks: GMAC/s of this machine by precision.
        floor_reason: why there is no float64 noise floor; None when there is.
        search: what the search over precisions did; None where there was none.
        audit: what is wrong, or may be, with the data.
        eager: the baseline and where it ran.
        options: what the builders of TensorRT were told.
    """

    problem: Problem
    exported: Exported
    cost: ModelCost
    machine: Machine
    peaks: dict[str, float | None]
    results: tuple[CandidateResult, ...]
    latency: LatencyReport
    threads: int
    winner: str
    floor_reason: str | None
    search: SearchReport | None = None
    audit: tuple[Finding, ...] = ()
    eager: EagerBaseline = ON_CPU
    options: BuildOptions = field(default_factory=BuildOptions)

    def baseline(self) -> CandidateResult:
        """Eager torch as a row of the report."""
        return CandidateResult(
            name="torch",
            engine="torch",
            precision="fp32",
            status="ok",
            variant=self.baseline_spec().variant,
            parity=self.eager.parity,
            verdict=None if self.eager.parity is None else Verdict(True, "none: the baseline"),
            spec=self.baseline_spec(),
            size_bytes=self.problem.file.stat().st_size,
            latency=self.latency.engines["torch"],
        )

    def baseline_spec(self) -> EngineSpec:
        """How eager torch is opened."""
        return self.problem.baseline_spec(self.threads, self.eager.device)

    def winning(self) -> CandidateResult | None:
        """The winner's row; None where it is eager torch."""
        return next((result for result in self.results if result.name == self.winner), None)


def make_report(
    findings: Findings, config: BuildConfig, stages: list[tuple[str, float]]
) -> dict[str, Any]:
    """The report as plain values, as ``schema.json`` has it."""
    problem = findings.problem
    latency = findings.latency
    return {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "deploykit": findings.machine.versions.get("deploykit", "unknown"),
        "model": _model_json(findings),
        "machine": {
            **findings.machine.as_dict(),
            "threads": findings.threads,
            "peak_gmacs": findings.peaks,
        },
        "data": {
            "source": problem.source,
            "kind": problem.kind,
            "calibration_samples": len(problem.calibration),
            "evaluation_samples": len(problem.evaluation),
            "observer": choose_observer(problem, config),
            **labelled_json(problem.labelled),
            "labels": describe_reading(_list_parities(findings)),
        },
        "gates": gates_json(config.max_drop, config.min_sqnr),
        "measurement": {
            "batch": problem.latency_batch,
            "threads": findings.threads,
            "device": findings.eager.device,
            "openings": latency.openings,
            "rounds": latency.rounds,
            "blocks_per_round": latency.blocks_per_round,
            "seconds": latency.seconds,
        },
        "control": control_json(latency),
        "baseline": _row(findings, findings.baseline()),
        "candidates": [_row(findings, result) for result in findings.results],
        "search": None if findings.search is None else _search_json(findings.search),
        "winner": findings.winner,
        "verdict": describe_verdict(findings),
        "warnings": [*_warnings(findings, config), *_describe_idle(findings, config)],
        "stages": [{"name": name, "seconds": seconds} for name, seconds in stages],
    }


def describe_verdict(findings: Findings) -> str:
    """One sentence: what to ship, and on which evidence."""
    winner = findings.winning()
    if winner is None or winner.latency is None or winner.parity is None:
        if not any(result.parity_holds for result in findings.results):
            return "No candidate gives the model's answers; nothing is shipped."
        return "Nothing beats eager PyTorch with certainty; the bundle keeps the model as it is."
    low, high = winner.latency.speedup_ci95
    eager = "eager PyTorch on the GPU" if findings.eager.device == CUDA else "eager PyTorch"
    speed = f"{winner.name} is {format_ratio(winner.latency.speedup)}x faster than {eager}"
    if high > WIDE * low:
        speed = f"{winner.name} is at least {format_ratio(low)}x faster than {eager}"
    interval = f"95% interval {format_ratio(low)} to {format_ratio(high)}"
    if winner.parity.judged:
        return f"{speed} ({interval}), with {describe_accuracies(winner.parity)}."
    where = "synthetic inputs" if findings.problem.kind == "synthetic" else "the evaluation data"
    return f"{speed} ({interval}), with {describe_outputs(winner.parity)} on {where}."


def _row(findings: Findings, result: CandidateResult) -> dict[str, Any]:
    kind, macs = findings.problem.kind, findings.cost.macs
    return candidate_json(result, kind=kind, macs=macs, peaks=findings.peaks)


def _model_json(findings: Findings) -> dict[str, Any]:
    problem, exported = findings.problem, findings.exported
    return {
        "name": problem.name,
        "sha256": hash_file(problem.file),
        "form": problem.form,
        "parameters": sum(p.numel() for p in problem.module.parameters()),
        "macs": findings.cost.macs // problem.latency_batch,  # of one sample
        "inputs": spec_json(problem.signature.inputs),
        "images": _images_json(problem),
        "outputs": spec_json(problem.signature.outputs),
        "structure": problem.signature.structure,
        "rung": exported.rung,
        "attempts": [{"rung": each.rung, "error": each.error} for each in exported.attempts],
        **_fusion_json(exported),
    }


def _images_json(problem: Problem) -> list[dict[str, Any]]:
    """What engines do to the images that they take, input by input."""
    images = () if problem.images is None else problem.images.inputs
    return [{**asdict(image), "mean": list(image.mean), "std": list(image.std)} for image in images]


def _search_json(search: SearchReport) -> dict[str, Any]:
    return {
        **asdict(search),
        "blocks": [
            {**asdict(block), "sqnr_db": decibels_json(block.sqnr_db)} for block in search.blocks
        ],
        "notes": list(search.notes),
    }


def _fusion_json(exported: Exported) -> dict[str, Any]:
    """What was merged and what was left, each with its evidence, and all of it together."""
    return {
        "fused": [{**asdict(fused), "paths": list(fused.paths)} for fused in exported.fused],
        "skipped": [asdict(skip) for skip in exported.skipped],
        "fusion": asdict(exported.fusion) if exported.fusion else None,
    }


def describe_one_way(exported: Exported) -> str | None:
    """A warning where the file holds one of several ways through the model's forward."""
    refusals = [(attempt.error, attempt.place) for attempt in exported.attempts]
    return warn_of_one_way(exported.rung, refusals)


def _list_parities(findings: Findings) -> list[ParityReport]:
    return [result.parity for result in findings.results if result.parity is not None]


def _warnings(findings: Findings, config: BuildConfig) -> list[str]:
    warnings = list(findings.problem.warnings)
    if findings.eager.warning is not None:
        warnings.append(findings.eager.warning)
    if (one_way := describe_one_way(findings.exported)) is not None:
        warnings.append(one_way)
    kind, checked = findings.problem.kind, _list_parities(findings)
    if kind == "synthetic":
        warnings.append(
            "No --data was given: float engines were judged on synthetic inputs, and int8 is not "
            "judged at all. Pass --data with samples of what the model will see."
        )
    elif checked:
        problem = findings.problem
        outputs = problem.signature.outputs
        warnings += describe_undecided(checked[0], problem.evaluation, outputs)
    pairs = any(spec.shape.count(BATCH) > 1 for spec in findings.problem.signature.outputs)
    if pairs or any(parity.batch_dependent for parity in checked):
        warnings.append(
            "The model's own answers depend on the other samples of a batch; serve it with the "
            "batches it was trained for."
        )
    if findings.floor_reason is not None:
        warnings.append(
            f"The model does not run in float64 ({findings.floor_reason}); its noise floor was "
            "taken from reruns with permuted batches and another number of threads."
        )
    winner = findings.winning()
    if winner is not None:
        row = _row(findings, winner)
        left = (describe_float(row), describe_cpu(row))
        poor = describe_poor(winner, config)
        turned = describe_turned(winner, kind, config)
        judged = (describe_flat(winner, kind), turned, describe_loose(winner))
        warnings.extend(sentence for sentence in (*left, poor, *judged) if sentence is not None)
    warnings.extend(finding.words for finding in findings.audit)
    outliers = warn_of_outliers(_fusion_json(findings.exported)["fused"])
    if outliers is not None and not int8_holds(findings.results):
        warnings.append(outliers)
    failed = [r for r in findings.results if r.verdict is not None and not r.verdict.passed]
    picks = warn_of_picks(
        findings.exported.onnx.path, [r.parity for r in failed if r.parity is not None]
    )
    if picks is not None:
        warnings.append(picks)
    control = findings.latency.control
    if is_noisy(control, findings.latency.control_ci95):
        warnings.append(
            f"The A/A control came out at {format_number(control, 4)}x in place of 1 (95% interval "
            "{} to {}): the machine was noisy while it was measured. Measure again on a quiet "
            "machine.".format(*map(format_ratio, findings.latency.control_ci95))
        )
    return warnings


def _describe_idle(findings: Findings, config: BuildConfig) -> tuple[str, ...]:
    problem = findings.problem
    return describe_idle(config, problem.kind, problem.static_batch)
