"""Streaming ranges against numpy on all values at once."""

import numpy as np
import pytest

from export.errors import QuantizeError
from quantize.observers import OBSERVERS, MinMaxObserver, PercentileObserver


def _normal(count: int = 200_000) -> np.ndarray:
    return np.random.default_rng(0).normal(0.5, 1, count).astype(np.float32)


@pytest.mark.parametrize("name", OBSERVERS)
def test_order_and_size_of_batches_do_not_matter(name: str) -> None:
    values = _normal(8192)
    ranges = set()
    for count in (1, 2, 64):
        for order in (1, -1):
            observer = OBSERVERS[name]("t")
            for part in np.split(values, count)[::order]:
                observer.update(part)
            ranges.add(observer.range())
    assert len(ranges) == 1


def test_minmax_is_the_extent() -> None:
    observer = MinMaxObserver()
    for part in np.split(_normal(), 10):
        observer.update(part.reshape(-1, 10))
    assert observer.range() == (float(_normal().min()), float(_normal().max()))


@pytest.mark.parametrize("percentile", [90, 99, 99.9, 99.99])
def test_percentile_meets_numpy_within_a_bin(percentile: float) -> None:
    values = _normal()
    values[::1000] *= 30  # the histogram must grow while it counts
    observer = PercentileObserver(percentile)
    for part in np.split(values, 100):
        observer.update(part)
    low, high = observer.range()
    tail = (100 - percentile) / 2
    width = float(2 ** np.ceil(np.log2(np.abs(values).max())) / 2048)
    assert low == pytest.approx(np.percentile(values, tail), abs=1.5 * width)
    assert high == pytest.approx(np.percentile(values, 100 - tail), abs=1.5 * width)
    inside = np.mean((values >= low) & (values <= high))
    assert inside >= percentile / 100


def test_percentile_drops_a_lone_outlier_and_minmax_does_not() -> None:
    values = _normal()
    values[7] = 1000
    percentile, minmax = PercentileObserver(), MinMaxObserver()
    for observer in (percentile, minmax):
        observer.update(values)
    assert minmax.range()[1] == 1000
    assert percentile.range()[1] < 6


def test_percentile_100_holds_everything() -> None:
    observer = PercentileObserver(100)
    observer.update(_normal())
    assert observer.range() == (float(_normal().min()), float(_normal().max()))


def test_relu_outputs_start_at_zero() -> None:
    observer = PercentileObserver(99.9)
    observer.update(np.zeros(4, np.float32))
    observer.update(np.maximum(_normal(), 0))
    assert observer.range()[0] == 0
    assert observer.range()[1] == pytest.approx(np.percentile(_normal(), 99.95), abs=0.01)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-30, 3e38])
def test_a_constant_tensor_has_its_value_as_range(name: str, value: float) -> None:
    observer = OBSERVERS[name]("t")
    observer.update(np.full((3, 2), value, np.float32))
    assert observer.range() == pytest.approx((np.float32(value),) * 2, rel=1e-3)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_names_tensor_and_sample_of_what_is_not_finite(name: str, value: float, kind: str) -> None:
    observer = OBSERVERS[name]("layer1.relu")
    array = np.ones((4, 3), np.float32)
    observer.update(array, range(4))
    array[2, 1] = value
    with pytest.raises(QuantizeError, match=rf"'layer1.relu' is {kind} at calibration sample 6;"):
        observer.update(array, range(4, 8))
    with pytest.raises(QuantizeError, match="calibration samples 4 to 5"):
        observer.update(array, range(4, 6))


@pytest.mark.parametrize("name", OBSERVERS)
def test_nothing_observed_is_an_error(name: str) -> None:
    observer = OBSERVERS[name]("t")
    observer.update(np.zeros((0, 3), np.float32))
    with pytest.raises(QuantizeError, match="'t' was never observed"):
        observer.range()


def test_memory_is_the_histogram_alone() -> None:
    observer = PercentileObserver(bins=256)
    for exponent in range(-20, 20):
        observer.update(np.full(10, 2.0**exponent))
    assert observer._positive.size == observer._negative.size == 256
    assert observer._positive.sum() == 400


@pytest.mark.parametrize(("percentile", "bins"), [(0, 2048), (101, 2048), (99, 1000), (99, 1)])
def test_refuses_senseless_settings(percentile: float, bins: int) -> None:
    with pytest.raises(QuantizeError, match=r"percentile|power of two"):
        PercentileObserver(percentile, bins)
