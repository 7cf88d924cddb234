"""Profiles of inputs against numpy on all samples at once."""

import numpy as np

from quantize.audit.profile import InputProfile


def _profile(*batches: dict[str, np.ndarray]) -> InputProfile:
    profile = InputProfile()
    assert list(profile.watch(iter(batches))) == list(batches)
    return profile


def test_statistics_are_those_of_all_samples() -> None:
    random = np.random.default_rng(0)
    x = random.normal([[[1.0]], [[-2.0]], [[5.0]]], 2, (21, 3, 5, 4)).astype(np.float32)
    profile = _profile({"x": x[:8]}, {"x": x[8:9]}, {"x": x[9:]})
    found = profile.inputs["x"]
    np.testing.assert_allclose(found.mean, x.mean(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.deviation, x.std(axis=(0, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(found.low, x.min(axis=(0, 2, 3)))
    np.testing.assert_array_equal(found.high, x.max(axis=(0, 2, 3)))
    means = x.mean(axis=(2, 3))
    np.testing.assert_allclose(found.error_of_mean, means.std(axis=0, ddof=1) / 21**0.5, rtol=1e-4)
    squares = ((x - found.origin[:, None, None]) ** 2).mean(axis=(2, 3))
    error = squares.std(axis=0, ddof=1) / 21**0.5
    np.testing.assert_allclose(found.error_of_variance, error, rtol=1e-4)
    assert (profile.samples, profile.repeated, profile.constant) == (21, 0, 0)
    assert not found.whole


def test_a_spread_far_from_zero_is_measured_too() -> None:
    x = np.random.default_rng(0).normal(1e6, 1e-3, (64, 2))
    found = _profile({"x": x[:8]}, {"x": x[8:]}).inputs["x"]
    np.testing.assert_allclose(found.deviation, x.std(axis=0), rtol=1e-6)


def test_repeated_and_constant_samples_are_counted() -> None:
    x = np.random.default_rng(0).integers(0, 9, (10, 2, 3, 3)).astype(np.float32)
    x[3] = x[7] = x[1]
    x[5], x[6] = 0, 4
    profile = _profile({"x": x[:4]}, {"x": x[4:]})
    assert (profile.repeated, profile.constant) == (2, 2)
    assert profile.inputs["x"].whole


def test_a_sample_is_all_of_its_inputs() -> None:
    ids = np.array([[1, 2], [1, 2], [1, 2]])
    scale = np.array([[0.5], [0.5], [0.7]], np.float32)
    profile = _profile({"ids": ids, "scale": scale})
    assert (profile.samples, profile.repeated) == (3, 1)
    assert set(profile.inputs) == {"scale"}  # integers have no drift
    assert profile.constant == 0  # one number is not a constant sample


def test_inputs_of_changing_size_and_without_samples_are_passed_over() -> None:
    table = np.ones(3, np.float32)
    profile = _profile(
        {"x": np.zeros((5, 4, 2), np.float32), "table": table},
        {"x": np.zeros((5, 6, 2), np.float32), "table": table},
        {"x": np.zeros((5, 4, 2), np.float32), "table": table},
        {},
    )
    assert profile.inputs == {}
    assert profile.samples == 15


def test_what_is_not_finite_is_left_to_calibration() -> None:
    x = np.array([[np.nan, 1], [np.inf, -np.inf]], np.float32)
    assert _profile({"x": x}).samples == 2
