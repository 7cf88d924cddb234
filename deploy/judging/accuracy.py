"""Accuracy of two models on the same labelled samples, with intervals, and against chance.

The class of a row is that of its largest score; of a lone score the side of a threshold on which it
lies; of a lone integer or boolean its value.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from deploy.engines.base import Array
from deploy.judging.class_scores import ClassScores

ACCURACY = "accuracy"
"""What the share of right answers is called."""
MIN_LABELLED = 300
"""Samples with labels from which the accuracy decides."""
_ROUNDING = 1e-9
"""One class answered throughout is chance exactly, but for the order in which shares are summed."""
_SHARE_ROUNDING = 1e-3
"""What probabilities leave 0 to 1 by where they are summed, in half precision as well."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of both on the same labelled samples, with paired 95% interval of the drop.

    Attributes:
        chance: what the reference would come to if its answers had nothing to do with the labels;
            see `chance_agreement`.
        candidate_chance: the same of the candidate.
        threshold: the lone score above which a row is of class 1; None where classes are told
            otherwise.
        ranks: whether it says not all of the output: of a lone score a sample or a question, which
            ranks samples as well, and of an output that has no target for some of its values.
        f1: of the classes, where a sample has many labels.
        read_as: how labels and output were read, in words, where a sample has many labels, and of
            targets.
        measure: what it is called; of the targets of a regression R², which may be below 0.
        rmse: of the targets of a regression, of reference and candidate, in their unit.
    """

    samples: int
    reference: float
    candidate: float
    drop: float
    drop_ci95: tuple[float, float]
    reference_ci95: tuple[float, float]
    candidate_ci95: tuple[float, float]
    chance: float
    candidate_chance: float = 0.0
    threshold: float | None = None
    ranks: bool = False
    f1: ClassScores | None = None
    read_as: str | None = None
    measure: str = ACCURACY
    rmse: tuple[float, float] | None = None

    @property
    def above_chance(self) -> bool:
        """Whether the reference knows the labels at all; if not, they judge nothing."""
        return self.reference_ci95[0] > self.chance + _ROUNDING

    @property
    def of_targets(self) -> bool:
        """Whether it is of what a regression predicts, and of no classes."""
        return self.measure != ACCURACY

    @property
    def forgotten(self) -> bool:
        """Whether the candidate knows nothing of the labels any more, beyond doubt.

        Where one class is rare an engine that never answers it loses few points.
        """
        at_chance = self.candidate_ci95[0] <= self.candidate_chance + _ROUNDING
        return at_chance and self.drop_ci95[0] > 0


class LabelAccumulator(Protocol):
    """What both answered and what is right, over batches, in sums or numbers by sample."""

    def update(self, reference: Array, candidate: Array, labels: Array) -> None:
        """Add one batch: outputs of both and labels, samples first."""

    def result(self) -> Accuracy | None:
        """The accuracy on all that was added; None where nothing has a label."""


@dataclass
class AccuracyAccumulator:
    """Classes or lone scores that both answered, and the labels, over batches."""

    reference: list[Array] = field(default_factory=list)
    candidate: list[Array] = field(default_factory=list)
    labels: list[Array] = field(default_factory=list)

    def update(self, reference: Array, candidate: Array, labels: Array) -> None:
        """Add one batch: outputs of both, as `read_answers` takes them, and labels, (rows,).

        Samples whose label is below 0 have none.
        """
        known = labels >= 0
        if known.any():
            self.reference.append(read_answers(reference)[known])
            self.candidate.append(read_answers(candidate)[known])
            self.labels.append(labels[known])

    def result(self) -> Accuracy | None:
        """The accuracy on all that was added; None without labels."""
        if not self.labels:
            return None
        labels, scores = np.concatenate(self.labels), np.concatenate(self.reference)
        threshold = find_threshold(scores)
        answers = name_classes(scores, threshold)
        others = name_classes(np.concatenate(self.candidate), threshold)
        ours, theirs = answers == labels, others == labels
        samples = len(ours)
        lost, gained = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        return Accuracy(
            samples=samples,
            reference=float(ours.mean()),
            candidate=float(theirs.mean()),
            drop=(lost - gained) / samples,
            drop_ci95=paired_drop_interval(lost, gained, samples),
            reference_ci95=wilson_interval(int(ours.sum()), samples),
            candidate_ci95=wilson_interval(int(theirs.sum()), samples),
            chance=chance_agreement(answers, labels),
            candidate_chance=chance_agreement(others, labels),
            threshold=threshold,
            ranks=threshold is not None,
        )


def read_answers(values: Array) -> Array:
    """Of every row its class as an integer, or its lone score as a float.

    Args:
        values: (rows, classes), or (rows, 1) or (rows,), of which integers and booleans are class
            numbers; with any further axes of size 1.
    """
    values = values.reshape(len(values), math.prod(values.shape[1:]))
    if values.shape[1] > 1:
        largest: Array = values.argmax(axis=1)
        return largest
    lone = values.reshape(len(values))
    return lone.astype(np.int64) if lone.dtype.kind in "biu" else lone.astype(np.float64)


def find_threshold(scores: Array) -> float | None:
    """Above which a lone score is class 1: 0.5 of probabilities, 0 of what leaves 0 to 1.

    None of classes. Logits that all lie between 0 and 1 would all say class 1, of samples that are
    of both.
    """
    if scores.dtype.kind != "f":
        return None
    low, high = (float(each(initial=0.5)) for each in (scores.min, scores.max))
    return 0.5 if are_shares(low, high) else 0.0


def are_shares(low: float, high: float) -> bool:
    """Whether scores from `low` to `high` may be probabilities, but for rounding."""
    return low >= -_SHARE_ROUNDING and high <= 1 + _SHARE_ROUNDING


def name_classes(answers: Array, threshold: float | None) -> Array:
    """What `read_answers` gave as classes."""
    return answers if threshold is None else (answers > threshold).astype(np.int64)


def chance_agreement(answers: Array, labels: Array) -> float:
    """How often `answers` would hit `labels` if they were drawn without looking, as often as now.

    The sum over classes of the share of the answers times the share of the labels: the chance of
    Cohen 1960 (kappa). One class answered throughout comes to exactly its share of the labels.
    """
    classes = np.union1d(answers, labels)
    shares = [np.searchsorted(np.sort(values), classes, "right") for values in (answers, labels)]
    first, second = (np.diff(counts, prepend=0) / len(labels) for counts in shares)
    return float(first @ second)


def wilson_interval(hits: int, samples: int, z: float = 1.96) -> tuple[float, float]:
    """95% score interval of a share (Wilson 1927)."""
    share = hits / samples
    scale = 1 + z * z / samples
    centre = (share + z * z / (2 * samples)) / scale
    half = z * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2)) / scale
    low = max(0.0, centre - half) if hits else 0.0
    return low, min(1.0, centre + half) if hits < samples else 1.0  # but for rounding


def paired_drop_interval(
    lost: int, gained: int, samples: int, z: float = 1.96
) -> tuple[float, float]:
    """95% interval of the drop in accuracy on the same samples (Bonett & Price 2012).

    Args:
        lost: samples that the reference has right and the candidate wrong.
        gained: the other way round.
        samples: all samples.
        z: normal quantile.
    """
    p_lost, p_gained = (lost + 1) / (samples + 2), (gained + 1) / (samples + 2)
    drop = p_lost - p_gained
    half = z * math.sqrt((p_lost + p_gained - drop**2) / (samples + 2))
    return max(-1.0, drop - half), min(1.0, drop + half)
