"""Streaming range estimators: what a tensor's values span, in memory that does not grow.

An observer sees a tensor batch by batch and gives one range in the tensor's own unit.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from export.errors import QuantizeError

Samples = range
"""Indices of the calibration samples that one batch holds."""


class Observer(Protocol):
    """Takes batches of one tensor, gives its range."""

    def update(self, array: np.ndarray, samples: Samples | None = None) -> None: ...

    def range(self) -> tuple[float, float]: ...


class MinMaxObserver:
    """The smallest and the largest value seen.

    Args:
        name: of the tensor, for messages.
    """

    def __init__(self, *, name: str = "tensor") -> None:
        self._name = name
        self._low, self._high = np.inf, -np.inf

    def update(self, array: np.ndarray, samples: Samples | None = None) -> None:
        """Take one batch (any shape, any float type).

        Args:
            array: values.
            samples: indices of the calibration samples that `array` holds, for messages.

        Raises:
            QuantizeError: a value is NaN or infinite; names the tensor and the sample.
        """
        low, high = finite_extent(array, self._name, samples)
        self._low, self._high = min(self._low, low), max(self._high, high)

    def range(self) -> tuple[float, float]:
        """(low, high).

        Raises:
            QuantizeError: nothing was observed.
        """
        return _seen_range(self._name, self._low, self._high)


class PercentileObserver:
    """The range that holds `percentile` percent of the values, half of the rest cut at each end.

    Counts go to two histograms of `bins` bins, one a sign, that share one bin width: a power of two
    times 1/bins. When a value falls outside, the width doubles until it fits and neighbouring bins
    merge, which moves no count across an edge. The result errs outwards by one bin at most, never
    beyond the values seen.

    Args:
        percentile: above 0, at most 100; 100 is min-max.
        bins: of each sign; a power of two.
        name: of the tensor, for messages.
    """

    def __init__(
        self, percentile: float = 99.99, bins: int = 2048, *, name: str = "tensor"
    ) -> None:
        if not 0 < percentile <= 100:
            raise QuantizeError(f"percentile {percentile} is not above 0 and at most 100.")
        if bins < 2 or bins & (bins - 1):
            raise QuantizeError(f"{bins} bins: the histogram needs a power of two, such as 2048.")
        self._tail = (100 - percentile) / 200
        self._bins = bins
        self._extent = MinMaxObserver(name=name)
        self._exponent: int | None = None  # both histograms end at 2**exponent
        self._negative = np.zeros(bins, np.int64)
        self._positive = np.zeros(bins, np.int64)

    def update(self, array: np.ndarray, samples: Samples | None = None) -> None:
        """Take one batch (any shape, any float type).

        Raises:
            QuantizeError: a value is NaN or infinite; names the tensor and the sample.
        """
        self._extent.update(array, samples)
        if array.size == 0:
            return
        values = np.asarray(array, np.float32).ravel()
        largest = float(np.abs(values).max())
        if largest > 0:
            self._grow(int(np.frexp(largest)[1]))  # largest < 2**exponent
        self._count(values)

    def range(self) -> tuple[float, float]:
        """(low, high), both within the values seen.

        Raises:
            QuantizeError: nothing was observed.
        """
        low, high = self._extent.range()
        if self._exponent is None:
            return low, high
        width = 2.0**self._exponent / self._bins
        counts = np.concatenate([self._negative[::-1], self._positive])
        cut = self._tail * counts.sum()
        below = np.cumsum(counts)
        first = int(np.searchsorted(below, cut, side="right"))
        last = int(np.searchsorted(below, counts.sum() - cut, side="left"))
        first, last = min(first, 2 * self._bins - 1), min(last, 2 * self._bins - 1)
        return (
            max(low, (first - self._bins) * width),
            min(high, (last + 1 - self._bins) * width),
        )

    def _grow(self, exponent: int) -> None:
        if self._exponent is None:
            self._exponent = exponent
            # zeros that came before any width was known are already in bin 0
        while self._exponent < exponent:
            self._negative = _merge_pairs(self._negative)
            self._positive = _merge_pairs(self._positive)
            self._exponent += 1

    def _count(self, values: np.ndarray) -> None:
        scale = 0.0 if self._exponent is None else self._bins / 2.0**self._exponent
        bins = np.minimum((np.abs(values) * np.float64(scale)).astype(np.int64), self._bins - 1)
        negative = values < 0
        self._negative += np.bincount(bins[negative], minlength=self._bins)
        self._positive += np.bincount(bins[~negative], minlength=self._bins)


OBSERVERS: dict[str, Callable[[str], Observer]] = {
    "minmax": lambda name: MinMaxObserver(name=name),
    "percentile": lambda name: PercentileObserver(name=name),
}
"""Every observer by its name in the configuration; called with the tensor's name."""


def finite_extent(
    array: np.ndarray, name: str, samples: Samples | None = None
) -> tuple[float, float]:
    """Smallest and largest value of `array`; (inf, -inf) when it is empty.

    Raises:
        QuantizeError: a value is NaN or infinite; names the tensor and the sample, or the span of
            samples when the leading axis of `array` is not the batch.
    """
    if array.size == 0:
        return np.inf, -np.inf
    low, high = float(array.min()), float(array.max())
    if np.isfinite(low) and np.isfinite(high):
        return low, high
    position = np.argwhere(~np.isfinite(np.asarray(array, np.float64)))[0]
    kind = "NaN" if np.isnan(array[tuple(position)]) else "infinite"
    row = int(position[0]) if position.size else 0
    if samples is None:
        where = f"row {row}"
    elif array.ndim and array.shape[0] == len(samples):
        where = f"calibration sample {samples[row]}"
    else:
        where = f"calibration samples {samples[0]} to {samples[-1]}"
    raise QuantizeError(
        f"Tensor {name!r} is {kind} at {where}; remove that sample, or repair what makes it so."
    )


def _seen_range(name: str, low: float, high: float) -> tuple[float, float]:
    if low > high:
        raise QuantizeError(f"Tensor {name!r} was never observed: no calibration data reached it.")
    return float(low), float(high)


def _merge_pairs(counts: np.ndarray) -> np.ndarray:
    merged = counts.reshape(-1, 2).sum(axis=1)
    return np.concatenate([merged, np.zeros_like(merged)])
