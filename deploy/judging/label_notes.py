"""What a report says of the labels: how they were read, and why they do not decide."""

from collections.abc import Iterable, Sequence

from deploy.judging.accuracy import Accuracy
from deploy.judging.parity import ParityReport

MIN_LABELLED = 300
"""Samples with labels from which the accuracy decides."""
LABELS_JUDGE_NOTHING = "the labels judge nothing: eager's own accuracy is not above chance"


def describe_reading(reports: Iterable[ParityReport]) -> str | None:
    """How labels of places were read beside their output; None where there are none."""
    for report in reports:
        if report.accuracy is not None and report.accuracy.read_as is not None:
            return f"{report.accuracy.read_as}. Held against {report.classes_of}."
    return None


def warn_of_labels(accuracy: Accuracy | None, held: str, others: Sequence[str]) -> str | None:
    """Why the labels that were held against the output `held` do not decide; None where they do.

    Args:
        accuracy: of a candidate, with eager's own; None where nothing has a label.
        held: the output.
        others: the names of the other outputs.
    """
    instead = "SQNR and top-1 agreement were judged instead"
    if accuracy is None:
        return None
    if not accuracy.above_chance:
        another = f", or name another output with --classes ({', '.join(others)})"
        return (
            f"Eager's own accuracy is {accuracy.reference:.2%} on {accuracy.samples} samples, not "
            f"above chance ({accuracy.chance:.2%}): the labels judge nothing, and {instead}. They "
            f"were held against {held!r}. Number the classes, and prepare the samples, as in "
            f"training{another if others else ''}."
        )
    if accuracy.samples < MIN_LABELLED:
        return (
            f"{accuracy.samples} labelled samples are too few to judge accuracy by "
            f"({MIN_LABELLED} are needed); {instead}."
        )
    return None
