"""The outputs that the labels of the data are held against: those it names, and the one that fits.

Labels `y` are of the output that they fit best; labels `y_NAME` of the output NAME.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deploy.engines.base import Feeds
from deploy.inputs.dataset import LABELS, OWN_LABELS, Dataset
from deploy.judging.checking import CheckPlan
from deploy.judging.label_choice import choose_class_output
from deploy.judging.labels import advise_targets, find_readings, join_sizes, split_axis
from deploy.judging.layouts import LabelledOutput, Reading
from deploy.judging.rows import Outputs
from export.artifacts import TensorSpec
from export.errors import ConfigError, DataError


@dataclass(frozen=True)
class Labelling:
    """The outputs that labels are held against, and what is to be said of the choice."""

    outputs: tuple[LabelledOutput, ...] = ()
    warnings: tuple[str, ...] = ()


def choose_labelled(
    data: Dataset,
    evaluation: Dataset,
    outputs: Sequence[TensorSpec],
    run: Callable[[Feeds], Outputs],
    plan: CheckPlan,
    *,
    named: Sequence[str] = (),
) -> Labelling:
    """Every output that has labels, in the order of the data; that of `y` comes first.

    Args:
        data: all of its labels are held against what they can be.
        evaluation: the samples that are judged on, of which some are run where needed.
        outputs: of the model.
        run: eager, or what stands for it.
        plan: says whether the batch is static.
        named: outputs, ``NAME`` or ``NAME:AXIS``, that the user names for `y` or for the axis of
            the classes of labels that have their own.

    Raises:
        ConfigError: one that is named is no output, or has no labels; see `find_readings`.
        DataError: labels are of no output, or fit theirs not.
    """
    names = [spec.name for spec in outputs]
    for each in named:
        find_readings(replace(data, labels=None, labels_of={}), outputs, plan, named=each)
    if not data.is_labelled:
        return Labelling()
    _check_names(data, names, named)
    asked = {split_axis(each, names)[0]: each for each in named}
    free = [each for name, each in asked.items() if name not in data.labels_of]
    judged = evaluation.view_labels()
    found: list[LabelledOutput] = []
    warnings: list[str] = []
    for name, view in data.view_labels().items():
        if name is None:
            left = [spec for spec in outputs if spec.name not in data.labels_of]
            readings = find_readings(view, left, plan, named=free[0] if len(free) == 1 else None)
        else:
            spec = next(spec for spec in outputs if spec.name == name)
            readings = _read_own(view, spec, plan, asked.get(name))
        chosen = choose_class_output(readings, run, judged[name], plan)
        of = "" if not data.labels_of else f"{LABELS if name is None else OWN_LABELS + name}: "
        warnings += [f"{of}{warning}" for warning in chosen.warnings]
        if chosen.name is not None:
            found.append(LabelledOutput(chosen.name, chosen.form))
    return Labelling(tuple(found), tuple(warnings))


def _check_names(data: Dataset, names: Sequence[str], named: Sequence[str]) -> None:
    """Hold the outputs that data and user name against those of the model.

    Raises:
        ConfigError: the user names one that has no labels.
        DataError: the data holds labels of an output that the model has not, or labels that name
            none though every output has its own.
    """
    unknown = [name for name in data.labels_of if name not in names]
    if unknown:
        raise DataError(
            f"{data.source}: {OWN_LABELS}{unknown[0]} holds labels of an output {unknown[0]!r}, "
            f"and the model has none of that name. Its outputs are: {', '.join(names)}. Call the "
            f"array {OWN_LABELS}OUTPUT, or {LABELS} where it is of the output that it fits; where "
            f"it is an input, name all inputs with --input."
        )
    if data.labels is not None and data.labels_of.keys() >= {*names}:
        raise DataError(
            f"{data.source}: {LABELS} holds labels of no output, since each has its own: "
            f"{', '.join(names)}. Leave {LABELS} out, or the {OWN_LABELS}OUTPUT in its place."
        )
    for each in named:
        name, _ = split_axis(each, names)
        if name not in data.labels_of and data.labels is None:
            raise ConfigError(
                f"--classes {each!r}: the data has labels of {', '.join(data.labels_of)} alone. "
                f"Save those of {name} as {OWN_LABELS}{name}."
            )


def _read_own(
    view: Dataset, spec: TensorSpec, plan: CheckPlan, named: str | None
) -> tuple[Reading, ...]:
    """How the output that the data names can be read beside its labels.

    Raises:
        DataError: not at all.
    """
    readings = find_readings(view, [spec], plan, named=named)
    if readings:
        return readings
    assert view.labels is not None
    raise DataError(
        f"{view.source}: the labels are {join_sizes(('N', *view.labels.shape[1:]))} integers up to "
        f"{view.labels.max()}, and {spec} is not (batch, classes) with as many classes, nor one "
        "value for each label, which as a score tells 0 from 1. Save labels of its form, or leave "
        f"them out, and the SQNR judges.{advise_targets(view)}"
    )
