"""Adaptive rounding against enumeration of every way to round, and against nearest."""

import itertools

import numpy as np
import pytest

from quantize.recover.rounding import output_error, round_adaptively


def _moments(groups: int, taps: int, samples: int, seed: int = 0) -> np.ndarray:
    """Of inputs that lie mostly in few directions, as those of real layers do."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((groups, taps, max(2, taps // 4)))
    inputs = mix @ random.standard_normal((groups, mix.shape[2], samples))
    inputs += 0.2 * random.standard_normal(inputs.shape)
    return (inputs @ inputs.transpose(0, 2, 1) / samples).astype(np.float32)


def _error(codes: np.ndarray, target: np.ndarray, moments: np.ndarray) -> np.ndarray:
    errors = codes.astype(np.float64) - target
    return np.einsum("grk,gkl,grl->gr", errors, moments.astype(np.float64), errors)


@pytest.mark.parametrize("seed", range(4))
def test_small_problems_are_solved_almost_as_well_as_by_enumeration(seed: int) -> None:
    taps = 9
    target = np.random.default_rng(seed).uniform(-5, 5, (2, 6, taps)).astype(np.float32)
    moments = _moments(2, taps, 400, seed)
    got = _error(round_adaptively(target, moments, 7), target, moments)
    ups = np.array(list(itertools.product([0, 1], repeat=taps)))
    best = np.full(got.shape, np.inf)
    for up in ups:
        best = np.minimum(best, _error(np.floor(target) + up, target, moments))
    nearest = _error(np.rint(target), target, moments)
    assert (got >= best - 1e-4).all()
    assert (got <= nearest + 1e-4).all()
    assert got.sum() < 1.4 * best.sum()
    assert got.sum() < 0.5 * nearest.sum()


@pytest.mark.parametrize(("groups", "rows", "taps"), [(1, 32, 300), (64, 1, 9), (3, 5, 129)])
@pytest.mark.parametrize("levels", [7, 127])
def test_output_error_falls_far_below_that_of_nearest(groups, rows, taps, levels) -> None:
    random = np.random.default_rng(1)
    target = random.normal(0, levels / 3, (groups, rows, taps)).astype(np.float32)
    moments = _moments(groups, taps, 4 * taps)
    codes = round_adaptively(target, moments, levels)
    clipped = np.clip(target, -levels, levels)
    nearest = np.clip(np.rint(target), -levels, levels)
    assert np.abs(codes).max() <= levels
    assert (codes == np.rint(codes)).all()
    assert (np.abs(codes - clipped) < 1).all()
    before, after = _error(nearest, target, moments), _error(codes, target, moments)
    assert (after <= before * (1 + 1e-4)).all()
    assert after.sum() < 0.6 * before.sum()


def _moves(codes: np.ndarray, target: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Error of every row over what it is, with one tap rounded the other way; of the best tap."""
    reached = _error(codes, target, moments)
    best = np.full(codes.shape[:2], np.inf)
    for tap in range(codes.shape[2]):
        other = codes.copy()
        other[..., tap] = np.floor(target[..., tap]) + np.ceil(target[..., tap]) - codes[..., tap]
        best = np.minimum(best, _error(other, target, moments) / reached)
    return best


def test_no_single_move_is_left_that_would_help() -> None:
    random = np.random.default_rng(2)
    target = random.uniform(-6, 6, (1, 3, 140)).astype(np.float32)
    moments = _moments(1, 140, 900)
    codes = round_adaptively(target, moments, 7)
    assert (_moves(codes, target, moments) > 1 - 1e-4).all()


def test_nor_is_one_left_where_no_order_of_taps_does_better_than_nearest() -> None:
    random = np.random.default_rng(6)
    whole = random.integers(-5, 6, (20, 4, 70))
    target = (whole + random.uniform(-0.15, 0.15, whole.shape)).astype(np.float32)
    moments = _moments(20, 70, 400, 6)
    found = round_adaptively(target, moments, 7)
    assert (_moves(found, target, moments) > 1 - 1e-4).all()
    assert _error(found, target, moments).sum() < 0.87 * _error(whole, target, moments).sum()


@pytest.mark.parametrize("off", [0.05, 0.15, 0.25])
def test_where_nearest_is_nearly_right_nothing_worse_takes_its_place(off: float) -> None:
    """Error feedback in one order of so many taps ends three times as far off in some rows."""
    random = np.random.default_rng(6)
    whole = random.integers(-5, 6, (20, 1, 70))
    target = (whole + random.uniform(-off, off, whole.shape)).astype(np.float32)
    moments = _moments(20, 70, 400, 6)
    found = _error(round_adaptively(target, moments, 7), target, moments)
    assert (found <= _error(whole, target, moments) * (1 + 1e-4)).all()


def test_independent_inputs_are_rounded_to_nearest() -> None:
    random = np.random.default_rng(3)
    target = random.uniform(-20, 20, (2, 4, 30)).astype(np.float32)
    diagonal = random.uniform(0.1, 9, (2, 30))
    moments = np.einsum("gk,kl->gkl", diagonal, np.eye(30)).astype(np.float32)
    np.testing.assert_array_equal(round_adaptively(target, moments, 127), np.rint(target))


def test_the_same_input_gives_the_same_codes_and_is_left_alone() -> None:
    random = np.random.default_rng(4)
    target = random.uniform(-6, 6, (2, 4, 50)).astype(np.float32)
    moments = _moments(2, 50, 300)
    kept = target.copy(), moments.copy()
    first = round_adaptively(target, moments, 7)
    np.testing.assert_array_equal(first, round_adaptively(target, moments, 7))
    np.testing.assert_array_equal(target, kept[0])
    np.testing.assert_array_equal(moments, kept[1])


def test_weights_beyond_the_last_code_are_cut_and_made_up_for() -> None:
    target = np.array([[[11.0, 2.4, -1.6, 0.3]]], np.float32)
    moments = np.full((1, 4, 4), 0.95, np.float32) + 0.05 * np.eye(4, dtype=np.float32)
    codes = round_adaptively(target, moments, 7, reach=3)
    assert codes[0, 0, 0] == 7
    nearest = np.clip(np.rint(target), -7, 7)
    assert _error(codes, target, moments) < 0.2 * _error(nearest, target, moments)


def test_output_error_is_the_quadratic_form() -> None:
    errors = np.random.default_rng(5).standard_normal((2, 3, 8)).astype(np.float32)
    moments = _moments(2, 8, 50)
    expected = _error(errors, np.zeros_like(errors), moments)
    np.testing.assert_allclose(output_error(errors, moments), expected, rtol=1e-5)
