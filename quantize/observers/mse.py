"""The range whose codes are closest to the values: least squared error, clipping included."""

import numpy as np

from quantize.observers.statistic import Span, TensorStatistic

BINS = 2048
"""Of each sign: four or more for each of the codes, however the range lies."""

_COARSE = 2.0 ** (-np.arange(81) / 8)  # 9% apart, down to a thousandth of the extent
_FINE = 2.0 ** (np.arange(-8, 9) / 64)  # around the best of these, 1% apart


def minimize_squared_error(seen: TensorStatistic, symmetric: bool = False) -> Span:
    """The extent, clipped where the squared error over the histogram is least.

    A grid of clipping ratios, coarse then fine; with a free zero point each end has its own, found
    in turn. An exact zero costs nothing, as it has a code.

    Args:
        seen: of the tensor.
        symmetric: the codes are int8 around 0; otherwise uint8 with a free zero point.

    Raises:
        QuantizeError: nothing was observed.
    """
    extent = seen.extent
    histogram = seen.histogram.coarsened(BINS)
    places = np.flatnonzero(histogram.counts)
    if not places.size:
        return extent
    values = (places - histogram.bins + 0.5) * histogram.width
    counts = histogram.counts[places].astype(np.float64)
    low, high = min(extent[0], 0.0), max(extent[1], 0.0)
    if symmetric:
        limit = max(-low, high)
        for ratios in (_COARSE, _FINE):
            limits = np.minimum(limit * ratios, max(-low, high))
            errors = squared_error(values, counts, -limits, limits, symmetric=True)
            limit = float(limits[np.argmin(errors)])
        return max(extent[0], -limit), min(extent[1], limit)
    best = np.array([low, high])
    for ratios in (_COARSE, _COARSE, _FINE):
        for end in (1, 0):  # the high end first: of a ReLU there is no other
            spans = np.tile(best, (len(ratios), 1))
            whole = (low, high)[end]
            spans[:, end] = np.clip((whole if ratios is _COARSE else best[end]) * ratios, low, high)
            errors = squared_error(values, counts, spans[:, 0], spans[:, 1], symmetric=False)
            best = spans[np.argmin(errors)]
    return max(extent[0], float(best[0])), min(extent[1], float(best[1]))


def squared_error(
    values: np.ndarray, counts: np.ndarray, lows: np.ndarray, highs: np.ndarray, *, symmetric: bool
) -> np.ndarray:
    """Summed squared error of `values`, each `counts` times, in the codes of every range.

    Args:
        values, counts: [n].
        lows, highs: [ranges]; 0 lies inside each.
        symmetric: 255 codes around 0; otherwise 256 from low to high, one of them exactly 0.
    """
    if symmetric:
        scales = np.maximum(-lows, highs) / 127
        bottoms, tops = np.full(len(lows), -127.0), np.full(len(lows), 127.0)
    else:
        scales = (highs - lows) / 255
        with np.errstate(invalid="ignore", divide="ignore"):
            zeros = np.nan_to_num(np.rint(-lows / scales))
        bottoms, tops = -zeros, 255 - zeros
    errors = np.empty(len(lows))
    for number, scale in enumerate(scales):
        if scale == 0:
            errors[number] = np.inf
            continue
        codes = np.clip(np.rint(values / scale), bottoms[number], tops[number])
        errors[number] = counts @ (values - codes * scale) ** 2
    return errors
