"""Every observer: what holds for all of them; and the extents against closed forms."""

import numpy as np
import pytest
import torch
from torch.ao.quantization import MovingAverageMinMaxObserver

from export.errors import QuantizeError
from quantize.calibration.summaries import summarize
from quantize.observers import OBSERVERS
from quantize.observers.extent import average_extent, full_extent
from quantize.observers.percentile import cut_tails
from quantize.observers.statistic import Summary, TensorStatistic


def observe(*batches: np.ndarray) -> TensorStatistic:
    seen = TensorStatistic("layer1.relu")
    for batch in batches:
        seen.update(summarize(batch))
    return seen


def normal(count: int = 200_000) -> np.ndarray:
    return np.random.default_rng(0).normal(0.5, 1, count).astype(np.float32)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", [name for name in OBSERVERS if name != "moving-average"])
def test_order_and_size_of_batches_do_not_matter(name: str, symmetric: bool) -> None:
    ranges = set()
    for count in (1, 2, 64):
        for order in (1, -1):
            seen = observe(*np.split(normal(8192), count)[::order])
            ranges.add(OBSERVERS[name](seen, symmetric))
    assert len(ranges) == 1


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", OBSERVERS)
def test_ranges_lie_within_the_extent(name: str, symmetric: bool) -> None:
    values = normal(5000) ** 3
    low, high = OBSERVERS[name](observe(*np.split(values, 5)), symmetric)
    assert values.min() <= low < high <= values.max()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-30, 3e38])
def test_a_constant_tensor_has_its_value_as_range(name: str, value: float, symmetric: bool) -> None:
    seen = observe(np.full((3, 2), value, np.float32))
    assert OBSERVERS[name](seen, symmetric) == pytest.approx((np.float32(value),) * 2, rel=1e-3)


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_observed_is_an_error(name: str) -> None:
    with pytest.raises(QuantizeError, match=r"'layer1.relu' was never observed"):
        OBSERVERS[name](observe(np.zeros((0, 3), np.float32)), False)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("low", [-1.0, 1.0])
@pytest.mark.parametrize("name", OBSERVERS)
def test_without_values_the_extent_is_all_that_is_known(
    name: str, low: float, symmetric: bool
) -> None:
    seen = TensorStatistic()
    seen.update(Summary(np.array([low]), np.array([2.0]), np.array([1.5])))
    assert OBSERVERS[name](seen, symmetric) == (low, 2.0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", OBSERVERS)
def test_what_was_seen_stays_as_it_is_for_the_next_observer(name: str, symmetric: bool) -> None:
    seen = observe(np.maximum(normal(5000), 0))
    before = seen.copy()
    first = OBSERVERS[name](seen, symmetric)
    np.testing.assert_array_equal(seen.histogram.counts, before.histogram.counts)
    assert (seen.histogram.zeros, seen.extent) == (before.histogram.zeros, before.extent)
    assert OBSERVERS[name](seen, symmetric) == first


def test_minmax_is_the_extent() -> None:
    seen = observe(*(part.reshape(-1, 10) for part in np.split(normal(), 10)))
    assert full_extent(seen) == (float(normal().min()), float(normal().max()))


def test_moving_average_is_that_of_torch() -> None:
    batches = [part.reshape(50, -1) for part in np.split(normal(20_000), 40)]
    theirs = MovingAverageMinMaxObserver(averaging_constant=0.01)
    for batch in batches:
        theirs(torch.from_numpy(batch))
    expected = (float(theirs.min_val), float(theirs.max_val))
    assert average_extent(observe(*batches)) == pytest.approx(expected, rel=1e-5)
    assert average_extent(observe(*batches[::-1])) != pytest.approx(expected, rel=1e-3)


def test_moving_average_in_closed_form() -> None:
    highs = [1.0, 3.0, 7.0]
    seen = observe(*(np.array([-value, value]) for value in highs))
    expected = 0.99**2 * 1 + 0.01 * 0.99 * 3 + 0.01 * 7
    assert average_extent(seen) == pytest.approx((-expected, expected))


@pytest.mark.parametrize("percentile", [90, 99, 99.9, 99.99, 99.999])
def test_percentile_meets_numpy_within_a_bin(percentile: float) -> None:
    values = normal()
    values[::1000] *= 30  # the histogram must grow while it counts
    seen = observe(*np.split(values, 100))
    low, high = cut_tails(percentile)(seen, False)
    tail, width = (100 - percentile) / 2, seen.histogram.width
    assert width < np.abs(values).max() / 4096
    # with few values beyond it a percentile lies anywhere between two of them
    below = np.percentile(values, [tail], method="lower")[0]
    above = np.percentile(values, [100 - tail], method="higher")[0]
    assert below - width <= low <= np.percentile(values, tail) + width
    assert np.percentile(values, 100 - tail) - width <= high <= above + width
    inside = np.mean((values >= low) & (values <= high))
    assert inside >= percentile / 100


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("percentile", "low", "high"), [(100, 1, 1000), (99.8, 2, 999), (99, 6, 995), (50, 251, 750)]
)
def test_percentile_cuts_as_many_values_as_it_says(
    percentile: float, low: float, high: float, sign: int
) -> None:
    """Of 1 to 1000, in bins of an eighth; an end is that of the bin of the last value kept."""
    seen = observe(sign * np.arange(1, 1001, dtype=np.float32))
    assert seen.histogram.width == 1 / 8
    found = sorted(sign * end for end in cut_tails(percentile)(seen, False))
    assert low - (sign < 0) / 8 <= found[0] <= low
    assert high <= found[1] <= high + (sign > 0) / 8


def test_percentile_drops_a_lone_outlier_and_minmax_does_not() -> None:
    values = normal()
    values[7] = 1000
    seen = observe(values)
    assert OBSERVERS["minmax"](seen, False)[1] == 1000
    assert OBSERVERS["percentile"](seen, False)[1] < 5


def test_percentile_counts_the_zeros_of_a_relu() -> None:
    values = np.maximum(normal(), 0)
    low, high = cut_tails(99)(observe(np.zeros(4, np.float32), values), False)
    assert low == 0
    assert high == pytest.approx(np.percentile(values, 99.5), abs=0.01)


@pytest.mark.parametrize("percentile", [0, 101, -1])
def test_refuses_what_is_no_percentage(percentile: float) -> None:
    with pytest.raises(QuantizeError, match="percentile"):
        cut_tails(percentile)
