"""Channels that a candidate has lost beside larger ones, counted against a loop over channels."""

import numpy as np
import pytest

from deploy.judging.channels import ChannelPowers, FlatChannels, LostChannels, warn_of_flat


def boxes_and_scores(layout: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Four boxes of hundreds and sixteen scores below 1; in the second no score is left."""
    rng = np.random.default_rng(seed)
    boxes, scores = rng.uniform(100, 600, (8, 4, 50)), rng.uniform(0, 1, (8, 16, 50))
    values = np.concatenate([boxes, scores], axis=1)
    lost = np.concatenate([boxes + 0.5, np.zeros_like(scores)], axis=1)
    if layout == "last":
        values, lost = values.transpose(0, 2, 1), lost.transpose(0, 2, 1)
    return values, lost


def found(*pairs: tuple[np.ndarray, np.ndarray]) -> LostChannels | None:
    powers = ChannelPowers()
    for ours, theirs in pairs:
        powers.update(ours, theirs)
    return powers.result()


@pytest.mark.parametrize("layout", ["second", "last"])
def test_scores_without_a_value_are_lost_on_whichever_axis_they_lie(layout: str) -> None:
    assert found(boxes_and_scores(layout)) == LostChannels(lost=16, live=20)


def test_batches_add_up() -> None:
    first, second = boxes_and_scores("second", 0), boxes_and_scores("second", 1)
    joined = tuple(np.concatenate(pair) for pair in zip(first, second, strict=True))
    assert found(first, second) == found(joined) == LostChannels(16, 20)


def test_a_tenth_of_noise_loses_nothing() -> None:
    values, _ = boxes_and_scores("second")
    noise = 0.1 * np.random.default_rng(1).standard_normal(values.shape)
    assert found((values, values * (1 + noise))) == LostChannels(0, 20)


def test_channels_that_should_be_zero_are_not_counted() -> None:
    values = np.random.default_rng(0).standard_normal((8, 6))
    values[:, 2:4] = 0
    wrong = values.copy()
    wrong[:, 2:5] = 0.1
    wrong[:, 4] = -values[:, 4]
    assert found((values, wrong)) == LostChannels(lost=1, live=4)


def test_infinity_on_both_sides_is_no_error() -> None:
    values = np.random.default_rng(0).standard_normal((8, 6))
    values[:, 5] = -np.inf
    assert found((values, values.copy())) == LostChannels(0, 5)


def test_a_lone_sample_that_happens_to_be_small_loses_nothing() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((200, 1, 5))
    noise = 10 ** (-25 / 20) * rng.standard_normal(values.shape)
    alone = [found((ours, ours + error)) for ours, error in zip(values, noise, strict=True)]
    assert (np.abs(noise) > np.abs(values)).any(axis=2).mean() > 0.1  # it does happen
    assert not any(lost is not None and lost.lost for lost in alone)


def test_samples_that_come_one_by_one_are_enough_together() -> None:
    values = np.random.default_rng(0).standard_normal((8, 1, 5))
    lost = values * [1, 1, 1, 1, -1]
    assert found(*zip(values, lost, strict=True)) == LostChannels(1, 5)


@pytest.mark.parametrize("shape", [(8,), (8, 1), (0, 4)])
def test_without_channels_nothing_is_said(shape: tuple[int, ...]) -> None:
    assert found((np.ones(shape), np.zeros(shape))) is None


def test_an_axis_that_changes_its_size_is_none_of_channels() -> None:
    assert found((np.ones((2, 3)), np.ones((2, 3))), (np.ones((2, 4)), np.ones((2, 4)))) is None


@pytest.mark.parametrize(("scale", "live"), [(1e-6, 6), (1e-8, 5)])
def test_a_channel_that_is_but_the_rounding_of_another_is_not_counted(
    scale: float, live: int
) -> None:
    values = np.random.default_rng(0).standard_normal((400, 6))
    values[:, 3] *= scale
    lost = values * (np.arange(6) != 3)
    assert found((values, lost)) == LostChannels(lost=live - 5, live=live)


@pytest.mark.parametrize(("rows", "said"), [(7, False), (8, True)])
def test_of_two_channels_one_may_be_lost_and_8_values_tell(rows: int, said: bool) -> None:
    values = np.random.default_rng(0).standard_normal((rows, 2))
    assert found((values, values * [1, 0])) == (LostChannels(1, 2) if said else None)


def test_what_is_not_finite_on_one_side_is_left_to_the_gate_of_finite_outputs() -> None:
    values = np.random.default_rng(0).standard_normal((8, 6))
    for broken in (np.nan, np.inf):
        theirs = values.copy()
        theirs[3, 2] = broken
        assert found((values, theirs)) == found((theirs, values)) == LostChannels(0, 6)


def powers_of(*pairs: tuple[np.ndarray, np.ndarray]) -> ChannelPowers:
    powers = ChannelPowers()
    for ours, theirs in pairs:
        powers.update(ours, theirs)
    return powers


@pytest.mark.parametrize("layout", ["second", "last"])
def test_channels_that_are_their_mean_alone_are_flat_on_whichever_axis(layout: str) -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((40, 16, 50))
    values[:, 3] = 300 + 0.1 * values[:, 3]
    values[:, 7] *= 1e-4
    values[:, 9] = 5
    theirs = values + 1e-3 * rng.standard_normal(values.shape)
    theirs[:, 3] = 300.2
    if layout == "last":
        values, theirs = values.transpose(0, 2, 1), theirs.transpose(0, 2, 1)
    halves = (values[:15], theirs[:15]), (values[15:], theirs[15:])
    assert powers_of(*halves).find_flat() == FlatChannels((3, 7), 16)
    assert powers_of((values, values)).find_flat() is None


@pytest.mark.parametrize("shape", [(40, 6), (40, 6, 5, 5), (40, 7, 6), (40,), (40, 1)])
def test_variation_is_what_numpy_says_of_the_variance(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    values = 200 + rng.standard_normal(shape)
    theirs = values + 0.1 * rng.standard_normal(shape)
    error = np.square(theirs - values).sum()
    axes = {1, len(shape) - 1} if len(shape) > 1 else set()
    kept = [tuple(a for a in range(len(shape)) if a != axis) for axis in axes if shape[axis] > 1]
    varies = [np.square(values - values.mean(axis=axis, keepdims=True)).sum() for axis in kept]
    varies.append(np.square(values - values.mean()).sum())
    varies.append(np.square(values - values.mean(axis=0)).sum() if len(shape) > 1 else np.inf)
    found = powers_of((values[:11], theirs[:11]), (values[11:], theirs[11:])).measure_variation()
    assert found == pytest.approx(min(varies) / error, rel=1e-6)


def test_values_that_do_not_vary_have_no_variation() -> None:
    values = np.full((40, 6), 1e4)
    assert powers_of((values, values + 1)).measure_variation() is None
    assert powers_of((values, values + 1)).find_flat() is None


def test_millions_of_one_number_do_not_vary_by_what_their_sums_are_rounded_by() -> None:
    values = np.full((16, 2, 400, 400), float(np.float32(0.1)))
    powers = powers_of((values, values + 1e-3))
    assert powers.measure_variation() is None
    assert powers.find_flat() is None


def test_the_same_answer_to_every_sample_is_no_variation_though_its_places_differ() -> None:
    rng = np.random.default_rng(4)
    usual = rng.uniform(0, 1, (17, 2))
    values = usual + 0.02 * rng.standard_normal((40, 17, 2))
    theirs = np.broadcast_to(usual, values.shape)
    powers = powers_of((values[:11], theirs[:11]), (values[11:], theirs[11:]))
    error = np.square(values - theirs).sum()
    varies = np.square(values - values.mean(axis=0)).sum()
    assert varies < error
    assert powers.measure_variation() == pytest.approx(varies / error)
    few = powers_of((values[:7], theirs[:7])).measure_variation()  # which say nothing of a place
    assert few is not None
    assert few > 100


def test_places_of_other_sizes_in_every_batch_have_no_mean_of_their_own() -> None:
    values = np.random.default_rng(5).standard_normal((20, 4, 6))
    pairs = [(part, part + 0.1) for part in (values[:10], values[10:, :, :5])]
    joined = np.concatenate([part.ravel() for part, _ in pairs])
    assert powers_of(*pairs).measure_variation() == pytest.approx(joined.var() / 0.01)


def test_masked_values_are_not_what_the_others_differ_by() -> None:
    rng = np.random.default_rng(6)
    values = 300 + 0.01 * rng.standard_normal((40, 6, 5))
    values[rng.random(values.shape) < 0.3] = -np.inf
    theirs = np.where(np.isfinite(values), 300, values)
    held = np.ma.masked_invalid(values)
    varies = np.square(held - held.mean(axis=0)).sum() / np.square(held - 300).sum()
    powers = powers_of((values[:11], theirs[:11]), (values[11:], theirs[11:]))
    assert powers.measure_variation() == pytest.approx(varies, rel=1e-6)
    flat = powers.find_flat()
    assert flat is not None
    assert len(flat.numbers) == flat.count


def test_flat_channels_are_named_with_what_to_do() -> None:
    said = str(warn_of_flat("a-int8", [("y", FlatChannels((1, 2, 3, 4, 5, 6), 99)), ("z", None)]))
    assert said.startswith("a-int8 gives nothing but their mean in channels")
    assert "1, 2, 3, 4, 5 and more of the 99 of 'y'. If they matter" in said
    assert warn_of_flat("a-int8", [("z", None)]) is None


def test_what_is_one_value_a_sample_is_called_a_column() -> None:
    rng = np.random.default_rng(0)
    for shape, what in (((400, 12), "columns"), ((400, 12, 3, 3), "channels")):
        values = rng.standard_normal(shape)
        values[:, 4] *= 1e-3
        theirs = values.copy()
        theirs[:, 4] = 0
        powers = ChannelPowers()
        powers.update(values, theirs)
        lost = powers.result()
        assert lost is not None
        assert lost.columns == (what == "columns")
        said = warn_of_flat("e", [("y", powers.find_flat())])
        assert f"nothing but their mean in {what} whose values" in str(said)
