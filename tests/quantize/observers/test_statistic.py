"""What is kept of a tensor, by channel and in all."""

import numpy as np

from quantize.calibration.summaries import summarize
from quantize.observers.statistic import Summary, TensorStatistic


def _batches(channels: int = 5) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [
        random.normal(np.arange(channels).reshape(-1, 1, 1), 1, (rows, channels, 4, 3))
        for rows in (3, 1, 7)
    ]


def test_channels_have_their_own_extents_and_means() -> None:
    seen = TensorStatistic()
    for batch in _batches():
        seen.update(summarize(batch, 1))
    whole = np.concatenate(_batches())
    assert seen.channels is not None
    np.testing.assert_array_equal(seen.channels.low, whole.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(seen.channels.high, whole.max(axis=(0, 2, 3)))
    np.testing.assert_allclose(seen.channels.mean, whole.mean(axis=(0, 2, 3)))
    assert seen.extent == (whole.min(), whole.max())
    assert seen.row_size == 5 * 4 * 3


def test_the_last_axis_may_be_that_of_the_channels() -> None:
    seen, batch = TensorStatistic(), _batches()[0]
    seen.update(summarize(batch, -1))
    assert seen.channels is not None
    np.testing.assert_array_equal(seen.channels.high, batch.max(axis=(0, 1, 2)))


def test_channels_that_come_and_go_are_not_channels() -> None:
    seen = TensorStatistic()
    for batch in (_batches(5)[0], _batches(4)[0], _batches(4)[1]):
        seen.update(summarize(batch, 1))
    assert seen.channels is None
    assert seen.extent[1] > 3


def test_a_tensor_without_channels_has_none() -> None:
    seen = TensorStatistic()
    seen.update(summarize(np.ones((2, 3))))
    assert seen.channels is None


def test_a_copy_goes_on_by_itself() -> None:
    seen = TensorStatistic()
    seen.update(summarize(np.ones((2, 3)), 1))
    early = seen.copy()
    seen.update(summarize(np.full((2, 3), 5.0), 1))
    assert (early.extent, seen.extent) == ((1, 1), (1, 5))
    assert early.channels is not None
    assert (early.channels.mean == 1).all()
    assert early.histogram.counts.sum() == 6


def test_a_lone_number_is_seen_as_one_row_without_channels() -> None:
    seen = TensorStatistic()
    for number in (3.0, -1.0):
        seen.update(Summary(*[np.float32(number).reshape(())] * 3, size=1))
    assert (seen.extent, seen.row_size, seen.channels) == ((-1, 3), 1, None)


def test_bins_reach_as_far_as_the_values_that_were_not_sampled() -> None:
    for low, high in ((-1.0, 100.0), (-100.0, 1.0)):
        seen = TensorStatistic()
        some = np.array([0.5, 1.0], np.float32)
        seen.update(Summary(np.array([low]), np.array([high]), np.array([0.5]), False, some, 9))
        assert seen.histogram.width * seen.histogram.bins == 128
        assert seen.histogram.counts.sum() == 2
