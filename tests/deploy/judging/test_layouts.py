"""On which axes classes can lie beside labels, and what is read there."""

import numpy as np
import pytest

from deploy.judging.layouts import LabelForm, arrange, find_axis, list_axes


@pytest.mark.parametrize(
    ("shape", "places", "axes"),
    [
        ((4, 10), (), (1,)),
        ((4,), (), (None,)),
        ((4, 1), (), (1,)),
        ((4, 10, 1, 1), (), (1,)),
        ((4, 1, 10), (), (2,)),
        ((4, 1, 1), (), (1,)),
        ((4, 2, 10), (), ()),
        (("batch", "t", 10), (), ()),
        ((4, 3, 8, 6), (8, 6), (1,)),
        ((4, 8, 6, 3), (8, 6), (3,)),
        ((4, 16, 5), (16,), (2,)),
        ((4, 5, 16), (16,), (1,)),
        ((4, 1, 8, 6), (8, 6), (1,)),
        ((4, 1, 8, 6), (1, 8, 6), (None,)),
        ((4, 8, 6), (1, 8, 6), (None,)),
        ((4, 3, 8, 6), (1, 8, 6), (1,)),
        ((4, 8, 6, 3), (8, 6, 1), (3,)),
        ((4, 8, 6), (8, 6), (None,)),
        ((4, 12), (12,), (None,)),
        ((4, 5, 5), (5,), (1, 2)),
        ((4, 2, 2, 2), (2, 2), (1, 3)),
        ((4, "t", 9), (16,), (2,)),
        ((4, 9, "t"), (9,), (1, 2)),
        ((4, 3, 8, 6), (6, 8), ()),
        ((4, 3, 8, 6), (8,), ()),
        ((4, 16, 5), (15,), ()),
        ((4, 0, 5), (0,), (2,)),
    ],
)
def test_axes_are_those_beside_which_the_places_are_left(
    shape: tuple[int | str, ...], places: tuple[int, ...], axes: tuple[int | None, ...]
) -> None:
    assert list_axes(shape, places) == axes


def test_scores_of_a_place_come_together_from_either_axis() -> None:
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    found = arrange(values, (4, 5), 1)
    assert found.shape == (2, 3, 20)
    np.testing.assert_array_equal(found[1, :, 7], values[1, :, 1, 2])
    last = arrange(values, (3, 4), 3)
    assert last.shape == (2, 5, 12)
    np.testing.assert_array_equal(last[1, :, 7], values[1, 1, 3])


def test_a_lone_value_has_no_axis_of_classes() -> None:
    values = np.arange(24).reshape(2, 1, 3, 4)
    np.testing.assert_array_equal(arrange(values, (3, 4), 1), values.reshape(2, 12))
    np.testing.assert_array_equal(arrange(values[:, 0], (3, 4), None), values.reshape(2, 12))


def test_the_axis_that_is_named_is_taken_where_it_can_be() -> None:
    assert find_axis((7, 4, 4), (4,), LabelForm()) == 1
    assert find_axis((7, 4, 4), (4,), LabelForm(axis=2)) == 2
    assert find_axis((7, 4, 9), (4,), LabelForm(axis=1)) == 2
    with pytest.raises(ValueError, match="do not fit"):
        find_axis((7, 4, 9), (5,), LabelForm())
