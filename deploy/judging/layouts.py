"""On which axis of an output its classes lie, beside the labels of a sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from deploy.engines.base import Array
from export.artifacts import TensorSpec


@dataclass(frozen=True)
class LabelForm:
    """How an output is read beside labels of places.

    Attributes:
        axis: that of the classes, where shapes leave a choice; None: the first that fits.
        columns: (rows, labels) of yes and no, of which every column is a question of its own, as in
            multi-label classification; else they are places that are all asked the same.
        targets: what a regression predicts, a float for each value of the output.
    """

    axis: int | None = None
    columns: bool = False
    targets: bool = False


@dataclass(frozen=True)
class LabelledOutput:
    """An output that labels are held against, and how it is read beside them."""

    name: str
    form: LabelForm = field(default_factory=LabelForm)


@dataclass(frozen=True)
class Reading:
    """An output, read in one way beside labels.

    Attributes:
        spec: the output.
        form: how it is read.
        classes: how many it tells apart.
        lone: whether it has one value for each label; else scores of classes.
    """

    spec: TensorSpec
    form: LabelForm
    classes: int
    lone: bool

    @property
    def words(self) -> str:
        """As ``--classes`` names it."""
        axis = self.form.axis
        return self.spec.name if axis is None else f"{self.spec.name}:{axis}"


def list_axes(shape: Sequence[int | str], places: Sequence[int]) -> tuple[int | None, ...]:
    """The axes of an output on which the classes of labels of `places` may lie; empty: none.

    None among them: the output has one value for each label. A lone axis of size 1 in front of the
    places or behind them is as good as none; so is every one where a sample has a single label.

    Args:
        shape: of the output, the samples first; names are sizes that are not known.
        places: axes of the labels of one sample; none where it has a single label.
    """
    if not places:
        wide = [axis for axis, size in enumerate(shape) if axis and size != 1]
        lone = (1,) if len(shape) > 1 else (None,)
        return tuple(wide) if len(wide) == 1 else (lone if not wide else ())
    for trimmed in _trim(tuple(places)):
        found: list[int | None] = [None] if _fits(shape[1:], trimmed) else []
        for axis in dict.fromkeys((1, len(shape) - 1)):
            if 1 <= axis < len(shape):
                rest = (*shape[1:axis], *shape[axis + 1 :])
                found += [axis] if _fits(rest, trimmed) else []
        if found:
            return tuple(found)
    return ()


def find_axis(shape: Sequence[int], places: Sequence[int], form: LabelForm) -> int | None:
    """The axis of the classes; None: one value for each label.

    Raises:
        ValueError: no axis fits beside these places.
    """
    axes = list_axes(shape, places)
    if not axes:
        raise ValueError(f"labels of {list(places)} do not fit an output of {list(shape)}")
    return form.axis if form.axis in axes else axes[0]


def arrange(values: Array, places: Sequence[int], axis: int | None) -> Array:
    """An output with its places in one row: (rows, classes, places); of one value (rows, places).

    Args:
        values: samples first.
        places: axes of the labels of one sample.
        axis: of `find_axis`.
    """
    rows, count = len(values), math.prod(places)
    if axis is None or values.shape[axis] == 1:
        return values.reshape(rows, count)
    return np.moveaxis(values, axis, 1).reshape(rows, values.shape[axis], count)


def _trim(places: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The places as they are, and without an axis of size 1 before or behind the others."""
    found = [places]
    if len(places) > 1:
        found += [places[1:]] if places[0] == 1 else []
        found += [places[:-1]] if places[-1] == 1 else []
    return tuple(found)


def _fits(sizes: Sequence[int | str], places: Sequence[int]) -> bool:
    return len(sizes) == len(places) and all(
        isinstance(size, str) or size == place for size, place in zip(sizes, places, strict=True)
    )
