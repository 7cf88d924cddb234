"""The ladder of recovery: what is done, rung by rung, for an int8 engine that fails its gate.

Every rung is judged by the gate itself, on the evaluation data, and the climb ends at the first
that passes: the least that was needed. A handful of looks at the evaluation data is the price; each
is a fixed recipe, not a fit to these samples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from deploy.engines.base import Feeds
from deploy.judging.gates import Verdict
from deploy.judging.parity import ParityReport
from deploy.search.rungs import OUT_OF_TIME, Rung
from export.artifacts import OnnxModel
from export.errors import DeployError, QuantizeError
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.calibration.calibrate import Ranges
from quantize.recover.equalization import equalize
from quantize.recover.recovery import RecoverySettings, recover
from quantize.sensitivity.blocks import Block
from quantize.sensitivity.by_block import Quantizer
from quantize.sensitivity.fallback import find_fewest

Step = Literal["bias", "rounding", "equalization", "fallback"]
STEPS: tuple[Step, ...] = ("bias", "rounding", "equalization", "fallback")

_CORRECTED = "calibrated ranges, nearest rounding, corrected biases"
_WORDS = {
    "bias": "bias correction",
    "rounding": "clipping and adaptive rounding",
    "equalization": "cross-layer equalization",
    "fallback": "layers kept float",
}
_SETTINGS = {
    "bias": RecoverySettings(bias_correction=True, rounding=False, clipping=False),
    "rounding": RecoverySettings(bias_correction=True, rounding=True, clipping=True),
}


@dataclass(frozen=True)
class Judged:
    """A file, its parity, and what the gate says."""

    file: Path
    parity: ParityReport
    verdict: Verdict


@dataclass(frozen=True)
class Climb:
    """How far recovery had to go for one engine.

    Attributes:
        rungs: in the order in which they were tried, ``plain`` first.
        best: the last one that was judged; None where no file could be made.
        kept_float: names of the nodes that left int8.
        quantizer: how the best file is made, to make others from it.
    """

    rungs: tuple[Rung, ...]
    best: Judged | None
    quantizer: Quantizer
    kept_float: frozenset[str] = frozenset()

    @property
    def passed(self) -> bool:
        """Whether the gate holds."""
        return self.best is not None and self.best.verdict.passed


@dataclass(frozen=True)
class Tools:
    """What a climb works with.

    Attributes:
        judge: opens a file in ``int8`` or ``mixed`` as the engine does and holds it against the
            gate; raises DeployError.
        batches: the calibration batches, from the start each time it is called.
        calibrate: ranges of another float model from the same data.
        orders: in which blocks may leave int8, the preferred one first; asked for once, if at all.
        steps: those that are allowed, of `STEPS`.
        tries: how many times the fallback may ask the gate.
        expired: whether the time is over, after which nothing more is tried.
    """

    judge: Callable[[Path, str], Judged]
    batches: Callable[[], Iterator[Feeds]]
    calibrate: Callable[[OnnxModel], Ranges]
    orders: Callable[[Quantizer], tuple[tuple[Block, ...], ...]]
    folder: Path
    steps: tuple[Step, ...] = STEPS
    tries: int = 6
    expired: Callable[[], bool] = lambda: False
    progress: ProgressCallback = ignore_progress


def climb(quantizer: Quantizer, plain: Judged, tools: Tools) -> Climb:
    """Climb from a plain int8 model that fails its gate until one passes, or the ladder ends.

    Where that has adjustments, its biases are corrected already, and that rung is left out.

    Where none passes, the rung with the least noise is what `best` holds.
    """
    rungs = [make_rung("plain", plain)]
    if quantizer.adjustments is not None:
        rungs = [replace(rungs[0], words=_CORRECTED)]
    best, best_quantizer = plain, quantizer
    done = () if quantizer.adjustments is None else ("bias",)
    steps = [step for step in STEPS if step in tools.steps and step not in done]
    for number, step in enumerate(steps):
        if tools.expired():
            rungs += [_missed(left, OUT_OF_TIME) for left in steps[number:]]
            break
        tools.progress(Progress("recover", number, len(tools.steps), _WORDS[step]))
        if step == "fallback":
            try:
                fallen = _fall_back(best_quantizer, tools)
            except DeployError as error:
                rungs.append(_missed(step, str(error)))
                break
            if fallen is None:
                rungs.append(_missed(step, "no mix of int8 and float layers passes either"))
                break
            judged, kept = fallen
            rungs.append(make_rung(step, judged))
            return Climb(tuple(rungs), judged, best_quantizer, kept)
        try:
            improved = _improve(best_quantizer, step, tools)
            judged = tools.judge(improved.write(tools.folder / f"{step}.onnx").path, "int8")
        except DeployError as error:
            rungs.append(_missed(step, str(error)))
            continue
        rungs.append(make_rung(step, judged))
        if judged.verdict.passed or judged.parity.sqnr_db > best.parity.sqnr_db:
            best, best_quantizer = judged, improved
        if judged.verdict.passed:
            break
    return Climb(tuple(rungs), best, best_quantizer)


def make_rung(step: str, judged: Judged) -> Rung:
    """The record of a rung that was judged."""
    accuracy, worst = judged.parity.main_accuracy, judged.parity.worst_output
    return Rung(
        step,
        _WORDS.get(step, "calibrated ranges, nearest rounding"),
        judged.verdict.passed,
        judged.verdict.reason,
        judged.parity.sqnr_db,
        None if accuracy is None else accuracy.candidate,
        None if worst.is_amount else worst.top1_agreement,
    )


def _missed(step: str, reason: str) -> Rung:
    return Rung(step, _WORDS[step], False, reason, None, None)


def _improve(quantizer: Quantizer, step: Step, tools: Tools) -> Quantizer:
    """The same with one more means of recovery.

    Raises:
        QuantizeError: there is nothing to equalize; see `recover` too.
    """
    if step == "equalization":
        equal = equalize(quantizer.model, tools.folder / "equalized.onnx")
        if not equal.equalized:  # calibrated and rounded anew, it would be what it was
            raise QuantizeError("no layer has channels that could be equalized with the next one's")
        model = equal.model
        quantizer = replace(quantizer, model=model, ranges=tools.calibrate(model))
        step = "rounding" if "rounding" in tools.steps else "bias"
        if step not in tools.steps:
            return replace(quantizer, adjustments=None)
    adjustments = recover(
        quantizer.model,
        quantizer.ranges,
        quantizer.scheme,
        tools.batches,
        _SETTINGS[step],
        progress=tools.progress,
    )
    return replace(quantizer, adjustments=adjustments)


def _fall_back(quantizer: Quantizer, tools: Tools) -> tuple[Judged, frozenset[str]] | None:
    """The fewest blocks that must stay float for the gate to hold."""
    found: dict[frozenset[str], Judged] = {}

    def passes(nodes: frozenset[str]) -> bool:
        if tools.expired():
            return False  # ends the bisection with the best that was found
        path = tools.folder / f"fallback-{len(found)}.onnx"
        found[nodes] = tools.judge(quantizer.write(path, keep_float=nodes).path, "mixed")
        return found[nodes].verdict.passed

    for order in tools.orders(quantizer):
        nodes = find_fewest(order, passes, tries=tools.tries)
        if nodes is not None:
            return found[nodes], nodes
    return None
