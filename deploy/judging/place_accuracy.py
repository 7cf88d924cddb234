"""Accuracy where every place of a sample has a label: segmentation.

A sample counts with the share of its places that are right, since neighbouring places err together:
intervals are of the mean over samples, not over places.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from deploy.engines.base import Array
from deploy.judging.accuracy import Accuracy

VOID = (255, -1, -100)
"""Labels of places that belong to no class, where classes do not go up to them."""


@dataclass
class PlaceAccumulator:
    """Shares of right places of both by sample, and how often each class was answered, in sums."""

    reference: list[Array] = field(default_factory=list)
    candidate: list[Array] = field(default_factory=list)
    answered: list[Array] = field(default_factory=list)
    other_answered: list[Array] = field(default_factory=list)
    labelled: list[Array] = field(default_factory=list)

    def update(self, reference: Array, candidate: Array, labels: Array) -> None:
        """Add one batch: outputs of both, (rows, classes, ...), and labels, (rows, ...).

        Places whose label is no class are left out, and samples that have no others.
        """
        classes = reference.shape[1]
        ours, theirs = reference.argmax(axis=1), candidate.argmax(axis=1)
        kept = (labels >= 0) & (labels < classes)
        axes = tuple(range(1, labels.ndim))
        places = kept.sum(axis=axes)
        told = places > 0
        for shares, answers in ((self.reference, ours), (self.candidate, theirs)):
            right = ((answers == labels) & kept).sum(axis=axes)
            shares.append(right[told] / places[told])
        for counts, values in (
            (self.answered, ours),
            (self.other_answered, theirs),
            (self.labelled, labels),
        ):
            counts.append(np.bincount(values[kept].astype(np.int64), minlength=classes))

    def result(self) -> Accuracy | None:
        """The accuracy on all that was added; None where no place has a label."""
        ours, theirs = np.concatenate(self.reference), np.concatenate(self.candidate)
        if not len(ours):
            return None
        labelled = _shares(self.labelled)
        return Accuracy(
            samples=len(ours),
            reference=float(ours.mean()),
            candidate=float(theirs.mean()),
            drop=float((ours - theirs).mean()),
            drop_ci95=_mean_interval(ours - theirs, -1.0),
            reference_ci95=_mean_interval(ours, 0.0),
            candidate_ci95=_mean_interval(theirs, 0.0),
            chance=float(_shares(self.answered) @ labelled),
            candidate_chance=float(_shares(self.other_answered) @ labelled),
        )


def read_places(values: Array, labels: Array) -> tuple[Array, Array]:
    """What is answered at every place that has a label, and that label, each in one row."""
    kept = (labels >= 0) & (labels < values.shape[1])
    return values.argmax(axis=1)[kept], labels[kept]


def _shares(counts: list[Array]) -> Array:
    total: Array = np.sum(counts, axis=0)
    return total / max(int(total.sum()), 1)


def _mean_interval(values: Array, least: float, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a mean over samples, from their own spread."""
    spread = float(values.std(ddof=1)) if len(values) > 1 else 1.0
    half = z * spread / math.sqrt(len(values))
    centre = float(values.mean())
    return max(least, centre - half), min(1.0, centre + half)
