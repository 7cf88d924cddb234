"""How much of the targets of a regression two models explain, on the same samples.

R² is 1 less the squared error over that of answering the mean of the targets throughout: the
coefficient of determination, 0 for who knows nothing of the samples. Of [N, K] targets each of up
to 64 columns counts alike, whatever its unit; of more, and of maps, all values are taken together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deploy.engines.base import Array
from deploy.judging.accuracy import Accuracy

EXPLAINED = "R²"
"""What the accuracy of a regression is called."""
_MOST_COLUMNS = 64
_ROUNDING = 1e-12
"""By what share of itself a target may seem to vary that does not."""
_Floats = NDArray[np.float64]


@dataclass
class TargetAccumulator:
    """Squared errors of both by sample, and the targets in sums, over batches.

    Attributes:
        origin: what targets are held against in sums, by column, so that those far from 0 lose no
            digits: the mean of the first batch that has some; NaN before.
        known: how many targets of a sample there are, by column, and so the others.
        sums, squares: of the targets, less `origin`.
        reference, candidate: squared errors.
    """

    origin: _Floats | None = None
    known: list[_Floats] = field(default_factory=list)
    sums: list[_Floats] = field(default_factory=list)
    squares: list[_Floats] = field(default_factory=list)
    reference: list[_Floats] = field(default_factory=list)
    candidate: list[_Floats] = field(default_factory=list)
    places: tuple[int, ...] = ()

    def update(self, reference: Array, candidate: Array, labels: Array) -> None:
        """Add one batch: outputs of both, and targets as many, (rows, ...); NaN is none."""
        self.places = labels.shape[1:]
        targets, known = _take_columns(labels.astype(np.float64))
        count = known.sum(axis=(0, 1))
        if self.origin is None:
            self.origin = np.full(len(count), np.nan)
        first = np.isnan(self.origin) & (count > 0)
        self.origin[first] = targets.sum(axis=(0, 1))[first] / count[first]
        moved = np.where(known, targets - self.origin, 0)
        self.known.append(known.sum(axis=1).astype(np.float64))
        self.sums.append(moved.sum(axis=1))
        self.squares.append((moved**2).sum(axis=1))
        for kept, output in ((self.reference, reference), (self.candidate, candidate)):
            answers = output.astype(np.float64).reshape(targets.shape)
            kept.append(np.where(known, (answers - targets) ** 2, 0).sum(axis=1))

    def result(self) -> Accuracy | None:
        """R² on all samples that have a target; None where there is none, or all are the same."""
        if self.origin is None:
            return None
        known = np.concatenate(self.known)
        told = known.any(axis=1)
        known = known[told]
        sums, squares, ours, theirs = (
            np.concatenate(each)[told]
            for each in (self.sums, self.squares, self.reference, self.candidate)
        )
        count = known.sum(axis=0)
        mean = sums.sum(axis=0) / np.maximum(count, 1)
        spread = squares - 2 * mean * sums + known * mean**2  # around the mean, by sample
        rounding = count * (_ROUNDING * (np.nan_to_num(self.origin) + mean)) ** 2
        varied = spread.sum(axis=0) > rounding
        if not varied.any():
            return None
        parts = [each[:, varied] for each in (spread, ours, theirs, theirs - ours)]
        missed, other, drop = (_Share.of(errors, parts[0]) for errors in parts[1:])
        return Accuracy(
            samples=len(known),
            reference=1 - missed.value,
            candidate=1 - other.value,
            drop=drop.value,
            drop_ci95=drop.ci95,
            reference_ci95=_flip(missed.ci95),
            candidate_ci95=_flip(other.ci95),
            chance=0.0,
            ranks=not varied.all(),  # what has no targets that differ is held to its SQNR
            read_as=self._describe(),
            measure=EXPLAINED,
            rmse=_measure_rmse(ours, theirs, count),
        )

    def _describe(self) -> str:
        assert self.origin is not None
        each, columns = "x".join(map(str, self.places)), len(self.origin)
        lone = math.prod(self.places) == 1
        what = "the target of a sample is" if lone else f"the {each} targets of a sample are"
        mean = f", as the mean over the {columns} of them" if columns > 1 else ""
        return (
            f"{what} what a regression predicts: R² is the share of the variance that is "
            f"explained{mean}; what is NaN is not judged"
        )


def fit_targets(shape: Sequence[int | str], places: Sequence[int]) -> bool:
    """Whether an output of `shape`, the samples first, has a value for each target of `places`.

    Axes of size 1 are as good as none; names are sizes that are not known.
    """
    sizes = [size for size in shape[1:] if size != 1]
    wanted = [size for size in places if size != 1]
    return len(sizes) == len(wanted) and all(
        isinstance(size, str) or size == place for size, place in zip(sizes, wanted, strict=True)
    )


def _take_columns(labels: _Floats) -> tuple[_Floats, NDArray[np.bool_]]:
    """Targets as (rows, values, columns) without NaN, and where they are known."""
    rows = len(labels)
    wide = labels.reshape(rows, math.prod(labels.shape[1:]))
    columns = labels.ndim == 2 and wide.shape[1] <= _MOST_COLUMNS
    targets = wide[:, None, :] if columns else wide[:, :, None]
    known = ~np.isnan(targets)
    return np.where(known, targets, 0.0), known


@dataclass(frozen=True)
class _Share:
    """Squared errors over the spread of the targets, as the mean over columns."""

    value: float
    ci95: tuple[float, float]

    @classmethod
    def of(cls, errors: _Floats, spread: _Floats, z: float = 1.96) -> "_Share":
        """Both (samples, columns), of which errors may be differences of such.

        The interval is that of the linear part of a ratio, sample by sample; infinite of a lone
        sample.
        """
        rows, total = len(errors), spread.sum(axis=0)
        shares = errors.sum(axis=0) / total
        value = float(shares.mean())
        if rows < 2:
            return cls(value, (-math.inf, math.inf))
        linear = (rows * (errors - shares * spread) / total).mean(axis=1)
        half = z * float(linear.std(ddof=1)) / math.sqrt(rows)
        return cls(value, (value - half, value + half))


def _measure_rmse(ours: _Floats, theirs: _Floats, count: _Floats) -> tuple[float, float] | None:
    """Of both, in the unit of the targets; None of columns, whose units may differ."""
    if len(count) > 1:
        return None
    first, second = (math.sqrt(float(each.sum() / count[0])) for each in (ours, theirs))
    return first, second


def _flip(interval: tuple[float, float]) -> tuple[float, float]:
    """Of 1 less a value, the interval of that value."""
    low, high = interval
    return 1 - high, min(1.0, 1 - low)
