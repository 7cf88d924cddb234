"""Which outputs the labels can be held against, and how those are read, by shapes and values."""

from collections.abc import Sequence

import numpy as np

from deploy.engines.base import Array
from deploy.inputs.dataset import Dataset
from deploy.inputs.label_values import NOT_KNOWN, VOID, find_values
from deploy.judging.checking import CheckPlan
from deploy.judging.layouts import LabelForm, Reading, list_axes
from deploy.judging.place_accuracy import MOST_CLASSES
from deploy.judging.target_choice import check_targets, list_targets
from export.artifacts import BATCH, TensorSpec
from export.errors import ConfigError, DataError

_UNLIMITED = 2**63
"""Classes of an output of class numbers, which do not say how many there are."""
_ONE_HOT_ROWS = 32
"""From which rows of a single 1 are no chance; of fewer, labels do not decide anyway."""


def find_readings(
    data: Dataset, outputs: Sequence[TensorSpec], plan: CheckPlan, *, named: str | None = None
) -> tuple[Reading, ...]:
    """The outputs that the labels of `data` can be of, in order; none without labels.

    With one label a sample these are (batch, classes) with as many classes as the labels ask for;
    or a lone value for each sample, (batch, 1) or (batch,): a score where the labels are 0 and 1,
    or a class number. Labels of places, (batch, ...), ask for the same with these places behind the
    classes or before them. (batch, size) and labels of the same shape that are 0 and 1 are
    questions, each by itself. Labels that are floats are targets, of outputs of their shape.

    Args:
        data: its labels are read, no sample is.
        outputs: of the model.
        plan: says whether the batch is static.
        named: the output that the user names; it alone is taken. ``NAME:AXIS`` says on which axis
            its classes lie.

    Raises:
        ConfigError: `named` is no output, or none with classes; the message lists the outputs.
        DataError: a label is not a class of any of them, or labels of places, or targets, fit no
            output.
    """
    leading = plan.static_batch or BATCH
    places = None if data.labels is None else data.labels.shape[1:]
    targets = data.labels is not None and data.labels.dtype.kind == "f"
    readings = [r for spec in outputs for r in _list_readings(spec, places, leading)]
    if targets:
        readings = list_targets(outputs, places or (), leading)
        check_targets(data, outputs, readings)
    if named is not None:
        readings = _take_named(named, outputs, readings)
    if data.labels is None or targets:
        return tuple(readings) if targets else ()
    if not readings:
        if places and outputs:
            raise DataError(_describe_misfit(data, outputs))
        return ()
    void = VOID if places else NOT_KNOWN
    told_apart = ~find_values(data.labels, void)
    largest = int(data.labels.max(initial=0, where=told_apart))
    negative = int(data.labels.min(initial=0, where=told_apart)) < 0
    fitting = tuple(r for r in readings if r.classes > largest)
    told = [r.classes for r in readings if not r.lone or places]
    if told and (negative or not fitting):
        scores = all(r.lone and "float" in r.spec.dtype for r in readings)
        check_labels(data, max(told), advise_targets(data) if scores else "")
    if places:
        _check_values(data, data.labels, fitting)
    return fitting


def check_labels(dataset: Dataset, classes: int, advice: str = "") -> None:
    """Hold the labels against the number of classes that the model tells apart.

    Args:
        dataset: with labels, or without.
        classes: how many there are.
        advice: what else such labels may be.

    Raises:
        DataError: a label is not in ``0 .. classes - 1``; the message names its row and value.
    """
    labels = dataset.labels
    if labels is None:
        return
    void = VOID if labels.ndim > 1 else NOT_KNOWN
    wrong = np.argwhere(((labels < 0) | (labels >= classes)) & ~find_values(labels, void))
    if len(wrong):
        row = int(dataset.row_numbers(wrong[:1, 0])[0])
        places = f" Places of no class are {', '.join(map(str, VOID))}." if labels.ndim > 1 else ""
        raise DataError(
            f"{dataset.source}: label {labels[tuple(wrong[0])]} in row {row} is not in "
            f"0..{classes - 1}: the model has {classes} classes ({len(wrong)} of {labels.size} "
            f"labels are out of range). Number the classes as in training.{places}{advice}"
        )


def advise_targets(data: Dataset) -> str:
    """What a message adds where integers may be no classes but rounded targets."""
    return f" Of what a regression predicts save {data.labels_name}.astype(np.float32)."


def is_judged(labels: Array) -> Array:
    """Where labels may be classes, or are targets of samples."""
    if labels.ndim == 1:
        return np.ones(labels.shape, bool) if labels.dtype.kind == "f" else labels >= 0
    return ~find_values(labels, VOID)


def split_axis(named: str, names: Sequence[str]) -> tuple[str, str]:
    """``NAME`` or ``NAME:AXIS`` in two parts; the axis is empty where it is left out.

    Args:
        named: by the user.
        names: of the outputs, which may hold a colon themselves.
    """
    if named in names:
        return named, ""
    name, _, axis = named.rpartition(":")
    return name, axis


def join_sizes(sizes: Sequence[int | str]) -> str:
    """``8x8``."""
    return "x".join(map(str, sizes))


def _list_readings(
    spec: TensorSpec, places: tuple[int, ...] | None, leading: int | str
) -> list[Reading]:
    """How an output can be read beside labels of `places`; None: without labels, in some way."""
    if spec.shape[:1] != (leading,):
        return []
    if places is None:
        return [Reading(spec, LabelForm(), 2, lone=True)]
    readings = []
    for axis in list_axes(spec.shape, places):
        size = 1 if axis is None else spec.shape[axis]
        classes = _count_classes(spec, size, places)
        columns = axis is None and classes == 2 and spec.shape[1:] == places and len(places) == 1
        form = LabelForm(axis if places and size != 1 else None, columns)
        readings += [Reading(spec, form, classes, size == 1)] if classes > 1 else []
    return readings


def _count_classes(spec: TensorSpec, size: int | str, places: tuple[int, ...]) -> int:
    """How many classes an axis of `size` tells apart; 0 where it cannot be one of classes."""
    if size != 1:
        return size if isinstance(size, int) else 0
    if spec.dtype == "bool" or "float" in spec.dtype:
        return 2
    return MOST_CLASSES if places else _UNLIMITED


def _take_named(
    named: str, outputs: Sequence[TensorSpec], readings: Sequence[Reading]
) -> list[Reading]:
    names = [spec.name for spec in outputs]
    name, axis = split_axis(named, names)
    listed = ", ".join(map(str, outputs))
    if name not in names:
        raise ConfigError(f"--classes {named!r}: the model has no such output. It has: {listed}.")
    found = [reading for reading in readings if reading.spec.name == name]
    rank = len(outputs[names.index(name)].shape)
    if found and axis:
        at = int(axis) if axis.removeprefix("-").isdecimal() else rank
        kept = [r for r in found if r.form.axis is None or r.form.axis == at % rank]
        if not -rank <= at < rank or not kept:
            ways = " or ".join(reading.words for reading in found)
            raise ConfigError(
                f"--classes {named!r}: beside these labels the classes of {name} cannot lie on "
                f"that axis. Name {ways}. The outputs are: {listed}."
            )
        found = kept
    if found:
        return found
    raise ConfigError(
        f"--classes {named!r}: that output is not (batch, classes), or one value for each sample, "
        "or the same at every place that has a label, which labels need. "
        f"The outputs are: {listed}."
    )


def _describe_misfit(data: Dataset, outputs: Sequence[TensorSpec]) -> str:
    assert data.labels is not None
    return (
        f"{data.source}: the labels are {join_sizes(('N', *data.labels.shape[1:]))}, and no output "
        f"has classes, or one value, for each of them: {', '.join(map(str, outputs))}. Save labels "
        "of the size of an output, return the output in theirs, or leave the labels out, and the "
        "SQNR judges."
    )


def _check_values(data: Dataset, labels: Array, fitting: Sequence[Reading]) -> None:
    """Labels of two classes that look like something else.

    Raises:
        DataError: they hold 0 and 255 and no 1; or they are rows of one 1 each.
    """
    if not fitting or any(reading.classes != 2 for reading in fitting):
        return
    no, yes, last = ((labels == value).any() for value in (0, 1, VOID[0]))
    if no and last and not yes:
        raise DataError(
            f"{data.source}: the labels hold 0 and 255 and no 1, and 255 stands for places of no "
            "class. Where it is class 1, as in masks that were saved as images, save "
            f"({data.labels_name} == 255).astype(int)."
        )
    questions = labels.ndim == 2 and fitting[0].form.columns and len(labels) >= _ONE_HOT_ROWS
    if questions and (labels >= 0).all() and (labels.sum(axis=1) == 1).all():
        raise DataError(
            f"{data.source}: every row of the labels holds a single 1, so that they are classes "
            "and no questions that are answered each by itself. Save "
            f"{data.labels_name}.argmax(axis=1)."
        )
