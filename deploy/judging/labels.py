"""Which output the labels are classes of, by what eager itself makes of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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
from deploy.judging.checking import CheckPlan, iterate_batches
from deploy.judging.place_accuracy import VOID, read_places
from deploy.judging.rows import Outputs
from export.artifacts import BATCH, TensorSpec
from export.errors import ConfigError, DataError

_CHOICE_SAMPLES = 256
_NO_CLASSES = (
    "The data has labels, but no output is (batch, classes), or one score or class number for each "
    "sample, or, where places are labelled, (batch, classes, places): accuracy is not judged."
)
_UNLIMITED = 2**63
"""Classes of an output of class numbers, which do not say how many there are."""


@dataclass(frozen=True)
class ClassOutput:
    """The output that labels are held against; `name` is None where there is none."""

    name: str | None
    warnings: tuple[str, ...] = ()


def find_class_outputs(
    data: Dataset, outputs: Sequence[TensorSpec], plan: CheckPlan, *, named: str | None = None
) -> tuple[TensorSpec, ...]:
    """The outputs that the labels of `data` can be classes of, in order; none without labels.

    These are (batch, classes) with as many classes as the labels ask for; or a lone value for each
    sample, (batch, 1) or (batch,): a score where the labels are 0 and 1, or a class number. Labels
    of every place of a sample, (batch, height, width), ask for (batch, classes, height, width).

    Args:
        data: its labels are read, no sample is.
        outputs: of the model.
        plan: says whether the batch is static.
        named: the output that the user names; it alone is taken.

    Raises:
        ConfigError: `named` is no output, or none with classes; the message lists the outputs.
        DataError: a label is not a class of any of them.
    """
    leading = plan.static_batch or BATCH
    places = None if data.labels is None else data.labels.shape[1:]
    found = tuple(s for s in outputs if _fits(s, places) and _count_classes(s, leading) > 1)
    if named is not None:
        found = (_take_named(named, outputs, found),)
    if data.labels is None or not found:
        return ()
    void = VOID if places else ()
    told_apart = ~np.isin(data.labels, void)
    largest = int(data.labels.max(initial=0, where=told_apart))
    negative = int(data.labels.min(initial=0, where=told_apart)) < 0
    fitting = tuple(spec for spec in found if _count_classes(spec, leading) > largest)
    told = [_count_classes(spec, leading) for spec in found if not _is_lone(spec)]
    if told and (negative or not fitting):
        check_labels(data, max(told))
    return fitting


def choose_class_output(
    found: tuple[TensorSpec, ...],
    run: Callable[[Feeds], Outputs],
    evaluation: Dataset,
    plan: CheckPlan,
) -> ClassOutput:
    """Of the outputs `found`, the one that the labels fit best, by running the model where needed.

    Args:
        found: by `find_class_outputs`.
        run: eager, or what stands for it.
        evaluation: labelled samples; up to 256 are run where there are several outputs, and one
            where the signature does not tell how many places an output has.
        plan: says whether the batch is static.
    """
    if evaluation.labels is None:
        return ClassOutput(found[0].name if found else None)
    places = evaluation.labels.shape[1:]
    if places and any(isinstance(size, str) for spec in found for size in spec.shape[2:]):
        sizes = _read_sizes(found, run, evaluation, plan)
        fitting = tuple(spec for spec in found if sizes[spec.name] == places)
        if not fitting:
            return ClassOutput(None, (_describe_sizes(sizes, places),))
        found = fitting
    if not found:
        return ClassOutput(None, (_NO_CLASSES,))
    if len(found) == 1:
        return ClassOutput(found[0].name)
    names = [spec.name for spec in found]
    answers, labels = _answer(names, run, evaluation, plan)
    if not len(labels):
        return ClassOutput(names[0])
    return _compare(answers, labels)


def check_labels(dataset: Dataset, classes: int) -> None:
    """Hold the labels against the number of classes that the model tells apart.

    Raises:
        DataError: a label is not in ``0 .. classes - 1``; the message names its row and value.
    """
    labels = dataset.labels
    if labels is None:
        return
    wrong = np.argwhere(
        ((labels < 0) | (labels >= classes)) & ~np.isin(labels, VOID if labels.ndim > 1 else ())
    )
    if len(wrong):
        row = int(dataset.row_numbers(wrong[:1, 0])[0])
        void = f" Places of no class are {', '.join(map(str, VOID))}." if labels.ndim > 1 else ""
        raise DataError(
            f"{dataset.source}: label {labels[tuple(wrong[0])]} in row {row} is not in "
            f"0..{classes - 1}: the model has {classes} classes ({len(wrong)} of {labels.size} "
            f"labels are out of range). Number the classes as in training.{void}"
        )


def _is_lone(spec: TensorSpec) -> bool:
    return spec.shape[1:] in ((), (1,))


def _fits(spec: TensorSpec, places: tuple[int, ...] | None) -> bool:
    """Whether the output has classes of samples, (), or of these places; None: not known which."""
    sizes = spec.shape[2:]
    return places is None or (
        len(sizes) == len(places)
        and all(
            isinstance(size, str) or size == place
            for size, place in zip(sizes, places, strict=True)
        )
    )


def _count_classes(spec: TensorSpec, leading: int | str) -> int:
    """How many classes the output tells apart; 0 where it cannot be classes."""
    if spec.shape[:1] != (leading,):
        return 0
    if not _is_lone(spec):
        size = spec.shape[1]
        return size if isinstance(size, int) else 0
    return 2 if spec.dtype == "bool" or "float" in spec.dtype else _UNLIMITED


def _take_named(
    name: str, outputs: Sequence[TensorSpec], found: tuple[TensorSpec, ...]
) -> TensorSpec:
    listed = ", ".join(map(str, outputs))
    if name not in [spec.name for spec in outputs]:
        raise ConfigError(f"--classes {name!r}: the model has no such output. It has: {listed}.")
    for spec in found:
        if spec.name == name:
            return spec
    raise ConfigError(
        f"--classes {name!r}: that output is not (batch, classes), or one value for each sample, "
        "which labels need. "
        f"The outputs are: {listed}."
    )


def _read_sizes(
    found: tuple[TensorSpec, ...],
    run: Callable[[Feeds], Outputs],
    evaluation: Dataset,
    plan: CheckPlan,
) -> dict[str, tuple[int, ...]]:
    """By output how many places it has for the samples of the data."""
    outputs = run(evaluation.batch(np.arange(plan.static_batch or 1) % len(evaluation)))
    return {spec.name: outputs[spec.name].shape[2:] for spec in found}


def _describe_sizes(sizes: Mapping[str, tuple[int, ...]], places: tuple[int, ...]) -> str:
    def count(axes: tuple[int, ...]) -> str:
        return "x".join(map(str, axes))

    listed = ", ".join(f"{name} {count(axes)}" for name, axes in sizes.items())
    return (
        f"The data has {count(places)} labels for each sample, and no output has as many places "
        f"({listed}): accuracy is not judged. Save labels of the size of the output, or return the "
        "output in theirs."
    )


def _answer(
    names: list[str], run: Callable[[Feeds], Outputs], evaluation: Dataset, plan: CheckPlan
) -> tuple[dict[str, Array], Array]:
    """By output the classes that are answered, and the labels, of samples from all over."""
    count = min(len(evaluation), max(_CHOICE_SAMPLES, plan.static_batch or 0))
    spread = np.linspace(0, len(evaluation) - 1, count).round().astype(np.int64)
    answers: dict[str, list[Array]] = {name: [] for name in names}
    labels = [np.zeros(0, np.int64)]
    for feeds, some in iterate_batches(evaluation.select(spread), plan):
        outputs = run(feeds)
        flat = some
        for name in names:
            if some is None or some.ndim == 1:
                answers[name].append(read_answers(outputs[name]))
            else:
                found, flat = read_places(outputs[name], some)
                answers[name].append(found)
        if flat is not None:
            labels.append(flat)
    joined = {name: np.concatenate(parts or labels) for name, parts in answers.items()}
    classes = {name: name_classes(each, find_threshold(each)) for name, each in joined.items()}
    return classes, np.concatenate(labels)


def _compare(answers: Mapping[str, Array], labels: Array) -> ClassOutput:
    """The first output that none is clearly better than; None where all are at chance."""
    hits = {name: classes == labels for name, classes in answers.items()}
    rates = ", ".join(f"{name} {right.mean():.2%}" for name, right in hits.items())
    above = [
        name
        for name, right in hits.items()
        if wilson_interval(int(right.sum()), len(labels))[0]
        > chance_agreement(answers[name], labels)
    ]
    if not above:
        return ClassOutput(
            None,
            (
                f"The labels fit no output better than chance would ({rates} of {len(labels)} "
                "samples): accuracy is not judged. Number the classes as in training, or name the "
                "output with --classes.",
            ),
        )
    best = max(above, key=lambda name: int(hits[name].sum()))
    alike = [name for name in above if name == best or not _is_better(hits[best], hits[name])]
    first = alike[0]
    if all(np.array_equal(answers[first], answers[name]) for name in alike):
        return ClassOutput(first)
    return ClassOutput(
        first,
        (
            f"The labels fit the outputs {', '.join(alike)} alike ({rates} of {len(labels)} "
            f"samples) and were held against {first}. Name the right one with --classes.",
        ),
    )


def _is_better(ours: Array, theirs: Array) -> bool:
    """Whether hits are more than others on the same samples, beyond doubt."""
    lost, gained = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return paired_drop_interval(lost, gained, len(ours))[0] > 0
