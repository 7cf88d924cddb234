"""Intervals hold the true ratio though a process is slower for as long as it lives."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from deploy.measuring.bootstrap import Floats, estimate_ratio
from deploy.measuring.latency import compare_times
from deploy.measuring.luck import Luck, estimate_luck, widen_interval


def simulate(
    rng: np.random.Generator, shape: tuple[int, int, int], luck: float, noise: float
) -> list[Floats]:
    """Block medians of engines that are all alike: shape (engines, openings, rounds)."""
    engines, openings, rounds = shape
    drift = 0.3 * rng.standard_normal((1, openings, rounds, 1))
    lucky = luck * rng.standard_normal((engines, openings, 1, 1))
    wander = noise * rng.standard_normal((engines, openings, rounds, 2))
    return list(np.exp(drift + lucky + wander))


@pytest.mark.parametrize("shape", [(3, 3, 5), (7, 2, 8)])
@pytest.mark.parametrize(
    ("luck", "noise"), [(0.0, 0.02), (0.005, 0.005), (0.02, 0.01), (0.05, 0.05)]
)
def test_95_of_100_intervals_hold_the_true_ratio(
    shape: tuple[int, int, int], luck: float, noise: float
) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(120):
        times = simulate(rng, shape, luck, noise)
        found = estimate_luck(times, seed=seed)
        _, (low, high) = compare_times(times[0], times[1], found, seed=seed)
        held += low <= 1 <= high
    assert held / 120 >= 0.9


def test_rounds_alone_would_hold_it_in_half_at_best() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(60):
        times = simulate(rng, (5, 2, 8), 0.02, 0.01)
        _, (low, high) = estimate_ratio(times[0], times[1], seed=seed)
        held += low <= 1 <= high
    assert held / 60 <= 0.5


def test_the_luck_found_is_the_luck_there_was() -> None:
    rng = np.random.default_rng(2)
    found = [estimate_luck(simulate(rng, (8, 2, 10), 0.03, 0.01), seed=0) for _ in range(100)]
    assert {luck.freedom for luck in found} == {7}
    assert np.mean([luck.variance for luck in found]) == pytest.approx(0.03**2, rel=0.15)


def test_of_three_engines_the_middle_one_does_not_hide_the_luck() -> None:
    """Rounds wander by more; a baseline, its control and one candidate are the fewest there are."""
    rng = np.random.default_rng(2)
    found = [estimate_luck(simulate(rng, (3, 3, 6), 0.02, 0.04), seed=0) for _ in range(300)]
    assert 0.75 < np.mean([each.variance for each in found]) / 0.02**2 < 1.1


def test_where_processes_are_alike_the_interval_is_hardly_wider_than_that_of_the_rounds() -> None:
    rng = np.random.default_rng(3)
    wider = []
    for seed in range(60):
        times = simulate(rng, (7, 2, 10), 0.0, 0.02)
        _, (low, high) = estimate_ratio(times[0], times[1], seed=seed)
        _, (wide_low, wide_high) = compare_times(
            times[0], times[1], estimate_luck(times, seed=seed), seed=seed
        )
        assert wide_low <= low * (1 + 1e-9)
        assert wide_high >= high * (1 - 1e-9)
        wider.append((wide_high - wide_low) / (high - low))
    assert np.median(wider) < 1.1


@pytest.mark.parametrize("slow", [10.0, 1000.0])
def test_one_slow_block_is_no_luck(slow: float) -> None:
    def estimate(times: Sequence[Floats]) -> float:
        return math.sqrt(estimate_luck(times, seed=0).variance)

    times = simulate(np.random.default_rng(4), (6, 2, 8), 0.02, 0.005)
    before = estimate(times)
    times[2][1, 3, 0] *= slow
    assert estimate(times) == pytest.approx(before, abs=0.004)


def test_margins_are_those_of_student_and_never_narrower() -> None:
    from scipy import stats

    for freedom in range(1, 41):
        for openings, engines in ((2, 1), (2, 2), (3, 2)):
            margin = Luck(0.02**2, freedom, openings).margin(engines)
            exact = stats.t.ppf(0.975, freedom) * 0.02 * math.sqrt(engines / openings)
            assert 0.999 * exact <= margin <= 1.03 * exact
    assert Luck(0.0, 1, 2).margin(2) == 0


def test_independent_errors_add_as_squares_about_the_value() -> None:
    low, high = widen_interval(1.2, (1.2 / 1.03, 1.2 * 1.04), math.log(1.04))
    assert math.log(1.2 / low) ** 2 == pytest.approx(math.log(1.03) ** 2 + math.log(1.04) ** 2)
    assert math.log(high / 1.2) == pytest.approx(math.sqrt(2) * math.log(1.04))
    assert widen_interval(1.2, (1.1, 1.3), 0.0) == pytest.approx((1.1, 1.3))
