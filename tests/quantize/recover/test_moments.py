"""Moments against numpy's own mean and covariance."""

import numpy as np
import pytest
from onnx import helper

from quantize.recover.moments import PatchMoments
from quantize.recover.patches import read_layout

LAYOUT = read_layout(helper.make_node("Conv", ["x", "w"], ["y"], group=3), (6, 2, 2, 2), 0)


def _patches(positions: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    mix = random.standard_normal((3, 8, 8))
    return (mix @ random.standard_normal((3, 8, positions)) + 3).astype(np.float32)


def _observe(positions: int) -> tuple[PatchMoments, np.ndarray, np.ndarray]:
    exact, quantized = _patches(positions), _patches(positions, 1)
    moments = PatchMoments(LAYOUT, second=True)
    for part in np.array_split(np.arange(positions), 3):
        moments.update(exact[..., part], quantized[..., part])
    return moments, exact, quantized


def test_means_are_those_of_all_batches_together() -> None:
    moments, exact, quantized = _observe(1000)
    assert moments.count == 1000
    np.testing.assert_allclose(moments.exact_mean, exact.mean(2), rtol=1e-5)
    np.testing.assert_allclose(moments.quantized_mean, quantized.mean(2), rtol=1e-5)


@pytest.mark.parametrize("centred", [True, False])
def test_second_moments_are_those_of_numpy_but_for_the_shrinkage(centred: bool) -> None:
    moments, _, quantized = _observe(4000)
    got = moments.take_second(centred=centred)
    wide = quantized.astype(np.float64)
    for group in range(3):
        expected = np.cov(wide[group], bias=True) if centred else wide[group] @ wide[group].T / 4000
        kept = 0.99  # of so many patches, one percent is taken all the same
        expected = kept * expected + (1 - kept) * np.diag(np.diag(expected))
        np.testing.assert_allclose(got[group], expected, rtol=1e-3, atol=1e-3)


def test_few_patches_are_not_trusted_about_pairs_of_taps() -> None:
    moments, _, quantized = _observe(8)
    got = moments.take_second(centred=True)
    expected = np.cov(quantized[0].astype(np.float64), bias=True)
    np.testing.assert_allclose(np.diag(got[0]), np.diag(expected), rtol=1e-3)
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(got[0][off], 0.5 * expected[off], rtol=1e-2, atol=1e-2)


def test_dead_and_constant_inputs_leave_it_positive_definite() -> None:
    for value in (0.0, 2.0):
        moments = PatchMoments(LAYOUT, second=True)
        patches = _patches(50)
        patches[0] = value
        patches[1, 3] = value
        moments.update(patches, patches)
        second = moments.take_second(centred=True)
        assert np.isfinite(second).all()
        np.linalg.cholesky(second.astype(np.float64))


def test_a_quiet_group_beside_a_loud_one_is_as_it_is_alone() -> None:
    alone, beside = (PatchMoments(LAYOUT, second=True) for _ in range(2))
    patches = _patches(500)
    patches[0, 2] = 0
    alone.update(patches, patches)
    loud = patches * np.array([1, 1e6, 1e6], np.float32)[:, None, None]
    beside.update(loud, loud)
    found, expected = (each.take_second(centred=True)[0] for each in (beside, alone))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
