"""How good the answers of an engine are, in the words of a report's verdict."""

import math

from deploy.judging.accuracy import Accuracy
from deploy.judging.class_scores import ClassScores
from deploy.judging.parity import ParityReport
from deploy.report.wording import (
    format_error,
    format_number,
    format_percent,
    format_samples,
    list_words,
)


def describe_accuracies(parity: ParityReport) -> str:
    """Those of all outputs whose labels judge anything, one at least, and on how many samples."""
    judged = parity.judged
    found = list_words([_describe_accuracy(n, a, len(judged) > 1) for n, a in judged.items()])
    fewest, most = (end(each.samples for each in judged.values()) for end in (min, max))
    return f"{found} on {f'{fewest:,} to ' if fewest < most else ''}{format_samples(most)}"


def describe_outputs(parity: ParityReport) -> str:
    """How near the output is that is farthest off, and so all are."""
    worst = parity.worst_output
    if worst.nearness_db == math.inf:
        return "identical outputs"
    if not worst.is_amount:
        equal = format_percent(worst.top1_agreement)
        return f"{equal} of the integers of output {worst.name!r} equal"
    if worst.sqnr_db == -math.inf:
        return f"an output {worst.name!r} that is 0 in eager and not in the engine"
    error = "" if worst.integer else f" (an error of {format_error(worst.sqnr_db)})"
    return f"an output SQNR of {worst.sqnr_db:.1f} dB{error}"


def _describe_accuracy(name: str, accuracy: Accuracy, several: bool) -> str:
    """``an accuracy of 98.50% against 98.67%``, with the output where there are several."""
    where = f" in {name!r}" if several else ""
    return (
        f"an {accuracy.measure}{where} of {format_percent(accuracy.candidate)} against "
        f"{format_percent(accuracy.reference)}{_describe_f1(accuracy.f1)}"
        f"{_describe_rmse(accuracy.rmse)}"
    )


def _describe_rmse(rmse: tuple[float, float] | None) -> str:
    if rmse is None:
        return ""
    reference, candidate = (format_number(value, 4) for value in rmse)
    return f" and an RMSE of {candidate} against {reference}"


def _describe_f1(f1: ClassScores | None) -> str:
    if f1 is None:
        return ""
    candidate, reference = format_percent(f1.candidate), format_percent(f1.reference)
    return f" and an F1 of {candidate} against {reference}"
