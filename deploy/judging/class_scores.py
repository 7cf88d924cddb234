"""F1 of every class of two models on the same labelled samples, with the interval of the drop.

Accuracy says little of classes that are rare: a foreground of one place in a hundred may be lost
for a point. F1 (Dice 1945) of a class is 2 hits / (answered + labelled); the mean over classes
(macro-F1) weighs all alike. Samples are what is drawn, since the places of one err together: the
variance of a mean of ratios is that of its linear part (Cochran 1977, 6.4), sample by sample.
"""

import math
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

from deploy.engines.base import Array

FEWEST_SAMPLES = 10
"""Samples that a class must occur in to be judged: of fewer, one answer decides."""
_MOST_COUNTS = 2**20
"""Samples times classes that are counted at once."""
_Z = 1.96
_DOUBT = 0.025


@dataclass(frozen=True)
class ClassScores:
    """Mean F1 over the classes that occur among the labels of `FEWEST_SAMPLES` samples or more.

    Attributes:
        classes: how many these are.
        lost: the numbers of those of which the candidate knows no more than chance, beyond doubt,
            and the reference does; ascending.
    """

    classes: int
    reference: float
    candidate: float
    drop: float
    drop_ci95: tuple[float, float]
    lost: tuple[int, ...] = ()


@dataclass
class ClassCounts:
    """How often each class was labelled, answered and hit, sample by sample, kept sparsely."""

    samples: int = 0
    entries: list[Array] = field(default_factory=list)

    def update(self, labels: Array, ours: Array, theirs: Array, classes: int) -> None:
        """Add one batch: classes from 0 below `classes` as (rows, places); below 0: of no class."""
        size = max(1, _MOST_COUNTS // classes)
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            self._add(labels[part], ours[part], theirs[part], classes)

    def _add(self, labels: Array, ours: Array, theirs: Array, classes: int) -> None:
        rows = len(labels)
        offsets = np.arange(rows)[:, None] * classes

        def count(values: Array, where: Array) -> Array:
            return np.bincount((values + offsets)[where], minlength=rows * classes)

        told = labels >= 0
        counts = [count(labels, told)]
        for answers in (ours, theirs):
            counts += [count(answers, answers >= 0), count(labels, told & (answers == labels))]
        self.add_counts(np.stack(counts), classes)

    def add_counts(self, counts: Array, classes: int = 1) -> None:
        """Add one batch of what was counted already.

        Args:
            counts: (5, rows times classes): labelled; answered and hit by the reference; answered
                and hit by the candidate.
            classes: of each row.
        """
        seen = np.flatnonzero(counts.any(axis=0))
        numbers = np.stack([seen // classes + self.samples, seen % classes])
        self.entries.append(np.concatenate([numbers, counts[:, seen]]))
        self.samples += counts.shape[1] // classes

    def join(self) -> Array:
        """All that was counted, (7, entries): sample, class, and what `add_counts` has of them."""
        return np.concatenate([np.zeros((7, 0), np.int64), *self.entries], axis=1)

    def result(self, places: Array) -> ClassScores | None:
        """The scores of all that was added; None where no class occurs often enough.

        Args:
            places: how many were labelled in all; or, where each class may be the answer in places
                of its own alone, how many those are, by class.
        """
        if not self.entries:
            return None
        sample, number, labelled, answered, hit, others, others_hit = self.join()
        often = np.bincount(number[labelled > 0]) >= FEWEST_SAMPLES
        judged = np.flatnonzero(often)
        if not judged.size:
            return None
        kept = np.isin(number, judged)
        place = np.searchsorted(judged, number[kept])
        labelled, sample = labelled[kept], sample[kept]
        ours = _Scored(place, labelled, answered[kept], hit[kept])
        theirs = _Scored(place, labelled, others[kept], others_hit[kept])
        parts = ours.parts - theirs.parts
        drop = float((ours.f1 - theirs.f1).mean())
        half = _half_width(np.bincount(sample, parts) / len(judged), self.samples)
        doubt = NormalDist().inv_cdf(1 - _DOUBT / len(judged))  # of all the classes together
        halves = doubt * np.sqrt(np.bincount(place, np.square(parts)))
        places = places[judged] if places.ndim else places
        known = ours.f1 > ours.chance(places)
        gone = (theirs.f1 <= theirs.chance(places)) & (ours.f1 - theirs.f1 > halves)
        return ClassScores(
            classes=len(judged),
            reference=float(ours.f1.mean()),
            candidate=float(theirs.f1.mean()),
            drop=drop,
            drop_ci95=(max(-1.0, drop - half), min(1.0, drop + half)),
            lost=tuple(int(each) for each in judged[known & gone]),
        )


class _Scored:
    """One model's F1 by class, and what every entry adds to it linearly."""

    def __init__(self, place: Array, labelled: Array, answered: Array, hit: Array) -> None:
        self.labelled = np.bincount(place, labelled)
        self.answered = np.bincount(place, answered)
        total = self.labelled + self.answered
        self.f1 = 2 * np.bincount(place, hit) / total
        self.parts = (2 * hit - self.f1[place] * (answered + labelled)) / total[place]

    def chance(self, places: Array) -> Array:
        """F1 that as many answers would have anywhere."""
        found: Array = 2 * self.answered * self.labelled / places
        found /= self.answered + self.labelled
        return found


def _half_width(parts: Array, samples: int) -> float:
    """Of the 95% interval of a sum of `parts`, one a sample; those that are left out are 0."""
    return _Z * math.sqrt(samples / max(samples - 1, 1) * float(np.square(parts).sum()))
