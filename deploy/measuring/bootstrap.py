"""Intervals for what was measured in rounds and blocks.

Calls that follow each other share the state of the machine, so single samples are not independent
and an interval from them is too narrow. What is resampled here is the round, within its opening of
the engines, and the block within the round (hierarchical bootstrap: Davison & Hinkley, Bootstrap
Methods and their Application, 3.8). What the openings differ by is in `deploy.measuring.luck`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Interval = tuple[float, float]

_RATIO_RESAMPLES = 4000
_QUANTILE_RESAMPLES = 400
_LEVELS = (2.5, 97.5)


def estimate_ratio(numerator: Floats, denominator: Floats, *, seed: int) -> tuple[float, Interval]:
    """Ratio of two engines' times and its 95% interval.

    Args:
        numerator: block medians in seconds, shape (openings, rounds, blocks).
        denominator: likewise, measured in the same rounds; the rounds are paired, so that a drift
            of the machine cancels.
        seed: of the resampling.

    Returns:
        The geometric mean over openings of the median over rounds of the ratio of the rounds' mean
        block medians, and its interval: what it would be in other rounds of the same openings.
    """
    openings, rounds, blocks = numerator.shape
    rng = np.random.default_rng(seed)
    each = np.arange(openings)[:, None, None]
    chosen = rng.integers(rounds, size=(_RATIO_RESAMPLES, openings, rounds, 1))
    size = (_RATIO_RESAMPLES, openings, rounds, blocks)
    first = (each * rounds + chosen) * blocks  # of the blocks of each round that was chosen
    upper = numerator.take(first + rng.integers(blocks, size=size))
    lower = denominator.take(first + rng.integers(blocks, size=size))
    resampled = _central_ratio(upper, lower)
    low, high = np.percentile(resampled, _LEVELS)
    return float(_central_ratio(numerator, denominator)), (float(low), float(high))


def _central_ratio(numerator: Floats, denominator: Floats) -> Any:
    """Over shape (..., openings, rounds, blocks): a median over rounds, a mean over openings."""
    ratios = np.einsum("...b->...", numerator) / np.einsum("...b->...", denominator)
    return np.exp(np.log(np.median(ratios, axis=-1)).mean(axis=-1))


def estimate_quantiles(
    times: Floats, quantiles: Sequence[float], *, seed: int
) -> tuple[tuple[float, Interval], ...]:
    """Quantiles of all times, each with its 95% interval.

    Args:
        times: seconds, shape (openings, rounds, blocks, calls). Nothing is clipped.
        quantiles: in percent, such as (50, 90, 99).
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    openings, rounds, blocks, calls = times.shape
    each = np.arange(openings)[:, None, None]
    order = np.argsort(times, axis=None)
    ordered, owners = times.ravel()[order], order // calls  # the block that each time is of
    resampled = np.empty((_QUANTILE_RESAMPLES, len(quantiles)))
    for index in range(_QUANTILE_RESAMPLES):
        chosen = each * rounds + rng.integers(rounds, size=(openings, rounds, 1))
        drawn = chosen * blocks + rng.integers(blocks, size=(openings, rounds, blocks))
        counts = np.bincount(drawn.ravel(), minlength=openings * rounds * blocks)
        resampled[index] = _read_quantiles(ordered, counts[owners], quantiles)
    lows, highs = np.percentile(resampled, _LEVELS, axis=0)
    values = np.percentile(times, quantiles)
    return tuple(
        (float(value), (float(low), float(high)))
        for value, low, high in zip(values, lows, highs, strict=True)
    )


def _read_quantiles(ordered: Floats, counts: Any, quantiles: Sequence[float]) -> Floats:
    """`numpy.percentile` of ascending numbers each of which stands there `counts` times.

    The resamples of one sample are the same numbers, so they are put in order once for all.
    """
    ends = np.cumsum(counts)
    places = np.asarray(quantiles) / 100 * (ends[-1] - 1)
    below = np.floor(places)
    low, high = (
        ordered[np.searchsorted(ends, place, side="right")] for place in (below, np.ceil(places))
    )
    found: Floats = low + (high - low) * (places - below)
    return found
