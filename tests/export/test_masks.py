"""Numbers that stand for minus infinity are told from values."""

import ml_dtypes
import numpy as np
import pytest

from export.masks import open_masks

FILLS = (-1e4, -1e9, -1e30, -65504.0, *(float(ml_dtypes.finfo(k).min) for k in (np.float32, "f8")))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_what_masks_are_filled_with_becomes_minus_infinity(fill: float, kind: type) -> None:
    with np.errstate(over="ignore"):
        values = np.array([0.5, fill, -3.0, fill], kind).astype(np.float64)
    opened, other = open_masks(values, values.copy())
    assert np.array_equal(opened, [0.5, -np.inf, -3.0, -np.inf])
    assert np.array_equal(other, opened)


@pytest.mark.parametrize("value", [-9999.0, -12345.6, 1e9, 1e4, -1e3, -9.99e8])
def test_other_large_numbers_are_values(value: float) -> None:
    values = np.array([0.5, value])
    assert open_masks(values)[0] is values


def test_the_fill_of_a_bfloat16_model_is_known_alone() -> None:
    values = np.array([1.0, -1e4]).astype(ml_dtypes.bfloat16).astype(np.float64)
    assert np.array_equal(open_masks(values)[0], [1.0, -np.inf])


def test_a_fill_that_was_rounded_to_bfloat16_is_the_same_one() -> None:
    values = np.array([1.0, -1e9])
    rounded = values.astype(ml_dtypes.bfloat16).astype(np.float64)
    assert rounded[1] != -1e9
    assert open_masks(values, rounded)[1][1] == -np.inf


def test_a_candidate_without_the_fill_keeps_what_it_holds() -> None:
    _, other = open_masks(np.array([1.0, -1e9]), np.array([1.0, -0.9e9]))
    assert other[1] == -0.9e9


def test_infinity_in_place_of_a_fill_is_another_answer() -> None:
    opened, other = open_masks(np.array([1.0, -1e9]), np.array([1.0, -np.inf]))
    assert opened[1] == -np.inf
    assert np.isnan(other[1])


def test_integers_and_nothing_at_all_stay() -> None:
    ids, empty, nan = np.array([-10000, 3]), np.zeros((0, 3)), np.full(2, np.nan)
    assert open_masks(nan)[0] is nan
    assert open_masks(ids, ids)[1] is ids
    assert open_masks(empty)[0] is empty
