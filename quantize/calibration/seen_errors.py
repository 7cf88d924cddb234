"""What a range costs over all that was seen, where it was tried on a few samples alone.

A range that clips costs most where values are large, and such samples are few: of sixteen that are
held, none may be one. The histogram has seen them all. So the error of a tensor, a value, is taken
from there, and what it costs the layers behind is scaled by how much more or less that is.
"""

import numpy as np

from quantize.calibration.rehearsal import Codes, Cost
from quantize.observers.histogram import Histogram
from quantize.observers.statistic import TensorStatistic


def scale_to_seen(cost: Cost, seen: TensorStatistic) -> dict[str, float]:
    """By range, the squared error of a value of all that were seen over that of the held ones.

    It is 1 where these are all that were seen, where they lose nothing, and of a copy that shares
    the range of a tensor, whose histogram would be another one.

    Args:
        cost: of a reading, after its rehearsal.
        seen: of its tensor.
    """
    factors = dict.fromkeys(cost.noise, 1.0)
    histogram, reading = seen.histogram, cost.reading
    count = int(histogram.counts.sum()) + histogram.zeros
    if reading.source != reading.tensor or count in (0, cost.values):
        return factors
    for codes, names in cost.codes.items():
        held = cost.rounding[codes] / max(cost.values, 1)
        if held > 0:
            factors |= dict.fromkeys(names, _sum_squared_error(histogram, codes) / count / held)
    return factors


def _sum_squared_error(histogram: Histogram, codes: Codes) -> float:
    """Of all values of a histogram, those of a bin spread evenly over it; a zero has a code."""
    scale, zero_point, unsigned = float(codes[0]), codes[1], codes[2]
    lowest, highest = (0, 255) if unsigned else (-128, 127)
    places = np.flatnonzero(histogram.counts)
    values = (places - histogram.bins + 0.5) * histogram.width
    chosen = np.clip(np.rint(values / scale) + zero_point, lowest, highest)
    errors = np.square((chosen - zero_point) * scale - values) + histogram.width**2 / 12
    if histogram.width > scale:  # several codes in a bin
        errors = np.where(errors <= histogram.width**2 / 3, scale**2 / 12, errors)
    return float(histogram.counts[places] @ errors)
