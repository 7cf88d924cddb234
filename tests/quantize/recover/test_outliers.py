"""Outliers: found by their ratios, cut off where the output gains by it and only there."""

import numpy as np
import pytest
from onnx import helper

from quantize.recover.outliers import clip_scales, measure_outliers
from quantize.recover.patches import read_layout

LAYOUT = read_layout(helper.make_node("Conv", ["x", "w"], ["y"]), (8, 16, 3, 3), 0)


def _weight(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (8, 16, 3, 3)).astype(np.float32)


def _scales(weight: np.ndarray, levels: int = 127) -> np.ndarray:
    return np.abs(weight).reshape(8, -1).max(axis=1) / levels


def _errors(
    weight: np.ndarray, scales: np.ndarray, importance: np.ndarray, levels: int
) -> np.ndarray:
    """Weighted error power of every row, in float64."""
    rows, units = weight.reshape(8, -1).astype(np.float64), np.asarray(scales).reshape(8, 1)
    error = np.clip(np.rint(rows / units), -levels, levels) * units - rows
    return (error**2 * importance).sum(axis=1)


def test_a_merged_identity_branch_shows_in_every_number() -> None:
    plain, merged = _weight(), _weight()
    merged[3, 3, 1, 1] += 30.0
    before, after = (measure_outliers(w, _scales(w), LAYOUT) for w in (plain, merged))
    assert before.range_ratio < 2
    assert after.range_ratio > 50
    assert (before.peak_ratio, after.peak_ratio) == pytest.approx((4, 12), rel=0.3)
    for weight, found in ((plain, before), (merged, after)):
        rows = weight.reshape(8, -1)  # rounding errs by its step over the root of 12
        loss = np.square(np.abs(rows).max(1) / 127) / 12 / np.square(rows).mean(1)
        assert found.sqnr_db == pytest.approx(-10 * np.log10(loss.mean()), abs=0.5)


def test_a_channel_of_zeros_hides_no_outlier_of_the_others() -> None:
    merged = _weight()
    merged[3, 3, 1, 1] += 30.0
    merged[5] = 0
    found = measure_outliers(merged, np.maximum(_scales(merged), 1e-9), LAYOUT)
    assert found.range_ratio > 50
    assert found.sqnr_db is not None


def test_one_scale_for_all_ruins_the_other_channels() -> None:
    merged = _weight()
    merged[3, 3, 1, 1] += 30.0
    shared = np.full(8, _scales(merged).max())
    result = measure_outliers(merged, shared, LAYOUT)
    assert result.sqnr_db is not None
    assert result.sqnr_db < 5


def test_weights_without_error_or_without_values_have_no_sqnr() -> None:
    exact = np.random.default_rng(0).integers(-127, 128, (8, 16, 3, 3)).astype(np.float32)
    assert measure_outliers(exact, np.ones(8, np.float32), LAYOUT).sqnr_db is None
    zeros = np.zeros((8, 16, 3, 3), np.float32)
    assert measure_outliers(zeros, np.ones(8, np.float32), LAYOUT).sqnr_db is None


@pytest.mark.parametrize("levels", [7, 127])
def test_an_outlier_on_a_quiet_input_is_cut_off(levels: int) -> None:
    weight = _weight()
    weight[3, 3, 1, 1] = 30.0
    importance = np.ones((1, 144))
    importance[0, 3 * 9 + 4] = 1e-6
    scales = _scales(weight, levels)
    matrix = LAYOUT.to_matrix(weight)
    chosen = clip_scales(matrix, scales[None], importance, levels)[0]
    assert chosen[3] < scales[3] / 20
    before = _errors(weight, scales, importance, levels)
    after = _errors(weight, chosen, importance, levels)
    assert (after <= before * (1 + 1e-5)).all()
    assert after[3] < before[3] / 30


def test_an_outlier_that_the_output_needs_stays() -> None:
    weight = _weight()
    weight[3, 3, 1, 1] = 30.0
    scales = _scales(weight)
    chosen = clip_scales(LAYOUT.to_matrix(weight), scales[None], np.ones((1, 144)), 127)[0]
    assert chosen[3] > 0.9 * scales[3]


def test_bells_are_cut_at_four_bits_as_a_full_search_would() -> None:
    weight = _weight(5)
    importance = np.random.default_rng(1).uniform(0.5, 2, (1, 144))
    scales = _scales(weight, 7)
    chosen = clip_scales(LAYOUT.to_matrix(weight), scales[None], importance, 7)[0]
    ratios = np.linspace(0.2, 1, 400)
    every = np.array([_errors(weight, scales * ratio, importance, 7) for ratio in ratios])
    reached = _errors(weight, chosen, importance, 7)
    assert (reached < 1.1 * every.min(axis=0)).all()
    assert (chosen < 0.95 * scales).sum() >= 6


def test_without_channels_one_ratio_is_chosen_for_all() -> None:
    weight = _weight(6)
    shared = np.full((1, 8), _scales(weight, 7).max())
    chosen = clip_scales(LAYOUT.to_matrix(weight), shared, np.ones((1, 144)), 7, per_channel=False)
    assert len(np.unique(chosen)) == 1
    before = _errors(weight, shared[0], np.ones((1, 144)), 7).sum()
    assert _errors(weight, chosen[0], np.ones((1, 144)), 7).sum() < before
