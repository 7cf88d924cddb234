"""The doubling histogram against numpy's, on all values at once."""

import numpy as np
import pytest

from quantize.observers.histogram import Histogram


def _heavy(count: int = 30_000) -> np.ndarray:
    return np.random.default_rng(3).standard_t(2, count).astype(np.float32)


def _expected(values: np.ndarray, histogram: Histogram) -> np.ndarray:
    edges = np.arange(-histogram.bins, histogram.bins + 1) * histogram.width
    return np.histogram(values[values != 0].astype(np.float64), edges)[0]


@pytest.mark.parametrize("bins", [64, 8192])
def test_counts_are_those_of_numpy(bins: int) -> None:
    histogram, values = Histogram(bins), _heavy()
    values[::7] = 0
    for part in np.split(np.sort(np.abs(values)) * np.sign(values), 100):
        histogram.add(part)  # small values first, so that it must grow
    ordered = np.sort(np.abs(values)) * np.sign(values)
    np.testing.assert_array_equal(histogram.counts, _expected(ordered, histogram))
    assert histogram.zeros == (ordered == 0).sum()
    assert histogram.width * bins < 2 * np.abs(values).max() <= 2 * histogram.width * bins


def test_neither_order_nor_batches_matter() -> None:
    results = set()
    for count in (1, 2, 100):
        for order in (1, -1):
            histogram = Histogram()
            for part in np.split(_heavy(), count)[::order]:
                histogram.add(part)
            results.add((histogram.width, histogram.counts.tobytes()))
    assert len(results) == 1


@pytest.mark.parametrize("value", [1.0, -1.0, 2.0**-140, 3e38, -3e38, 1e300])
def test_powers_of_two_and_extreme_values_fall_inside(value: float) -> None:
    histogram = Histogram(16)
    histogram.add(np.array([value, 0.0]))
    assert (histogram.counts.sum(), histogram.zeros) == (1, 1)
    (place,) = np.flatnonzero(histogram.counts)
    low = (place - 16) * histogram.width
    assert low <= value < low + histogram.width


def test_grows_for_values_that_it_does_not_count() -> None:
    histogram = Histogram(16)
    histogram.add(np.array([1.5]))
    histogram.reach(-100.0, 3.0)
    assert histogram.width == 128 / 16
    np.testing.assert_array_equal(np.flatnonzero(histogram.counts), [16])


def test_coarser_bins_hold_the_same_counts() -> None:
    histogram = Histogram(1024)
    histogram.add(_heavy())
    coarse = histogram.coarsened(128)
    np.testing.assert_array_equal(coarse.counts, _expected(_heavy(), coarse))
    assert histogram.bins == 1024
    assert coarse.width == 8 * histogram.width


def test_a_copy_goes_on_by_itself() -> None:
    histogram = Histogram(16)
    histogram.add(np.ones(3))
    twin = histogram.copy()
    histogram.add(np.full(5, 9.0))
    assert (twin.counts.sum(), histogram.counts.sum()) == (3, 8)
    assert twin.width != histogram.width
    again = histogram.copy()
    histogram.add(np.full(5, 9.0))  # where there is room for them already
    assert (again.counts.sum(), histogram.counts.sum()) == (8, 13)


@pytest.mark.parametrize("bins", [(-40, 60), (-1, 1), (3, 50), (-50, -3), (-128, 127), (0, 0)])
def test_what_lies_outside_is_counted_to_a_bin(bins: tuple[int, int]) -> None:
    values = np.clip(_heavy(), -100, 100)
    values[::7] = 0
    histogram = Histogram(128)
    histogram.add(values)
    low, high = (each * histogram.width for each in bins)
    outside = (values < low) | (values >= high + histogram.width)
    assert histogram.share_outside(low, high) == pytest.approx(outside.mean(), abs=1e-12)


def test_of_no_values_none_lie_outside() -> None:
    assert Histogram().share_outside(1.0, 2.0) == 0.0


def test_memory_is_the_counts_alone() -> None:
    histogram = Histogram(256)
    for exponent in range(-20, 20):
        histogram.add(np.full(10, 2.0**exponent))
    assert histogram.counts.size == 512
    assert histogram.counts.sum() == 400
