"""Arrivals are those of a Poisson process by its closed form, or evenly spaced, and seeded."""

import numpy as np
import pytest

from deploy.client.arrivals import draw_arrivals


def test_fixed_arrivals_are_evenly_spaced_and_end_before_the_time_is_up() -> None:
    times = draw_arrivals("fixed", 200.0, 1.5, seed=0)
    np.testing.assert_allclose(times, np.arange(300) / 200)


@pytest.mark.parametrize(("rate", "seconds"), [(0.5, 1.0), (3.0, 0.5), (7.3, 2.1), (100.0, 1.1)])
def test_fixed_arrivals_begin_at_once_at_any_rate(rate: float, seconds: float) -> None:
    times = draw_arrivals("fixed", rate, seconds, seed=0)
    assert times[0] == 0
    assert times[-1] < seconds <= times[-1] + 1 / rate + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_the_gaps_of_poisson_arrivals_are_exponential_and_independent(seed: int) -> None:
    rate, seconds = 500.0, 40.0
    times = draw_arrivals("poisson", rate, seconds, seed=seed)
    expected = rate * seconds
    assert abs(len(times) - expected) < 4.5 * np.sqrt(expected)
    assert (times[0] > 0) & (times[-1] < seconds)
    gaps = np.sort(np.diff(times))
    exact = 1 - np.exp(-rate * gaps)  # the distribution function of the exponential
    steps = np.arange(1, len(gaps) + 1) / len(gaps)
    assert np.abs(exact - steps).max() < 1.95 / np.sqrt(len(gaps))  # Kolmogorov-Smirnov at 0.1%
    unsorted = np.diff(times)
    correlation = np.corrcoef(unsorted[:-1], unsorted[1:])[0, 1]
    assert abs(correlation) < 4.5 / np.sqrt(len(unsorted))


def test_counts_of_poisson_arrivals_vary_as_much_as_they_are() -> None:
    counts = np.histogram(draw_arrivals("poisson", 50.0, 400.0, seed=1), np.arange(401))[0]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.3)  # fixed ones have 0


def test_the_seed_decides() -> None:
    one, same, other = (draw_arrivals("poisson", 100.0, 1.0, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[:20], other[:20])


def test_a_low_rate_may_draw_no_request_at_all() -> None:
    assert len(draw_arrivals("poisson", 1e-6, 1.0, seed=0)) == 0
