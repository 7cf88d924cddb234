"""Accuracy where a sample has many labels: of its pixels, its tokens, its yes-or-no questions.

A sample counts with the share of its labels that are hit, since neighbouring places err together:
intervals are of the mean over samples, not over places. Beside it stands the F1 of the classes,
which sees those that are rare.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from deploy.engines.base import Array
from deploy.inputs.label_values import VOID
from deploy.judging.accuracy import Accuracy, are_shares, paired_drop_interval, wilson_interval
from deploy.judging.class_scores import ClassCounts, ClassScores
from deploy.judging.layouts import LabelForm, arrange, find_axis

_DIGITS = 12
"""To which shares are right: they are sums of rounded ones."""
MOST_CLASSES = 2**20
"""Classes that an output of class numbers may have where places are labelled."""
_THRESHOLDS = (0.0, 0.5)


@dataclass
class PlaceTally:
    """Classes that both answered at places, beside the labels, in sums over batches.

    `questions` is 0 where classes are told apart by their number. Else all are 0 or 1, and what is
    counted is where they are 1: 1: anywhere; more: in each column by itself.

    Attributes:
        places: labels of each sample that has some.
        asked: labels of each question.
        weights: the same, a label weighing as one of the sample's in its share of right ones.
        classes: how often each class was labelled, answered and hit.
    """

    questions: int = 0
    places: list[Array] = field(default_factory=list)
    asked: Array = field(default_factory=lambda: np.zeros(1, np.int64))
    weights: Array = field(default_factory=lambda: np.zeros(1))
    classes: ClassCounts = field(default_factory=ClassCounts)

    def update(self, ours: Array, theirs: Array, labels: Array) -> None:
        """Add one batch, all (rows, places): answers of both and labels, below 0 where none is."""
        kept = labels >= 0
        places = np.count_nonzero(kept, axis=1)
        told = places > 0
        if not told.all():
            ours, theirs, labels, kept = (each[told] for each in (ours, theirs, labels, kept))
            places = places[told]
        self.places.append(places)
        if self.questions > 1:
            self.asked = self.asked + np.count_nonzero(kept, axis=0)
            self.weights = self.weights + (1 / places) @ kept
        if self.questions == 1:
            yes = [labels == 1, (ours == 1) & kept, (theirs == 1) & kept]
            hits = [yes[0], yes[1], yes[0] & yes[1], yes[2], yes[0] & yes[2]]
            self.classes.add_counts(np.stack([np.count_nonzero(each, axis=1) for each in hits]))
            return
        ids = [np.where(kept, values, -1) for values in (labels, ours, theirs)]
        classes = self.questions or 1 + max(int(values.max(initial=0)) for values in ids)
        if self.questions:
            ids = [np.where(values == 1, np.arange(classes), -1) for values in ids]
        self.classes.update(ids[0], ids[1], ids[2], classes)

    def result(self) -> Accuracy | None:
        """The accuracy on all that was added; None where no place has a label."""
        places = np.concatenate(self.places)
        if not len(places):
            return None
        sample, number, labelled, *of_both = self.classes.join()
        entries = _Entries(sample, number, labelled, 1 / places)
        weights = self.weights
        if self.questions < 2:
            weights = np.full(self.questions, float(len(places)))
        shares, chances = [], []
        for answered, hit in (of_both[:2], of_both[2:]):
            shares.append(entries.share(answered, hit, places if self.questions else None))
            chances.append(entries.chance(answered, weights) / len(places))
        ours, theirs = shares
        return Accuracy(
            samples=len(ours),
            reference=float(ours.mean()),
            candidate=float(theirs.mean()),
            drop=float((ours - theirs).mean()),
            drop_ci95=_drop_interval(ours - theirs),
            reference_ci95=_share_interval(ours),
            candidate_ci95=_share_interval(theirs),
            chance=chances[0],
            candidate_chance=chances[1],
            f1=self._score_classes(self.asked if self.questions > 1 else places.sum()),
        )

    def _score_classes(self, asked: Array) -> ClassScores | None:
        found = self.classes.result(asked)
        if found is None or self.questions != 1:
            return found
        return replace(found, lost=tuple(number + 1 for number in found.lost))  # class 1 is all


@dataclass(frozen=True)
class _Entries:
    """Samples and classes that occur in them, how often they are labelled, and the weight of a
    label of each sample."""

    sample: Array
    number: Array
    labelled: Array
    weights: Array

    def share(self, answered: Array, hit: Array, places: Array | None) -> Array:
        """By sample the share of its labels that are hit; `places` where classes are all yes."""
        right = hit if places is None else 2 * hit - answered - self.labelled
        found: Array = np.bincount(self.sample, right, len(self.weights))
        return (found if places is None else found + places) * self.weights

    def chance(self, answered: Array, asked: Array) -> float:
        """See `chance_agreement`: hits of labels that weigh as in the shares, over all samples.

        Args:
            answered: by entry.
            asked: weight of each question's labels; none where classes are told by their number.
        """
        weight = self.weights[self.sample]
        yes, labelled = (
            np.bincount(self.number, each * weight, len(asked))
            for each in (answered, self.labelled)
        )
        if not len(asked):
            return float(yes @ labelled) / len(self.weights)
        hits = yes * labelled + (asked - yes) * (asked - labelled)
        return float(np.divide(hits, asked, out=np.zeros(len(asked)), where=asked > 0).sum())


@dataclass
class PlaceAccumulator:
    """Answers of both at labelled places, over batches.

    A lone score is counted at each threshold, since which it is takes all of the reference's: 0.5
    where they lie from 0 to 1, as probabilities do, else 0.
    """

    form: LabelForm = field(default_factory=LabelForm)
    tally: PlaceTally | None = None
    by_threshold: dict[float, PlaceTally] = field(default_factory=dict)
    low: float = math.inf
    high: float = -math.inf
    words: str = ""

    def update(self, reference: Array, candidate: Array, labels: Array) -> None:
        """Add one batch: outputs of both, and labels, (rows, ...), beside which they fit.

        Places whose label is no class are left out, and samples that have no others.
        """
        places = labels.shape[1:]
        axis = find_axis(reference.shape, places, self.form)
        ours, theirs = (answer_places(v, places, axis) for v in (reference, candidate))
        flat = keep_labels(labels, _count_classes(reference, axis)).reshape(ours.shape)
        if not self.words:
            self._open(reference, places, axis)
        if self.tally is not None:
            self.tally.update(ours, theirs, flat)
            return
        self._stretch(ours, flat)
        if not self._are_shares():
            self.by_threshold.pop(0.5, None)
        for threshold, tally in self.by_threshold.items():
            first, second = (each > threshold for each in (ours, theirs))
            tally.update(first, second, flat)

    def _are_shares(self) -> bool:
        """Whether the reference's scores may be probabilities, of all that were added."""
        return are_shares(self.low, self.high)

    def _stretch(self, scores: Array, labels: Array) -> None:
        """Take in the range of the scores; where none is labelled, as in padding, may be a fill."""
        low, high = float(scores.min()), float(scores.max())
        if not are_shares(low, high):
            judged = scores[labels >= 0]
            low, high = float(judged.min(initial=0.5)), float(judged.max(initial=0.5))
        self.low, self.high = min(self.low, low), max(self.high, high)

    def _open(self, values: Array, places: Sequence[int], axis: int | None) -> None:
        self.words = _describe(values, places, axis, self.form)
        binary = _count_classes(values, axis) == 2 and _is_lone(values, axis)
        questions = math.prod(places) if self.form.columns else int(binary)
        if binary and values.dtype.kind != "b":
            self.by_threshold = {each: PlaceTally(questions) for each in _THRESHOLDS}
        else:
            self.tally = PlaceTally(questions)

    def result(self) -> Accuracy | None:
        """The accuracy on all that was added; None where no place has a label."""
        tally, threshold, words = self.tally, None, self.words
        if tally is None and self.by_threshold:
            threshold = 0.5 if self._are_shares() else 0.0
            tally = self.by_threshold[threshold]
            why = "lie from 0 to 1" if threshold else "leave 0 to 1, as logits do"
            words += f"; 1 is what lies above {threshold:g}, since the reference's scores {why}"
        found = None if tally is None else tally.result()
        if found is None:
            return None
        *some, last = VOID
        words += f"; labels of {', '.join(map(str, some))} and {last} are not judged"
        return replace(found, threshold=threshold, ranks=self.form.columns, read_as=words)


def answer_places(values: Array, places: Sequence[int], axis: int | None) -> Array:
    """What is answered at every label: (rows, places) of classes, or of lone scores as floats.

    Args:
        values: an output, samples first.
        places: axes of the labels of one sample.
        axis: of the classes; see `find_axis`.
    """
    arranged = arrange(values, places, axis)
    if arranged.ndim == 3:
        largest: Array = arranged.argmax(axis=1)
        return largest
    if arranged.dtype.kind not in "biu":
        return arranged if arranged.dtype.kind == "f" else arranged.astype(np.float32)
    numbers: Array = arranged.astype(np.int64)
    return np.where((numbers < 0) | (numbers >= MOST_CLASSES), -1, numbers)


def keep_labels(labels: Array, classes: int) -> Array:
    """The labels as integers; -1 where one is no class.

    Args:
        labels: as they were given.
        classes: how many the output tells apart; where it does not say, 255 is none of them.
    """
    kept = (labels >= 0) & (labels < classes)
    if classes == MOST_CLASSES:
        kept &= labels != VOID[0]
    return np.where(kept, labels.astype(np.int32), np.int32(-1))


def _is_lone(values: Array, axis: int | None) -> bool:
    return axis is None or values.shape[axis] == 1


def _count_classes(values: Array, axis: int | None) -> int:
    """How many the output tells apart; `MOST_CLASSES` where it is class numbers."""
    if axis is not None and values.shape[axis] > 1:
        return int(values.shape[axis])
    return MOST_CLASSES if values.dtype.kind in "iu" else 2


def _describe(values: Array, places: Sequence[int], axis: int | None, form: LabelForm) -> str:
    """How labels and output were read, in words."""
    count = "x".join(map(str, places))
    if form.columns:
        return f"the {count} labels of a sample are 0 or 1, each a question of its own"
    each = f"each of the {count} labels of a sample is"
    if not _is_lone(values, axis):
        classes = _count_classes(values, axis)
        return f"{each} one of {classes} classes, whose scores lie on axis {axis}"
    if values.dtype.kind in "iu":
        return f"{each} a class number, as the output's values are"
    return f"{each} 0 or 1, for one value of the output"


def _share_interval(values: Array) -> tuple[float, float]:
    """95% interval of the mean of `values`, shares of places that are hit, one a sample.

    Where all places are hit, or none, nothing tells how mistakes gather in samples, and each counts
    as one answer.
    """
    share = round(float(values.mean()), _DIGITS)
    if share in (0.0, 1.0):
        return wilson_interval(round(share * len(values)), len(values))
    return _mean_interval(values, 0.0)


def _drop_interval(values: Array) -> tuple[float, float]:
    """95% interval of the mean of `values`, differences of shares; as above where all are 0."""
    if not np.round(values, _DIGITS).any():
        return paired_drop_interval(0, 0, len(values))
    return _mean_interval(values, -1.0)


def _mean_interval(values: Array, least: float, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a mean over samples, from their own spread."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else 1.0
    half = z * spread / math.sqrt(len(values))
    centre = float(values.mean())
    return max(least, centre - half), min(1.0, centre + half)
