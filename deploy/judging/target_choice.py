"""Of the outputs that the targets of a regression can be of, the one that they fit best."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from deploy.engines.base import Array, Feeds
from deploy.inputs.dataset import LABELS, Dataset
from deploy.judging.accuracy import Accuracy
from deploy.judging.checking import CheckPlan, iterate_batches, spread_samples
from deploy.judging.layouts import LabelForm, Reading
from deploy.judging.rows import Outputs
from deploy.judging.target_accuracy import EXPLAINED, TargetAccumulator, fit_targets
from export.artifacts import TensorSpec
from export.errors import DataError

_CHOICE_SAMPLES = 256
_CHUNK = 2**22
_NOT_TOLD = (
    "The targets may be of the outputs {}, in which the samples were too much alike to tell, and "
    "were held against {}. Name the right one with --classes."
)
_ALL_THE_SAME = (
    "The targets of the samples to judge on are all the same, or NaN: they judge nothing. Bring "
    "samples whose targets differ."
)


def list_targets(
    outputs: Sequence[TensorSpec], places: Sequence[int], leading: int | str
) -> list[Reading]:
    """The float outputs that have a value for each target of `places`, axes of one sample."""
    return [
        Reading(spec, LabelForm(targets=True), 0, lone=True)
        for spec in outputs
        if spec.shape[:1] == (leading,)
        and "float" in spec.dtype
        and fit_targets(spec.shape, places)
    ]


def check_targets(data: Dataset, outputs: Sequence[TensorSpec], found: Sequence[Reading]) -> None:
    """Hold float labels against what targets can be.

    Raises:
        DataError: no output is of their shape; or they are 0, 1 and NaN, which are classes.
    """
    labels = data.labels
    assert labels is not None
    shape = ", ".join(["N", *map(str, labels.shape[1:])])
    held = f"{data.source}: the labels are {labels.dtype} of shape [{shape}]"
    if not found and outputs:
        raise DataError(
            f"{held}, and no output has a float for each of its values: "
            f"{', '.join(map(str, outputs))}. Of classes save {LABELS}.astype(int), one for each "
            "sample, or for each place of a map or a text, or 0 and 1 for several questions. "
            "Targets, as in regression, have the shape of the output that they are of; leave "
            f"{LABELS} out, and the SQNR judges."
        )
    known = labels[~np.isnan(labels)]
    if len(known) < labels.size and np.isin(known, (0, 1)).all() and known.any():
        raise DataError(
            f"{held}, of 0, 1 and NaN. Where these are classes, leave out the samples that have "
            f"none, or save -1 where one of several is not known, and {LABELS}.astype(int)."
        )


def choose_target(
    found: Sequence[Reading],
    run: Callable[[Feeds], Outputs],
    evaluation: Dataset,
    plan: CheckPlan,
) -> tuple[Reading | None, tuple[str, ...]]:
    """The output whose values explain most of the targets, and what is to be said of the choice.

    Args:
        found: by `list_targets`, one at least.
        run: eager, or what stands for it; up to 256 samples are run where there are several.
        evaluation: samples with targets.
        plan: says whether the batch is static.
    """
    labels = evaluation.labels
    assert labels is not None
    if not _differ(labels):
        return None, (_ALL_THE_SAME,)
    if len(found) == 1:
        return found[0], ()
    scores = _score(found, run, evaluation, plan)
    names = [reading.spec.name for reading in found]
    if not scores:
        return found[0], (_NOT_TOLD.format(", ".join(names), names[0]),)
    best = max(range(len(found)), key=lambda index: scores[index].reference)
    least = scores[best].reference_ci95[0]
    alike = [n for n, score in zip(names, scores, strict=True) if score.reference_ci95[1] >= least]
    if len(alike) == 1:
        return found[best], ()
    rates = ", ".join(f"{n} {score.reference:.2%}" for n, score in zip(names, scores, strict=True))
    return found[best], (
        f"The targets fit the outputs {', '.join(alike)} alike ({EXPLAINED} of {rates} on "
        f"{scores[best].samples} samples) and were held against {names[best]}. Name the right one "
        "with --classes.",
    )


def _differ(labels: Array) -> bool:
    """Whether targets differ, in the parts in which they are judged."""
    tally = TargetAccumulator()
    rows = max(1, _CHUNK // max(1, math.prod(labels.shape[1:])))
    for start in range(0, len(labels), rows):
        part = labels[start : start + rows]
        tally.update(part, part, part)
    return tally.result() is not None


def _score(
    found: Sequence[Reading],
    run: Callable[[Feeds], Outputs],
    evaluation: Dataset,
    plan: CheckPlan,
) -> list[Accuracy]:
    """What each output explains, on samples from all over; none where their targets are alike."""
    tallies = [TargetAccumulator() for _ in found]
    spread = spread_samples(evaluation, _CHOICE_SAMPLES, plan)
    assert spread.labels is not None
    for feeds, indices in iterate_batches(spread, plan):
        outputs: dict[str, Array] = run(feeds)
        some = spread.labels[indices]
        for tally, reading in zip(tallies, found, strict=True):
            values = outputs[reading.spec.name]
            tally.update(values, values, some)
    scores = [tally.result() for tally in tallies]
    return [score for score in scores if score is not None]
