"""Which saved labels become classes, and which are refused."""

import ml_dtypes
import numpy as np
import pytest

from deploy.inputs.data import ArrayRows, Dataset
from deploy.inputs.label_values import check_label_values, settle_labels
from tests.samples import refuse


def test_booleans_and_floats_of_0_and_1_are_classes() -> None:
    for labels in (np.array([True, False]), np.array([1.0, 0.0], np.float32)):
        found = settle_labels(labels)
        assert found.dtype.kind in "iu"
        assert found.tolist() == [1, 0]
    masks = np.array([[[1.0, 0.0], [255.0, -100.0]]])
    assert settle_labels(masks).tolist() == [[[1, 0], [255, -100]]]


@pytest.mark.parametrize(
    "targets",
    [
        np.array([0.0, 2.0, 1.0]),
        np.array([0.5, 1.0]),
        np.array([-1.0, 1.0]),
        np.array([[0.0, 0.3], [1.0, 0.0]]),
        np.zeros((3, 2)),
    ],
)
def test_floats_that_may_be_targets_stay(targets: np.ndarray) -> None:
    assert settle_labels(targets) is targets
    check_label_values(labelled(targets))


def test_targets_in_bfloat16_are_those_of_float32() -> None:
    found = settle_labels(np.array([[0.5, 2.0]], ml_dtypes.bfloat16))
    assert (found.dtype, found.tolist()) == (np.float32, [[0.5, 2.0]])
    classes = settle_labels(np.array([0, 1], ml_dtypes.bfloat16))
    assert (classes.dtype.kind, classes.tolist()) == ("i", [0, 1])


def labelled(labels: np.ndarray) -> Dataset:
    rows = np.zeros((len(labels), 1), np.float32)
    return Dataset({"x": ArrayRows(rows, rows.dtype)}, labels, "data.npz")


def test_targets_may_be_missing_and_not_infinite() -> None:
    targets = np.array([[0.5, np.nan], [2.0, 1.0], [3.0, 1.0]])
    check_label_values(labelled(targets))
    targets[2, 0] = -np.inf
    refuse(lambda: check_label_values(labelled(targets)), "data.npz", "Inf in row 2", "save NaN")
    view = labelled(targets).select([2])
    refuse(lambda: check_label_values(view), "Inf in row 2")


@pytest.mark.parametrize("labels", [np.array([1j, 2j]), np.array(["1", "2"])])
def test_labels_that_are_no_numbers_are_refused(labels: np.ndarray) -> None:
    words = ("data.npz", str(labels.dtype), "shape [N]", "a regression predicts")
    refuse(lambda: check_label_values(labelled(labels)), *words)


def test_a_column_of_classes_is_one_class_a_sample() -> None:
    assert settle_labels(np.array([[3], [1]])).tolist() == [3, 1]
    assert settle_labels(np.array([[1.0], [0.0]])).tolist() == [1, 0]
    assert settle_labels(np.array([[[3]], [[1]]])).shape == (2, 1, 1)
