"""How far the times of an engine differ from one opening to the next, though nothing changed.

Two processes that run the same differ by a few percent for as long as they live, by the luck of
their memory. However many rounds are run in one of them, they cannot show it: with 2% of such luck
on a quiet machine, intervals from the rounds alone hold the true ratio in one case of five. So
every engine is opened anew in the course of a measurement, and what its openings differ by, pooled
over all engines, widens every interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.measuring.bootstrap import Floats, Interval

_RESAMPLES = 200
_STUDENT = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    10: 2.228,
    12: 2.179,
    15: 2.131,
    20: 2.086,
    30: 2.042,
}
"""Quantiles of 97.5% of Student's distribution by degrees of freedom."""


@dataclass(frozen=True)
class Luck:
    """What the openings of an engine differ by, beyond what its rounds explain.

    Attributes:
        variance: of the logarithm of an engine's time in one opening.
        freedom: degrees of freedom that the variance was estimated with.
        openings: how many the engines' times are means of.
    """

    variance: float
    freedom: int
    openings: int

    def margin(self, engines: int) -> float:
        """Half the 95% interval of a logarithm: of one engine's time, or of a ratio of two."""
        quantile = _STUDENT[max(df for df in _STUDENT if df <= self.freedom)]
        return quantile * math.sqrt(engines * self.variance / self.openings)


def estimate_luck(engines: Sequence[Floats], *, seed: int) -> Luck:
    """The luck of a run, from all of its engines together (a two-way analysis of variance).

    Medians stand where means would let one slow block decide. They are of the ratios of every two
    engines, as speed-ups are; less the middle one of three, an engine would often be compared with
    itself, and seem to differ less than it does.

    Args:
        engines: block medians in seconds of two engines at least, each of shape (openings, rounds,
            blocks), measured in the same rounds; a drift of the machine is common to all of a round
            and cancels.
        seed: of the resampling.
    """
    logs = np.log(np.stack(engines).mean(axis=3))
    count, openings, rounds = logs.shape
    ratios = logs[:, None] - logs  # of every two, in which nothing is left of a drift
    apart = np.median(ratios, axis=3).mean(axis=1)
    apart -= apart.mean(axis=1, keepdims=True)
    freedom = (count - 1) * (openings - 1)
    between = float((apart**2).sum()) / freedom
    chosen = np.random.default_rng(seed).integers(rounds, size=(_RESAMPLES, rounds))
    pairs = ratios[np.triu_indices(count, 1)]
    within = float(np.median(np.median(pairs[..., chosen], axis=3).var(axis=2))) / 2
    return Luck(max(0.0, between - within), freedom, openings)


def widen_interval(value: float, interval: Interval, margin: float) -> Interval:
    """An interval about `value`, both positive, wider by an independent error of its logarithm."""
    low, high = interval
    below = math.hypot(math.log(value / low), margin)
    above = math.hypot(math.log(high / value), margin)
    return value * math.exp(-below), value * math.exp(above)
