"""Drift between the splits: what is found, and what chance is not taken for."""

import numpy as np
import pytest

from quantize.audit.inputs import Splits, check_inputs
from quantize.audit.profile import InputProfile


def _find_drift(calibration: np.ndarray, evaluation: np.ndarray) -> list[str]:
    profiles = []
    for split in (calibration, evaluation):
        profile = InputProfile()
        for start in range(0, len(split), 16):
            profile.take({"x": split[start : start + 16].astype(np.float32)})
        profiles.append(profile)
    return [found.words for found in check_inputs(Splits(*profiles)) if found.kind == "drift"]


def _waves(count: int, random: np.random.Generator) -> np.ndarray:
    """Tones of any pitch, phase and loudness, 2,000 values each."""
    pitch, phase, loudness = random.random((3, count, 1))
    return (0.2 + loudness) * np.sin(np.arange(2000) * (0.05 + pitch) + 2 * np.pi * phase)


def _values(count: int, random: np.random.Generator) -> np.ndarray:
    return random.normal(size=(count, 2000))


def _tails(count: int, random: np.random.Generator) -> np.ndarray:
    return random.standard_t(3, (count, 500))


@pytest.mark.parametrize("make", [_waves, _values, _tails])
@pytest.mark.parametrize("counts", [(8, 8), (32, 64), (256, 244)])
def test_samples_of_one_kind_have_not_drifted(make, counts) -> None:
    for seed in range(3):
        random = np.random.default_rng(seed)
        assert _find_drift(*(make(count, random) for count in counts)) == []


def test_one_column_of_many_that_has_drifted_is_found() -> None:
    random = np.random.default_rng(0)
    known, moved = _values(256, random), _values(128, random)
    moved[:, 1234] += 1.0
    (words,) = _find_drift(known, moved)
    assert words.startswith("Column 1234 of input 'x' has mean ")
    assert "more column" not in words


def test_one_column_of_many_that_spreads_wider_or_less_is_found() -> None:
    random = np.random.default_rng(0)
    known, wide = _values(256, random), _values(128, random)
    wide[:, 77] *= 3
    (words,) = _find_drift(known, wide)
    assert words.startswith("Column 77 of input 'x'")
    (words,) = _find_drift(wide, known)
    assert words.startswith("Column 77 of input 'x'")


def test_a_column_that_evaluation_never_moves_is_found() -> None:
    random = np.random.default_rng(0)
    known, still = _values(256, random), _values(128, random)
    still[:, 5] = known[:, 5].mean()
    (words,) = _find_drift(known, still)
    assert words.startswith("Column 5 of input 'x'")


@pytest.mark.parametrize("shape", [(40, 1), (40, 3), (40, 3, 8, 8)])
def test_an_input_that_calibration_never_moves_is_found_where_evaluation_has_other_values(
    shape: tuple[int, ...],
) -> None:
    still = np.full(shape, 0.5)
    (words,) = _find_drift(still, np.full(shape, 9.0))
    assert words.startswith("Input 'x' is the same in every calibration sample (0.5), and 9 in ")
    (words,) = _find_drift(still, np.random.default_rng(0).random(shape))
    assert "is the same in every calibration sample (0.5)" in words
    assert _find_drift(still, still) == []


def test_infinite_values_leave_the_comparison_of_inputs_out() -> None:
    random = np.random.default_rng(0)
    images = random.normal(size=(40, 3, 8, 8))
    for value in (np.inf, -np.inf, np.nan):
        broken = images.copy()
        broken[3, 1, 2, 2] = value
        assert _find_drift(images, broken) == []  # and no warning of numpy, which is an error here
        assert _find_drift(np.full_like(images, 0.5), broken) == []


def test_one_channel_that_leaves_what_was_constant_in_calibration_is_drift() -> None:
    known, other = np.full((16, 2, 9), 3.0), np.full((16, 2, 9), 3.0)
    assert _find_drift(known, other) == []
    other[5, 1, 4] = 3.5
    (found,) = _find_drift(known, other)
    assert "is the same in every calibration sample (3), and 3 to 3.5 in evaluation" in found
    other[5, 1, 4] = 2.5
    assert len(_find_drift(known, other)) == 1


def test_an_input_that_is_constant_throughout_has_no_channel_that_is_dead() -> None:
    profile = InputProfile()
    profile.take({"x": np.full((16, 2, 9), 3.0, np.float32)})
    assert list(check_inputs(Splits(profile, profile))) == []
