"""The range that holds most of the values, the rest cut in equal parts at both ends."""

from collections.abc import Callable

import numpy as np

from export.errors import QuantizeError
from quantize.observers.statistic import Span, TensorStatistic


def cut_tails(percentile: float) -> Callable[[TensorStatistic, bool], Span]:
    """The observer that keeps `percentile` percent of the values.

    It errs outwards by one bin of the histogram at most, never beyond the values seen.

    Args:
        percentile: above 0, at most 100; 100 is min-max.

    Raises:
        QuantizeError: `percentile` is not a percentage.
    """
    if not 0 < percentile <= 100:
        raise QuantizeError(f"percentile {percentile} is not above 0 and at most 100.")
    tail = (100 - percentile) / 200

    def find_range(seen: TensorStatistic, symmetric: bool = False) -> Span:
        low, high = seen.extent
        histogram = seen.histogram
        counts = histogram.counts.copy()
        counts[histogram.bins] += histogram.zeros
        if not counts.any():
            return low, high
        cut = tail * counts.sum()
        below = np.cumsum(counts)
        first = int(np.searchsorted(below, cut, side="right"))
        last = int(np.searchsorted(below, counts.sum() - cut, side="left"))
        return (
            max(low, (first - histogram.bins) * histogram.width),
            min(high, (last + 1 - histogram.bins) * histogram.width),
        )

    return find_range
