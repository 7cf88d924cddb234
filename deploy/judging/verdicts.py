"""Every candidate judged: by the parity gate, then by its speed; and the one that wins."""

import math
from dataclasses import replace
from pathlib import Path

from deploy.candidates.files import Candidate
from deploy.config import BuildConfig
from deploy.judging.channels import warn_of_flat
from deploy.judging.gates import (
    EXACT,
    MIN_SQNR_DB,
    NO_CALIBRATION_DATA,
    SIZE_ENOUGH_DB,
    DataKind,
    Verdict,
    choose_winner,
    judge_parity,
    judge_speed,
    least_sqnr,
)
from deploy.judging.limits import as_percent, tell_apart
from deploy.judging.output_parity import OutputParity
from deploy.judging.parity import ParityReport
from deploy.judging.shares import holds_share
from deploy.judging.worst_samples import warn_of_poor
from deploy.measuring.latency import LatencyReport
from deploy.results import CandidateResult


def judge_candidate(
    candidate: Candidate,
    parity: dict[str, ParityReport | str],
    threads: int,
    kind: DataKind,
    config: BuildConfig,
) -> CandidateResult:
    """What the parity gate says of one candidate, on data of this kind."""
    result = CandidateResult(
        name=candidate.name,
        engine=candidate.plan.engine,
        precision=candidate.plan.precision,
        status="not_run" if candidate.status == "not_run" else "failed",
        reason=candidate.reason,
        file=candidate.file,
        size_bytes=size_of(candidate.file),
        variant=candidate.plan.variant,
        source=candidate.source,
        record=candidate.record,
        stray_float=candidate.stray_float,
    )
    if candidate.status != "built":
        if result.precision == "int8" and result.file is not None and kind == "synthetic":
            return replace(result, status="rejected", reason=NO_CALIBRATION_DATA)
        return result
    report = parity[candidate.name]
    if isinstance(report, str):
        return replace(result, status="failed", reason=report)
    verdict = judge_parity(report, result.precision, kind=kind, config=config)
    return replace(
        result,
        status="ok" if verdict.passed else "rejected",
        reason=verdict.reason,
        spec=candidate.spec(threads),
        parity=report,
        verdict=verdict,
    )


def hold_to_float32(
    results: tuple[CandidateResult, ...], *, one_way: bool
) -> tuple[CandidateResult, ...]:
    """Reject what was made of an exported file that computes something else than the model.

    Fewer bits are held to looser gates, which such a file may pass: both exits of a network that
    ends early know the classes. It is wrong where no float32 engine holds its gate and the nearest
    of them is as far off as int8 must not be, at any of the sizes that were run; where forward goes
    on by the value of a tensor, and the file goes one way, where that is more than rounding.

    Args:
        results: judged for parity.
        one_way: whether the file holds one of several ways of forward.
    """
    exact = [r for r in results if r.precision in EXACT and r.parity is not None]
    near = [r.parity.least_sqnr_db for r in exact if r.parity is not None]
    nearest = max((sqnr for sqnr in near if not math.isnan(sqnr)), default=-math.inf)
    limit = SIZE_ENOUGH_DB if one_way else MIN_SQNR_DB["int8"]
    if not exact or nearest >= limit or any(result.parity_holds for result in exact):
        return results
    reason = f"made of an exported file whose float32 engines are wrong: {exact[0].reason}"
    wrong = Verdict(False, "made of a file that gives the model's answers in float32", reason)
    return tuple(
        replace(result, status="rejected", reason=reason, verdict=wrong)
        if result.parity_holds
        else result
        for result in results
    )


def size_of(file: Path | None) -> int | None:
    """Bytes of an engine's file with its external data."""
    if file is None:
        return None
    return sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))


def judge_latency(result: CandidateResult, latency: LatencyReport) -> CandidateResult:
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


def choose(results: tuple[CandidateResult, ...], seed: int) -> str:
    """Name of the winner; ``torch`` where nothing passed."""
    passed = {
        result.name: (result.precision, result.latency)
        for result in results
        if result.status == "ok" and result.latency is not None
    }
    return choose_winner(passed, seed=seed) or "torch"


def describe_poor(result: CandidateResult, config: BuildConfig) -> str | None:
    """A warning of single answers that are far off; None without any, and of float32 engines.

    With labels it is all that tells of them: an accuracy holds with one garbled sample of a
    thousand, as with one that is merely wrong.
    """
    if result.parity is None or result.precision in EXACT:
        return None
    samples = ((output.name, output.worst_samples) for output in result.parity.outputs)
    return warn_of_poor(result.name, samples, least_sqnr(result.precision, config))


def describe_flat(result: CandidateResult, kind: DataKind) -> str | None:
    """A warning of channels that are nothing but their mean; None without any.

    Of float32 engines there is none, nor on noise, of which all answers may be alike.
    """
    if result.parity is None or result.precision in EXACT or kind == "synthetic":
        return None
    outputs = ((output.name, output.flat_channels) for output in result.parity.outputs)
    return warn_of_flat(result.name, outputs)


def describe_turned(result: CandidateResult, kind: DataKind, config: BuildConfig) -> str | None:
    """A warning that one of several outputs has other largest values than eager; None without any.

    A lone output is held to that, and one with labels to its accuracy. Of several, most are no
    scores of classes, and nothing tells which are, but that targets and questions are of none. Of
    float32 engines there is none, nor on noise.
    """
    if result.parity is None or result.precision in EXACT or kind == "synthetic":
        return None
    told = result.parity.accuracies.items()
    known = {name for name, each in told if each.above_chance or each.read_as is not None}
    outputs = [o for o in result.parity.outputs if not o.integer and o.name not in known]
    turned = [o for o in outputs if not holds_share(o, config.min_agreement)]
    if len(result.parity.outputs) == 1 or not turned:
        return None
    named = ", ".join(_describe_turned(output, config.min_agreement) for output in turned)
    return (
        f"{result.name} has another largest value than eager in {named}. Where these are scores of "
        "classes, answers differ that often: pass labels of that output with the data, as "
        f"y_{turned[0].name}, or return it alone, and it is held to its answers. Other values are "
        "held to the SQNR, which holds."
    )


def _describe_turned(output: OutputParity, least: float) -> str:
    share = tell_apart(1 - (output.top1_agreement or 0.0), 1 - least, as_percent, 1)
    return f"{share} of the {output.compared} rows of output {output.name!r}"


def describe_loose(result: CandidateResult) -> str | None:
    """A warning that a float32 engine passes since eager is as far off itself; None of others.

    Nor is one needed of the output whose labels say that it is as right as eager.
    """
    if result.parity is None or result.precision not in EXACT:
        return None
    least = MIN_SQNR_DB["int8"]
    outputs = [o for o in result.parity.outputs if o.name not in result.parity.held]
    far = [o for o in outputs if o.is_amount and o.sqnr_db < least]
    if not far:
        return None
    named = ", ".join(f"{output.name!r} ({output.sqnr_db:.1f} dB)" for output in far)
    return (
        f"{result.name} is far from eager in output {named}, and passes since eager in float32 is "
        "as far from itself in float64: a threshold, a rank or steps that magnify rounding stand "
        f"there, and no engine can be judged by it. Return what comes before{_advise(result, far)}."
    )


def _advise(result: CandidateResult, far: list[OutputParity]) -> str:
    """What else than the values of the outputs `far` may tell whether they are right."""
    parity = result.parity
    if parity is None or not parity.accuracies:
        return ", or bring labels, and look at the accuracy"
    judged = all(output.name in parity.judged for output in far)
    return ", or go by the accuracy" if judged else ""
