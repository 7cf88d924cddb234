"""Intervals cover what they say where the machine drifts; single samples are not independent."""

import numpy as np
import pytest

from deploy.measuring.bootstrap import Floats, estimate_quantiles, estimate_ratio


def simulate(
    rng: np.random.Generator, true: float, *, rounds: int = 20, drift: float = 0.3
) -> tuple[Floats, Floats]:
    """Block medians of two engines that share a drift, and wander a little on their own."""
    each = (2, rounds // 2)
    shared = np.exp(drift * rng.standard_normal((*each, 1)))

    def engine(seconds: float) -> Floats:
        own = np.exp(0.015 * rng.standard_normal((*each, 1)))
        return seconds * shared * own * np.exp(0.01 * rng.standard_normal((*each, 2)))

    return engine(true), engine(1.0)


def test_interval_covers_the_true_ratio_in_about_95_of_100_under_a_shared_drift() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        _, (low, high) = estimate_ratio(*simulate(rng, 1.3), seed=seed)
        covered += low <= 1.3 <= high
    assert 0.91 <= covered / 200 <= 0.995


def test_an_engine_against_itself_holds_one_and_the_drift_cancels() -> None:
    rng = np.random.default_rng(1)
    holds, widths = 0, []
    for seed in range(100):
        ratio, (low, high) = estimate_ratio(*simulate(rng, 1.0), seed=seed)
        assert low <= ratio <= high
        holds += low <= 1 <= high
        widths.append(high - low)
    assert holds >= 91
    assert np.median(widths) < 0.05  # the drift alone is 30%


def test_unpaired_rounds_would_be_far_wider() -> None:
    numerator, denominator = simulate(np.random.default_rng(2), 1.3)
    _, (low, high) = estimate_ratio(numerator, denominator, seed=0)
    order = np.random.default_rng(3).permutation(denominator.shape[1])
    shuffled = denominator[:, order]
    _, (wide_low, wide_high) = estimate_ratio(numerator, shuffled, seed=0)
    assert wide_high - wide_low > 5 * (high - low)


@pytest.mark.parametrize("engine", [0, 1])
@pytest.mark.parametrize("slow", [10.0, 100.0])
def test_one_slow_block_does_not_flip_a_verdict(engine: int, slow: float) -> None:
    for true in (1.2, 1.0, 1 / 1.2):
        pair = simulate(np.random.default_rng(4), true, rounds=10)
        before, (low, high) = estimate_ratio(*pair, seed=0)
        pair[engine][1, 3, 1] *= slow
        after, (slow_low, slow_high) = estimate_ratio(*pair, seed=0)
        assert after == pytest.approx(before, rel=0.02)
        assert (slow_low > 1, slow_high < 1) == (low > 1, high < 1)


def test_same_seed_same_interval_and_the_input_is_not_changed() -> None:
    pair = simulate(np.random.default_rng(5), 1.1)
    kept = tuple(array.copy() for array in pair)
    assert estimate_ratio(*pair, seed=7) == estimate_ratio(*pair, seed=7)
    assert estimate_ratio(*pair, seed=7) != estimate_ratio(*pair, seed=8)
    for array, copy in zip(pair, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_constant_times_have_an_exact_ratio() -> None:
    ratio, interval = estimate_ratio(np.full((2, 5, 2), 3.0), np.full((2, 5, 2), 2.0), seed=0)
    assert (ratio, interval) == (1.5, (1.5, 1.5))


def test_quantile_interval_is_wider_than_that_of_independent_samples() -> None:
    rng = np.random.default_rng(6)
    rounds, blocks, calls = 6, 2, 100
    state = 1 + 0.1 * rng.standard_normal((2, rounds, 1, 1))
    times = state + 0.01 * rng.standard_normal((2, rounds, blocks, calls))
    ((_, (low, high)),) = estimate_quantiles(times, (50,), seed=0)
    pool = times.ravel()
    naive = [np.median(rng.choice(pool, pool.size)) for _ in range(400)]
    naive_low, naive_high = np.percentile(naive, (2.5, 97.5))
    assert high - low > 3 * (naive_high - naive_low)


def test_quantile_interval_covers_the_true_median_where_rounds_differ() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for seed in range(60):
        state = 1 + 0.1 * rng.standard_normal((2, 8, 1, 1))
        times = state + 0.01 * rng.standard_normal((2, 8, 2, 20))
        ((_, (low, high)),) = estimate_quantiles(times, (50,), seed=seed)
        covered += low <= 1 <= high
    assert covered / 60 >= 0.87


def test_quantile_interval_is_as_wide_as_that_of_so_many_independent_rounds() -> None:
    """The standard error of the median of n normal values is 1.253 of theirs over sqrt(n)."""
    rng = np.random.default_rng(8)
    widths = []
    for seed in range(30):
        times = 1 + 0.1 * rng.standard_normal((2, 16, 1, 1)) + np.zeros((2, 16, 2, 3))
        ((_, (low, high)),) = estimate_quantiles(times, (50,), seed=seed)
        widths.append(high - low)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 1.253 * 0.1 / np.sqrt(32), rel=0.3)


def test_quantiles_are_of_all_times_and_clip_nothing() -> None:
    times = np.linspace(1, 2, 400).reshape(2, 5, 2, 20)
    times[0, 0, 0, 0] = 1000.0
    found = estimate_quantiles(times, (50, 90, 99, 100), seed=0)
    expected = np.quantile(times.ravel(), [0.5, 0.9, 0.99, 1.0])
    assert [value for value, _ in found] == pytest.approx(list(expected))
    assert found[3][0] == 1000
    assert found[3][1][1] == 1000
    for value, (low, high) in found:
        assert low <= value <= high


def test_resamples_that_are_counted_have_the_quantiles_of_those_that_are_written_out() -> None:
    """By the resampling itself: the rounds of each opening, and blocks of them."""
    times = np.random.default_rng(8).gamma(5, 1e-5, (3, 4, 2, 25))
    times[1, 2, 1, :10] = times[0, 0, 0, 0]  # equal numbers too
    quantiles = (0, 50, 90, 99, 100)
    rng, resampled = np.random.default_rng(3), []
    for _ in range(400):
        rounds, blocks = rng.integers(4, size=(3, 4, 1)), rng.integers(2, size=(3, 4, 2))
        pool = [
            times[opening, rounds[opening, place, 0], blocks[opening, place, block]]
            for opening in range(3)
            for place in range(4)
            for block in range(2)
        ]
        resampled.append(np.percentile(pool, quantiles))
    expected = np.percentile(resampled, (2.5, 97.5), axis=0).T
    found = [interval for _, interval in estimate_quantiles(times, quantiles, seed=3)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_rounds_are_resampled_within_their_opening() -> None:
    """Openings that differ by their luck alone, whose rounds do not, leave nothing to doubt."""
    denominator = np.full((2, 2, 3), 0.25)
    numerator = denominator * np.array([1.0, 4.0])[:, None, None]
    ratio, interval = estimate_ratio(numerator, denominator, seed=0)
    assert ratio == pytest.approx(2.0)
    assert interval == pytest.approx((2.0, 2.0))
