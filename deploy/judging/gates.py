"""The gates: which candidate may ship, which wins, and why not the others, in words."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from deploy.config import BuildConfig
from deploy.judging.accuracy_gate import explain_certain_drops, hold_accuracies
from deploy.judging.agreement_gate import hold_agreement, list_scores
from deploy.judging.channels import explain_constant, name_channels
from deploy.judging.label_notes import LABELS_JUDGE_NOTHING
from deploy.judging.limits import (
    as_fixed,
    as_percent,
    as_significant,
    show_decibels,
    show_share,
    tell_apart,
)
from deploy.judging.output_parity import OutputParity
from deploy.judging.parity import ParityReport
from deploy.judging.worst_samples import explain_ruined
from deploy.measuring.latency import EngineLatency, compare_times
from export.ranges import describe_sizes

DataKind = Literal["labelled", "unlabelled", "synthetic"]

MIN_SQNR_DB: Mapping[str, float] = {
    "tf32": 40.0,
    "fp16": 40.0,
    "bf16": 25.0,
    "int8": 20.0,
    "mixed": 20.0,
    "int4": 20.0,
}
NOISE_FACTOR = 10.0
"""A float32 engine may lose this many times what eager itself loses against float64."""
NOISE_FLOOR = 1e-6
LOOSE_LIMIT = 0.01
"""Of the largest value. Noise that allows more is no rounding: somewhere a threshold was crossed,
and the largest difference is as large as can be, of a wrong engine as well. Its power tells."""
MIN_CONSISTENCY_DB = 20.0
SIZE_LOSS_DB = 10.0
"""How much farther from the reference an engine may be at other sizes of its dynamic axes."""
SIZE_ENOUGH_DB = 60.0
"""What is as near as this anywhere differs by rounding alone."""
NO_CALIBRATION_DATA = "no calibration data; pass --data with samples of what the model will see"
EXACT = ("fp32",)
MAX_LOST_CHANNELS = 0.1
"""Share of an output's channels that may be nothing but error; those of a rare class are small."""
_NOT_FINITE = (
    "output {!r} has NaN, Inf or the fill of a mask where the reference has none, or the reverse"
)
_UNEQUAL = (
    "output {!r} is equal in {} of its integers, below {}. Class numbers that differ are "
    "wrong; where these are amounts, such as pixels of gray images, return them as floats, which "
    "are held to the SQNR, or lower --min-agreement"
)
_ORDER = ("fp32", "tf32", "fp16", "bf16", "mixed", "int8", "int4")


@dataclass(frozen=True)
class Verdict:
    """Whether a gate holds, which gate that was, and the reason when it does not."""

    passed: bool
    gate: str
    reason: str | None = None


def judge_parity(
    report: ParityReport,
    precision: str,
    *,
    kind: DataKind,
    config: BuildConfig,
    recorded_noise: Mapping[str, float] | None = None,
) -> Verdict:
    """Apply the gate of `precision` to a parity report.

    Args:
        report: what was measured.
        precision: of the candidate.
        kind: of the data that it was measured on.
        config: the limits.
        recorded_noise: eager's float32 noise by output, as the build recorded it, where the
            reference is not eager but a float32 engine that was itself within the gate.

    Float32 is held to the noise of eager itself, and may lose no accuracy beyond doubt. Fewer bits
    are held to the accuracy where there are at least 300 labels which eager itself knows beyond
    chance, and to knowing them itself, or to R² where these are the targets of a regression (see
    `deploy.judging.accuracy_gate`); lone scores and outputs that have no labels to the SQNR; else
    all to the SQNR and, on real data, to the top-1 agreement.
    An output that holds the SQNR but has lost a tenth of its channels to others of larger scale
    fails, and so does one with a ruined sample (see `deploy.judging.worst_samples`); integers but
    for colour images have no SQNR and are held to the share of equal ones. int8 and int4, weights
    alone as well, are never passed on synthetic inputs.
    """
    if report.samples == 0:
        return Verdict(False, "samples to judge by", "no sample was compared")
    for output in report.outputs:
        if not output.finite:
            return Verdict(False, "finite outputs", _NOT_FINITE.format(output.name))
    if report.consistency_db is not None and report.consistency_db < MIN_CONSISTENCY_DB:
        return Verdict(
            False,
            "same answer at every batch size",
            f"answers change with the batch size (SQNR {show_decibels(report.consistency_db)})",
        )
    verdict = _judge_sizes(report)
    if not verdict.passed:
        return verdict
    if precision in EXACT:
        verdict = _judge_exact(report, recorded_noise)
        drops = explain_certain_drops(report.held, config.max_drop)
        if not verdict.passed or not drops:
            return verdict
        return Verdict(False, f"{verdict.gate}, and no accuracy lost beyond doubt", drops)
    if precision in ("int8", "int4", "mixed") and kind == "synthetic":
        return Verdict(False, "calibration data", NO_CALIBRATION_DATA)
    if report.held:
        gate, reason = hold_accuracies(report.held, config.max_drop)
        if reason is not None:
            return Verdict(False, gate, reason)
        return _judge_unlabelled_outputs(report, precision, config, gate)
    verdict = _judge_without_labels(report, precision, kind=kind, config=config)
    if report.accuracies and not report.judged:
        return replace(verdict, gate=f"{verdict.gate} ({LABELS_JUDGE_NOTHING})")
    return verdict


def _judge_sizes(report: ParityReport) -> Verdict:
    gate = f"at other sizes at most {SIZE_LOSS_DB:g} dB farther from eager"
    least = min(report.sqnr_db - SIZE_LOSS_DB, SIZE_ENOUGH_DB)
    for seen in report.sizes_checked:
        if seen.sqnr_db < least:
            return Verdict(
                False,
                gate,
                f"at {describe_sizes(seen.sizes)} the SQNR is {show_decibels(seen.sqnr_db)}, and "
                f"{show_decibels(report.sqnr_db)} at the best sizes",
            )
    return Verdict(True, gate)


def _judge_exact(report: ParityReport, recorded: Mapping[str, float] | None) -> Verdict:
    factor = NOISE_FACTOR if recorded is None else 2 * NOISE_FACTOR  # two engines, each within it
    gate = f"error at most {factor:.0f}x eager's own float32 noise, floor {NOISE_FLOOR:g}"
    for output in report.outputs:
        error, noise = output.error_float64, output.noise_float64
        if recorded is not None:
            error, noise = output.error_eager, recorded.get(output.name)
        if error is None or noise is None:
            return Verdict(False, gate, "there is no noise floor to judge it by")
        limit = max(factor * max(noise, NOISE_FLOOR / NOISE_FACTOR), output.step)
        unit = "of its values" if output.integer else "of its largest value"
        if not error <= limit:
            return Verdict(
                False,
                gate,
                f"output {output.name!r} is off by {error:.2g} {unit}; eager itself by {noise:.2g}",
            )
        if not output.error_eager <= limit + noise:
            where = "" if output.integer else " on some sample"
            off = tell_apart(output.error_eager, limit + noise, as_significant, 2)
            return Verdict(
                False,
                gate,
                f"output {output.name!r} differs from eager by {off} {unit}{where}, more than "
                f"{limit + noise:.2g}",
            )
        times = output.power_ratio
        if limit > LOOSE_LIMIT and times is not None and times > factor**2:
            return Verdict(
                False,
                f"{gate}, and at most {factor**2:.0f}x its power",
                f"output {output.name!r} is off in far more values than eager: its error has "
                f"{times:,.0f} times the mean power of eager's own",
            )
    return Verdict(True, gate)


def least_sqnr(precision: str, config: BuildConfig) -> float:
    """The SQNR in dB that outputs in fewer bits must have; a key of `MIN_SQNR_DB`."""
    return MIN_SQNR_DB[precision] if config.min_sqnr is None else config.min_sqnr


def _judge_outputs(
    outputs: tuple[OutputParity, ...], precision: str, config: BuildConfig
) -> Verdict:
    """Floats and pixels by their SQNR and by their channels, integers by how many are equal."""
    floats = tuple(output for output in outputs if output.is_amount)
    verdict = _judge_integers(tuple(o for o in outputs if not o.is_amount), config)
    if not floats or not verdict.passed:
        return verdict
    of_floats = _judge_sqnr(floats, least_sqnr(precision, config))
    if not of_floats.passed or len(floats) == len(outputs):
        return of_floats
    return Verdict(True, f"{of_floats.gate}; {verdict.gate}")


def _judge_integers(outputs: tuple[OutputParity, ...], config: BuildConfig) -> Verdict:
    """By the share alone, however few they are: no SQNR stands behind it as with scores."""
    least = config.min_agreement
    gate = f"equal integers at least {show_share(least)}"
    for output in outputs:
        share = output.top1_agreement
        if share is not None and share < least:
            shown = tell_apart(share, least, as_percent, 1)
            reason = _UNEQUAL.format(output.name, shown, show_share(least))
            return Verdict(False, gate, reason)
    return Verdict(True, gate)


def _judge_sqnr(outputs: tuple[OutputParity, ...], least: float) -> Verdict:
    gate = f"SQNR at least {least:g} dB"
    worst = min(outputs, key=lambda output: output.sqnr_db)
    if worst.sqnr_db < least:
        sqnr = tell_apart(worst.sqnr_db, least, as_fixed, 1)
        reason = f"output {worst.name!r} has an SQNR of {sqnr} dB, below {least:g}"
        return Verdict(False, gate, reason)
    for output in outputs:
        lost = output.lost_channels
        if lost is not None and lost.share > MAX_LOST_CHANNELS:
            what = name_channels(columns=lost.columns)
            return Verdict(
                False,
                f"{gate} and at most {MAX_LOST_CHANNELS:.0%} of the {what} lost",
                f"output {output.name!r} has lost {lost.lost} of its {lost.live} {what}: their "
                "error is as large as what they hold. They are small beside the others; return "
                "them as an output of their own",
            )
        ruined = explain_ruined(output.name, output.worst_samples, least)
        if ruined is not None:
            return Verdict(False, f"{gate} and no sample ruined", ruined)
    return Verdict(True, gate)


def _judge_variation(outputs: tuple[OutputParity, ...], verdict: Verdict, least: float) -> Verdict:
    """`verdict`, unless an output passes by what its values have in common alone."""
    for output in outputs if verdict.passed else ():
        constant = explain_constant(output.name, output.varying_db, least)
        if constant is not None:
            return Verdict(False, f"{verdict.gate} and values that differ as they do", constant)
    return verdict


def _judge_unlabelled_outputs(
    report: ParityReport, precision: str, config: BuildConfig, gate: str
) -> Verdict:
    """The accuracy holds by `gate`; labels say nothing of the other outputs.

    Nor all of a lone score, which is a probability or ranks samples: it has an SQNR besides.
    """
    settled = {name for name, accuracy in report.held.items() if not accuracy.ranks}
    others = tuple(o for o in report.outputs if o.name not in settled)
    if not others:
        return Verdict(True, gate)
    verdict = _judge_outputs(others, precision, config)
    verdict = _judge_variation(others, verdict, least_sqnr(precision, config))
    which = "other outputs" if settled else "all outputs"
    return replace(verdict, gate=f"{gate}; {which}: {verdict.gate}")


def _judge_without_labels(
    report: ParityReport, precision: str, *, kind: DataKind, config: BuildConfig
) -> Verdict:
    verdict = _judge_outputs(report.outputs, precision, config)
    if not verdict.passed or kind == "synthetic":  # answers to noise may be all alike
        return verdict
    scores = list_scores(report)
    if scores:
        gate, reason = hold_agreement(report, scores, config.min_agreement)
        verdict = Verdict(reason is None, f"{verdict.gate} and {gate}", reason)
    return _judge_variation(report.outputs, verdict, least_sqnr(precision, config))


def judge_speed(latency: EngineLatency, *, over: str = "eager") -> Verdict:
    """A candidate wins only if the 95% interval of its speed-up over the baseline lies above 1."""
    gate = "95% interval of the speed-up above 1"
    low, high = latency.speedup_ci95
    if low > 1:
        return Verdict(True, gate)
    how = "slower than" if high < 1 else "not faster than"
    speedup, *ends = (tell_apart(each, 1, as_fixed, 2) for each in (latency.speedup, low, high))
    return Verdict(False, gate, f"{how} {over}: {speedup}x (95% interval {' to '.join(ends)})")


def choose_winner(passed: Mapping[str, tuple[str, EngineLatency]], *, seed: int) -> str | None:
    """The fastest of those that passed every gate; None without any.

    Args:
        passed: precision and latency by name.
        seed: of the bootstrap.

    Engines that cannot be told apart from the fastest (the 95% interval of their ratio to it holds
    1) are ties; the most precise of them wins. One whose times scatter may be a tie for that alone:
    the fastest engine that is as precise and no slower takes its place.
    """
    if not passed:
        return None
    fastest = max(passed, key=lambda name: passed[name][1].speedup)
    leader = passed[fastest][1].block_medians
    ties = []
    for name, (precision, latency) in passed.items():
        _, (low, _) = compare_times(latency.block_medians, leader, latency.luck, seed=seed)
        if name == fastest or low <= 1:
            ties.append((_ORDER.index(precision), -latency.speedup, name))
    order, slowness, _ = min(ties)
    eligible = [
        (-latency.speedup, name)
        for name, (precision, latency) in passed.items()
        if _ORDER.index(precision) <= order and -latency.speedup <= slowness
    ]
    return min(eligible)[1]
