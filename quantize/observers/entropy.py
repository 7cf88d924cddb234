"""The range whose codes keep most of what the values tell: least Kullback-Leibler divergence.

S. Migacz, "8-bit Inference with TensorRT", GTC 2017. The values in range are P, with the mass of
what lies outside added to the outermost bins. Q is P without that mass, merged into as many levels
as there are codes and spread again, evenly, over those bins of a level that P has anything in. The
range with the least KL(P, Q) wins.

Symmetric codes are 128 levels of the magnitude. The 256 codes of a free zero point are levels of
the value itself: a tensor of both signs shares them between the signs, one that is never negative
has all of them above 0.

Exact zeros are left out: they have a code of their own and lose nothing, and the many that a ReLU
makes would drown the rest. Where fewer bins hold values than there are codes, nothing is clipped:
a divergence compares densities, and a few lone values have none.
"""

import numpy as np

from quantize.observers.statistic import Span, TensorStatistic

BINS = 4096
"""Of each sign, up to the power of two above the largest value: 2,048 or more hold values."""

SYMMETRIC_LEVELS, FREE_LEVELS = 128, 256
SMOOTHING = 1e-4
"""What Q gets, in counts, of a level that holds nothing but outliers; else KL were infinite."""

_CANDIDATES = 600


def minimize_divergence(seen: TensorStatistic, symmetric: bool = False) -> Span:
    """The extent, clipped to the magnitude whose codes diverge least.

    Magnitudes from 128 bins up are tried, every bin at first, later 0.6% apart.

    Args:
        seen: of the tensor.
        symmetric: the codes are int8 around 0; otherwise uint8 with a free zero point.

    Raises:
        QuantizeError: nothing was observed.
    """
    low, high = seen.extent
    histogram = seen.histogram.coarsened(BINS)
    counts, origin, levels = histogram.counts, histogram.bins, FREE_LEVELS
    if symmetric:
        counts, origin = counts[origin:] + counts[:origin][::-1], 0
        levels = SYMMETRIC_LEVELS
    places = np.flatnonzero(counts)
    if len(places) < levels:
        return low, high
    start, end = min(origin, int(places[0])), max(origin, int(places[-1]) + 1)
    reach = max(origin - start, end - origin)
    sizes = np.unique(np.geomspace(SYMMETRIC_LEVELS, reach, _CANDIDATES).round().astype(np.int64))
    firsts, lasts = np.maximum(origin - sizes, start), np.minimum(origin + sizes, end)
    possible = lasts - firsts >= levels
    divergences = measure_divergence(counts, firsts[possible], lasts[possible], levels)
    limit = (float(sizes[possible][np.argmin(divergences)]) + 0.5) * histogram.width
    return max(low, -limit), min(high, limit)


def measure_divergence(
    counts: np.ndarray, firsts: np.ndarray, lasts: np.ndarray, levels: int
) -> np.ndarray:
    """KL(P, Q) in nats of every range [first, last) of bins; infinite where Q is nothing.

    Args:
        counts: [bins].
        firsts, lasts: [ranges], each with at least `levels` bins between them.
        levels: how many codes there are.
    """
    counts = counts.astype(np.float64)
    total = counts.sum()
    mass_before, used_before = _running_sum(counts), _running_sum(counts > 0)
    steps = np.arange(levels + 1)
    edges = firsts[:, None] + steps * (lasts - firsts)[:, None] // levels
    mass, used = np.diff(mass_before[edges]), np.diff(used_before[edges])
    below, above = mass_before[firsts], total - mass_before[lasts]
    used[:, 0] += (counts[firsts] == 0) & (below > 0)
    used[:, -1] += (counts[lasts - 1] == 0) & (above > 0)
    wanted = mass.copy()  # P, by level
    wanted[:, 0] += below
    wanted[:, -1] += above
    made = np.where((mass == 0) & (wanted > 0), SMOOTHING, mass)  # Q, by level
    spread = np.log(np.where(wanted > 0, made / np.maximum(used, 1), 1))
    divergence: np.ndarray = (
        (_sum_of_logs(counts, firsts, lasts, below, above) - (wanted * spread).sum(axis=1)) / total
        - np.log(total)
        + np.log(made.sum(axis=1))
    )
    return np.where(mass.any(axis=1), divergence, np.inf)


def _sum_of_logs(
    counts: np.ndarray, firsts: np.ndarray, lasts: np.ndarray, below: np.ndarray, above: np.ndarray
) -> np.ndarray:
    """Sum of p * log(p) over the bins of P, in counts."""
    inside = _running_sum(_times_log(counts))
    result: np.ndarray = inside[lasts] - inside[firsts]
    for edge, outside in ((counts[firsts], below), (counts[lasts - 1], above)):
        result += _times_log(edge + outside) - _times_log(edge)
    return result


def _times_log(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = values * np.log(np.where(values > 0, values, 1))
    return result


def _running_sum(values: np.ndarray) -> np.ndarray:
    """[n + 1], begun with 0."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
