"""Labels as they are saved: what becomes classes without a doubt, and what is refused."""

from collections.abc import Sequence

import numpy as np

from deploy.engines.base import Array
from deploy.inputs.dataset import Dataset, is_float
from export.errors import DataError

VOID = (255, -1, -100)
"""Labels of places that belong to no class, where classes do not go up to them."""


NOT_KNOWN = (-1, -100)
"""Classes of samples that have none, where the data has labels of other outputs besides."""


def find_values(labels: Array, values: Sequence[int]) -> Array:
    """Where labels are one of few values.

    `numpy.isin` takes some ten bytes more for each label, and labels of maps are as many as pixels.
    """
    found = np.zeros(labels.shape, bool)
    for value in values:
        found |= labels == value
    return found


def settle_labels(labels: Array) -> Array:
    """The labels as integers, one axis for those of samples; what is in doubt stays as it is.

    Booleans are 0 and 1. So are floats that are nothing else (losses of yes and no take such
    targets), and where a sample has several labels also those that stand for nothing. [N, 1] is
    [N]. bfloat16 is float32.
    """
    if is_float(labels.dtype) and labels.dtype.kind != "f":
        labels = labels.astype(np.float32)
    lone = labels.ndim == 2 and labels.shape[1] == 1
    settled = labels[:, 0] if lone else labels
    if settled.dtype.kind == "b":
        return settled.astype(np.uint8)
    if settled.dtype.kind == "f":
        taken = (0, 1) if settled.ndim == 1 else (0, 1, *VOID)
        if find_values(settled, taken).all() and (settled == 1).any():
            return settled.astype(np.int16)
        return labels
    return settled


def check_label_values(dataset: Dataset) -> None:
    """Hold the values of the labels against what classes and targets can be.

    Raises:
        DataError: a label is no number; a class of a sample is negative; a target is infinite.
    """
    views = dataset.view_labels().values()
    for view in views:
        assert view.labels is not None
        _check_values(view, view.labels, NOT_KNOWN if len(views) > 1 else ())


def _check_values(dataset: Dataset, labels: Array, missing: Sequence[int]) -> None:
    """Raises what `check_label_values` does, of one set of labels; `missing` are no classes."""
    if labels.dtype.kind == "f":
        infinite = np.argwhere(np.isinf(labels))
        if len(infinite):
            row = int(dataset.row_numbers(infinite[:1, 0])[0])
            raise DataError(
                f"{dataset.source}: the labels hold Inf in row {row}. Where a target is not known "
                "save NaN."
            )
        return
    if labels.dtype.kind not in "iu":
        shape = ", ".join(["N", *map(str, labels.shape[1:])])
        raise DataError(
            f"{dataset.source}: the labels are {labels.dtype} of shape [{shape}]; they must be one "
            "integer class for each sample, or for each place of a map or a text, or 0 and 1 for "
            "several questions, or a float for each value that a regression predicts."
        )
    negative = (labels < 0) & ~find_values(labels, missing)
    if labels.ndim == 1 and negative.any():
        first = int(np.argmax(negative))
        row = int(dataset.row_numbers([first])[0])
        raise DataError(
            f"{dataset.source}: label {labels[first]} in row {row} is negative. "
            "Classes count from 0; take unlabelled rows out."
        )
