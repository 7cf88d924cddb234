"""Of the outputs that labels can be of, the one that they fit, by what eager itself answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from deploy.engines.base import Array, Feeds
from deploy.inputs.dataset import Dataset
from deploy.judging.accuracy import (
    chance_agreement,
    find_threshold,
    name_classes,
    paired_drop_interval,
    read_answers,
    wilson_interval,
)
from deploy.judging.checking import CheckPlan, iterate_batches, spread_samples
from deploy.judging.labels import advise_targets, is_judged, join_sizes
from deploy.judging.layouts import LabelForm, Reading, find_axis, list_axes
from deploy.judging.place_accuracy import answer_places
from deploy.judging.rows import Outputs
from deploy.judging.target_accuracy import fit_targets
from deploy.judging.target_choice import choose_target
from export.errors import DataError

_CHOICE_SAMPLES = 256
_CHOICE_LABELS = 2**22
"""Labels of maps are as many as pixels: they and all readings of them are held at once."""
_FEWEST_MAPS = 4
_NO_CLASSES = (
    "The data has labels, but no output is (batch, classes), or one class number for each sample, "
    "or one score where labels are 0 and 1, or, where places are labelled, (batch, classes, places)"
    ": accuracy is not judged."
)
_NOTHING_LABELLED = (
    "All labels of the samples to judge on are 255, -1 or -100, which stand for nothing: accuracy "
    "is not judged."
)


@dataclass(frozen=True)
class ClassOutput:
    """The output that labels are held against, and how; `name` is None where there is none."""

    name: str | None
    warnings: tuple[str, ...] = ()
    form: LabelForm = field(default_factory=LabelForm)


def choose_class_output(
    found: Sequence[Reading],
    run: Callable[[Feeds], Outputs],
    evaluation: Dataset,
    plan: CheckPlan,
) -> ClassOutput:
    """Of the readings `found`, the one that the labels fit best, by running the model where needed.

    Args:
        found: by `find_readings`.
        run: eager, or what stands for it.
        evaluation: labelled samples; up to 256 are run where there are several readings (of maps
            as many as have 4 million labels, 4 at least), and one where the signature does not tell
            how many places an output has.
        plan: says whether the batch is static.

    Raises:
        DataError: labels of places are of another size than the outputs are.
    """
    labels = evaluation.labels
    if labels is None:
        return ClassOutput(None)
    if not found:
        return ClassOutput(None, (_NO_CLASSES + advise_targets(evaluation),))
    if not is_judged(labels).any():
        return ClassOutput(None, (_NOTHING_LABELLED,))
    if any(isinstance(size, str) for reading in found for size in reading.spec.shape[1:]):
        found = _keep_fitting(found, run, evaluation, plan)
    if found[0].form.targets:
        chosen, warnings = choose_target(found, run, evaluation, plan)
        return ClassOutput(None, warnings) if chosen is None else _take(chosen, *warnings)
    if len(found) == 1:
        return _take(found[0])
    answers, told = _answer(found, run, evaluation, plan)
    if not len(told):
        return _take(found[0])
    return _compare(found, answers, told)


def _take(reading: Reading, *warnings: str) -> ClassOutput:
    return ClassOutput(reading.spec.name, warnings, reading.form)


def _keep_fitting(
    found: Sequence[Reading],
    run: Callable[[Feeds], Outputs],
    evaluation: Dataset,
    plan: CheckPlan,
) -> list[Reading]:
    """Those that fit the sizes in which the outputs come for the samples of the data."""
    labels = evaluation.labels
    assert labels is not None
    places = labels.shape[1:]
    outputs = run(evaluation.batch(np.arange(plan.static_batch or 1) % len(evaluation)))
    shapes = {reading.spec.name: outputs[reading.spec.name].shape for reading in found}
    fitting = []
    for reading in found:
        shape = shapes[reading.spec.name]
        axes = list_axes(shape, places)
        if reading.form.targets:
            fitting += [reading] if fit_targets(shape, places) else []
        elif axes and (reading.form.axis is None or reading.form.axis in axes):
            fitting.append(reading)
    if fitting:
        return fitting
    listed = ", ".join(f"{name} {join_sizes(shape[1:])}" for name, shape in shapes.items())
    raise DataError(
        f"{evaluation.source}: each sample has {join_sizes(places)} labels, and no output comes in "
        f"that size ({listed}). Save labels of the size of the output, return the output in "
        "theirs, or leave the labels out, and the SQNR judges."
    )


def _answer(
    found: Sequence[Reading],
    run: Callable[[Feeds], Outputs],
    evaluation: Dataset,
    plan: CheckPlan,
) -> tuple[list[Array], Array]:
    """By reading the classes that are answered, and the labels, of samples from all over."""
    assert evaluation.labels is not None
    enough = max(_FEWEST_MAPS, _CHOICE_LABELS // max(1, math.prod(evaluation.labels.shape[1:])))
    some_rows = spread_samples(evaluation, min(_CHOICE_SAMPLES, enough), plan)
    answers: list[list[Array]] = [[] for _ in found]
    labels = [np.zeros(0, np.int64)]
    assert some_rows.labels is not None
    for feeds, indices in iterate_batches(some_rows, plan):
        outputs, some = run(feeds), some_rows.labels[indices]
        kept = is_judged(some)
        for parts, reading in zip(answers, found, strict=True):
            parts.append(_read(outputs[reading.spec.name], some, reading)[kept.reshape(-1)])
        labels.append(some[kept].astype(np.int64))
    joined = [np.concatenate(parts or labels) for parts in answers]
    return [name_classes(each, find_threshold(each)) for each in joined], np.concatenate(labels)


def _read(values: Array, labels: Array, reading: Reading) -> Array:
    """What is answered at every label, in one row."""
    places = labels.shape[1:]
    if not places:
        return read_answers(values)
    axis = find_axis(values.shape, places, reading.form)
    return answer_places(values, places, axis).reshape(-1)


def _compare(found: Sequence[Reading], answers: Sequence[Array], labels: Array) -> ClassOutput:
    """The first reading that none is clearly better than; none where all are at chance."""
    hits = [classes == labels for classes in answers]
    several = len({reading.spec.name for reading in found}) == len(found)
    names = [reading.spec.name if several else reading.words for reading in found]
    rates = ", ".join(f"{n} {right.mean():.2%}" for n, right in zip(names, hits, strict=True))
    above = [
        index
        for index, right in enumerate(hits)
        if wilson_interval(int(right.sum()), len(labels))[0]
        > chance_agreement(answers[index], labels)
    ]
    if not above:
        return ClassOutput(
            None,
            (
                f"The labels fit no output better than chance would ({rates} of {len(labels)} "
                "labels): accuracy is not judged. Number the classes, and prepare the samples, as "
                "in training, or name the output with --classes.",
            ),
        )
    best = max(above, key=lambda index: int(hits[index].sum()))
    alike = [index for index in above if index == best or not _is_better(hits[best], hits[index])]
    first = alike[0]
    if all(np.array_equal(answers[first], answers[index]) for index in alike):
        return _take(found[first])
    return _take(
        found[first],
        f"The labels fit the outputs {', '.join(names[index] for index in alike)} alike ({rates} "
        f"of {len(labels)} labels) and were held against {names[first]}. Name the right one with "
        "--classes.",
    )


def _is_better(ours: Array, theirs: Array) -> bool:
    """Whether hits are more than others on the same samples, beyond doubt."""
    lost, gained = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return paired_drop_interval(lost, gained, len(ours))[0] > 0
