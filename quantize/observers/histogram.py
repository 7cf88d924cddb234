"""Counts of values on both sides of zero, in memory that does not grow with them."""

import copy

import numpy as np

BINS = 8192
"""Of each sign. Where one value in a thousand is a hundred times the rest, 80 bins see the rest."""


class Histogram:
    """Counts in ``2 * bins`` bins of one width around 0; exact zeros are counted apart.

    The width is a power of two times 1/bins. When a value falls outside, it doubles until the value
    fits, and neighbouring bins merge: no count moves across an edge. So the result depends neither
    on the order of the values nor on how they come in batches.

    Args:
        bins: of each sign; a power of two.

    Attributes:
        counts: [2 * bins], of nonzero values; ``counts[bins + k]`` is of [k, k + 1) * width.
        zeros: how many values were exactly 0.
    """

    def __init__(self, bins: int = BINS) -> None:
        assert bins.bit_count() == 1 < bins, f"{bins} is not a power of two"
        self.counts = np.zeros(2 * bins, np.int64)
        self.zeros = 0
        self._exponent: int | None = None  # the bins end at 2**exponent

    @property
    def bins(self) -> int:
        """Of each sign."""
        return self.counts.size // 2

    @property
    def width(self) -> float:
        """Of a bin; 0 while nothing but zeros was seen."""
        return 0.0 if self._exponent is None else float(2.0**self._exponent / self.bins)

    def add(self, values: np.ndarray) -> None:
        """Count finite `values` (any shape)."""
        values = np.asarray(values).ravel()
        nonzero = values[values != 0]
        self.zeros += values.size - nonzero.size
        if nonzero.size:
            self.reach(float(nonzero.max()), float(nonzero.min()))
            places = np.floor(nonzero * np.float64(1 / self.width)).astype(np.int64)
            self.counts += np.bincount(places + self.bins, minlength=self.counts.size)

    def reach(self, *values: float) -> None:
        """Widen the bins until every one of `values` lies inside."""
        largest = max(abs(value) for value in values)
        if largest == 0:
            return
        exponent = int(np.frexp(largest)[1])  # largest < 2**exponent
        if self._exponent is None:
            self._exponent = exponent
        while self._exponent < exponent:
            self.counts = np.pad(_merge_pairs(self.counts), self.bins // 2)
            self._exponent += 1

    def share_outside(self, low: float, high: float) -> float:
        """The share of all values below `low` or above `high`, to a bin; 0 where none were seen."""
        total = int(self.counts.sum()) + self.zeros
        if not total or not self.width:
            return 0.0
        edges = (np.arange(self.counts.size + 1) - self.bins) * self.width
        outside = self.counts[(edges[1:] <= low) | (edges[:-1] > high)].sum()
        outside += self.zeros * (not low <= 0 <= high)
        return float(outside / total)

    def coarsened(self, bins: int) -> "Histogram":
        """The same counts in `bins` bins of each sign, over the same span.

        Args:
            bins: a power of two, at most that of this one.
        """
        coarse = copy.copy(self)
        while coarse.bins > bins:
            coarse.counts = _merge_pairs(coarse.counts)
        return coarse

    def copy(self) -> "Histogram":
        """One that goes on by itself."""
        twin = copy.copy(self)
        twin.counts = self.counts.copy()
        return twin


def _merge_pairs(counts: np.ndarray) -> np.ndarray:
    merged: np.ndarray = counts.reshape(-1, 2).sum(axis=1)
    return merged
