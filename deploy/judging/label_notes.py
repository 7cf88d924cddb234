"""What a report says of the labels: how they were read, and why they do not decide."""

from collections.abc import Iterable, Sequence

import numpy as np

from deploy.engines.base import Array
from deploy.inputs.dataset import Dataset
from deploy.judging.accuracy import MIN_LABELLED, Accuracy
from deploy.judging.agreement_gate import list_scores
from deploy.judging.parity import ParityReport
from export.artifacts import TensorSpec

_NAMED = 8
"""Classes that a warning names."""
LABELS_JUDGE_NOTHING = (
    "the labels judge nothing: eager's own accuracy is not above chance beyond doubt"
)


def describe_reading(reports: Iterable[ParityReport]) -> str | None:
    """How labels of places, and targets, were read beside their outputs; None without such."""
    for report in reports:
        read = {n: a.read_as for n, a in report.accuracies.items() if a.read_as is not None}
        if len(report.accuracies) > 1 and read:
            return " ".join(f"Of {name}: {words}." for name, words in read.items())
        for name, words in read.items():
            return f"{words}. Held against {name}."
    return None


def describe_undecided(
    parity: ParityReport, evaluation: Dataset, outputs: Sequence[TensorSpec]
) -> list[str]:
    """Why labels do not decide, or of which classes they say nothing, output by output.

    Args:
        parity: of any engine.
        evaluation: the samples that it was judged on.
        outputs: of the model.
    """
    scores = () if parity.held else {output.name for output in list_scores(parity)}
    found = []
    for held, accuracy in parity.accuracies.items():
        named = held in evaluation.labels_of
        others = [] if named else [spec.name for spec in outputs if spec.name != held]
        found.append(warn_of_labels(accuracy, held, others, agreement=held in scores))
        if accuracy.above_chance:
            spec = next(spec for spec in outputs if spec.name == held)
            found.append(_describe_unseen(evaluation.find_labels(held), spec))
    return [*dict.fromkeys(warning for warning in found if warning is not None)]


def _describe_unseen(labels: Array | None, spec: TensorSpec) -> str | None:
    """A warning of classes without a sample, where each has one label and a score a class."""
    sizes = [size for size in spec.shape[1:] if size != 1]
    classes = sizes[0] if len(sizes) == 1 else None
    if labels is None or labels.ndim != 1 or not isinstance(classes, int):
        return None
    return warn_of_unseen(labels[labels >= 0], classes, spec.name)


def warn_of_labels(
    accuracy: Accuracy | None, held: str, others: Sequence[str], *, agreement: bool = True
) -> str | None:
    """Why the labels that were held against the output `held` do not decide; None where they do.

    Args:
        accuracy: of a candidate, with eager's own; None where nothing has a label.
        held: the output.
        others: the names of the other outputs.
        agreement: whether the top-1 agreement was judged.
    """
    if accuracy is None:
        return None
    several = agreement and not accuracy.of_targets
    instead = f"SQNR{' and top-1 agreement were' if several else ' was'} judged instead"
    against = f"They were held against {held!r}."
    if not accuracy.above_chance and _may_know(accuracy):
        return (
            f"{_count(accuracy.samples)} too few to tell whether eager knows the labels "
            f"({MIN_LABELLED} are needed); {instead}. {against}"
        )
    if not accuracy.above_chance:
        another = f", or name another output with --classes ({', '.join(others)})" if others else ""
        if accuracy.of_targets:
            return _warn_of_targets(accuracy, held, another)
        return (
            f"Eager's own accuracy is {accuracy.reference:.2%} on {accuracy.samples} "
            f"sample{'s' * (accuracy.samples != 1)}, not above chance ({accuracy.chance:.2%}): the "
            f"labels judge nothing, and {instead}. {against} Number the "
            f"classes, and prepare the samples, as in training{another}."
        )
    if accuracy.samples < MIN_LABELLED:
        return (
            f"{_count(accuracy.samples)} too few to judge {accuracy.measure} by "
            f"({MIN_LABELLED} are needed); {instead}. {against}"
        )
    return None


def _warn_of_targets(accuracy: Accuracy, held: str, another: str) -> str:
    return (
        f"Eager's own {accuracy.measure} is {accuracy.reference:.2%} on {accuracy.samples} "
        "samples, not above 0 beyond doubt, as that of the mean of the targets: they judge "
        f"nothing, and the SQNR was judged instead. They were held against {held!r}. Scale the "
        f"targets, and prepare the samples, as in training{another}."
    )


def _may_know(accuracy: Accuracy) -> bool:
    """Whether eager is above chance, or always right, on too few samples to be sure."""
    right = accuracy.reference > accuracy.chance or accuracy.reference == 1
    return right and accuracy.samples < MIN_LABELLED


def _count(samples: int) -> str:
    return "1 labelled sample is" if samples == 1 else f"{samples} labelled samples are"


def warn_of_unseen(labels: Array, classes: int, held: str) -> str | None:
    """That accuracy says nothing of some classes, since no sample is of them; None where all are.

    Nor is anything said where chance leaves out as many: of n samples that are drawn from C classes
    alike, C (1 - 1/C)^n miss on average, give or take the root of that.

    Args:
        labels: class numbers, (rows,).
        classes: how many the output `held` tells apart.
    """
    unseen = np.setdiff1d(np.arange(classes), labels)
    missed = classes * (1 - 1 / classes) ** len(labels)
    if unseen.size <= missed + 3 * missed**0.5:
        return None
    named = ", ".join(map(str, unseen[:_NAMED]))
    more = f" and {unseen.size - _NAMED} more" if unseen.size > _NAMED else ""
    return (
        f"{unseen.size} of the {classes} classes of {held!r} ({named}{more}) are those of no "
        "sample that was judged: the accuracy says nothing of what engines make of them. Pass "
        "samples of every class that the model will see."
    )
