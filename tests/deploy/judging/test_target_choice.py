"""Targets find the output that they are of, or are refused in words."""

from typing import Any

import numpy as np
import pytest

from deploy.engines.base import Feeds
from deploy.inputs.data import ArrayRows, Dataset
from deploy.judging.checking import CheckPlan
from deploy.judging.label_choice import choose_class_output
from deploy.judging.labels import find_readings
from export.artifacts import BATCH, TensorSpec
from export.errors import ConfigError, DataError
from tests.samples import refuse

Array = np.ndarray[Any, Any]
PLAN = CheckPlan()


def labelled(labels: Array) -> Dataset:
    rows = np.arange(len(labels), dtype=np.float32)[:, None]
    return Dataset({"x": ArrayRows(rows, rows.dtype)}, labels, "data.npz")


def output(*sizes: int | str, name: str = "y", dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, (BATCH, *sizes), dtype)


def draw(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal((400, *shape))


class Answers:
    """A model whose outputs are off from the targets by so much, by their names."""

    def __init__(self, targets: Array, **errors: float) -> None:
        rng = np.random.default_rng(1)
        self.outputs = {
            name: targets + error * rng.standard_normal(targets.shape)
            for name, error in errors.items()
        }

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        rows = feeds["x"][:, 0].astype(int)
        return {name: values[rows] for name, values in self.outputs.items()}


def test_float_outputs_of_their_shape_are_found() -> None:
    outputs = [
        output(3, name="boxes"),
        output(3, name="counts", dtype="int64"),
        output(4, name="classes"),
        output(3, 1, name="columns", dtype="float16"),
        TensorSpec("bank", (400, 3), "float32"),
    ]
    found = find_readings(labelled(draw(3)), outputs, PLAN)
    assert [reading.spec.name for reading in found] == ["boxes", "columns"]
    assert all(reading.form.targets for reading in found)
    (named,) = find_readings(labelled(draw(3)), outputs, PLAN, named="columns")
    assert named.spec.name == "columns"
    given = labelled(draw(3))
    words = ("--classes 'classes'", "boxes:batchx3:float32")
    refuse(lambda: find_readings(given, outputs, PLAN, named="classes"), *words, kind=ConfigError)


def test_a_value_a_sample_may_come_with_an_axis_of_its_own() -> None:
    for targets in (draw(), draw(1)):
        for spec in (output(), output(1)):
            assert len(find_readings(labelled(targets), [spec], PLAN)) == 1


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (draw(), ("[N]", "y:batchx3:float32", "y.astype(int)", "leave y out")),
        (draw(3, 2), ("[N, 3, 2]", "shape of the output")),
        (np.array([[0, 1, np.nan]] * 8), ("0, 1 and NaN", "save -1")),
    ],
)
def test_what_fits_no_output_is_refused(labels: Array, words: tuple[str, ...]) -> None:
    data = labelled(labels)
    refuse(lambda: find_readings(data, [output(3)], PLAN), "data.npz", *words, kind=DataError)


def test_of_several_outputs_the_one_that_explains_most_is_taken() -> None:
    targets = draw(2)
    data, outputs = labelled(targets), [output(2, name=name) for name in ("a", "b", "c")]
    found = find_readings(data, outputs, PLAN)
    model = Answers(targets, a=3.0, b=0.2, c=0.9)
    chosen = choose_class_output(found, model, data, PLAN)
    assert (chosen.name, chosen.warnings) == ("b", ())
    assert chosen.form.targets
    (named,) = find_readings(data, outputs, PLAN, named="c")
    assert choose_class_output([named], model, data, PLAN).name == "c"


def test_outputs_that_fit_alike_are_told_of() -> None:
    targets = draw(2)
    data, outputs = labelled(targets), [output(2, name=name) for name in ("a", "b", "c")]
    found = find_readings(data, outputs, PLAN)
    chosen = choose_class_output(found, Answers(targets, a=0.5, b=0.5, c=2.0), data, PLAN)
    (warning,) = chosen.warnings
    assert warning.startswith("The targets fit the outputs a, b alike (R² of a ")
    assert warning.endswith(
        f"on 256 samples) and were held against {chosen.name}. Name the right one with --classes."
    )


@pytest.mark.parametrize(
    "targets",
    [np.full((400, 2), 0.5), np.full(400, np.nan), np.full((400, 2), [0.5, 7.0])],
    ids=["one value", "none", "one of each column"],
)
def test_targets_that_are_all_the_same_are_told_of(targets: Array) -> None:
    spec = output(*targets.shape[1:])
    data = labelled(targets)
    chosen = choose_class_output(find_readings(data, [spec], PLAN), Answers(targets), data, PLAN)
    assert chosen.name is None
    assert "all the same, or NaN: they judge nothing" in chosen.warnings[0]


def test_one_of_two_columns_that_differs_is_enough() -> None:
    targets = draw(2)
    targets[:, 0] = np.nan
    data = labelled(targets)
    found = find_readings(data, [output(2)], PLAN)
    assert choose_class_output(found, Answers(targets), data, PLAN).name == "y"


def test_sizes_that_the_signature_leaves_open_are_those_of_a_run() -> None:
    targets = draw(8, 6)
    data = labelled(targets)
    outputs = [output("h", "w", name="deep"), output("h", "w", name="flat")]
    found = find_readings(data, outputs, PLAN)
    model = Answers(targets, deep=0.1, flat=0.1)
    model.outputs["flat"] = model.outputs["flat"][:, :4]
    assert choose_class_output(found, model, data, PLAN).name == "deep"
    model.outputs["deep"] = model.outputs["deep"][:, :4]
    words = ("each sample has 8x6 labels", "deep 4x6")
    refuse(lambda: choose_class_output(found, model, data, PLAN), *words, kind=DataError)


def test_outputs_that_the_samples_that_are_run_do_not_tell_apart_are_told_of() -> None:
    targets = np.zeros((4000, 1))
    targets[1] = 5.0  # no sample of those from all over
    data = labelled(targets)
    outputs = [output(1, name="a"), output(1, name="b")]
    found = find_readings(data, outputs, PLAN)
    chosen = choose_class_output(found, Answers(targets, a=0.5, b=0.1), data, PLAN)
    assert chosen.name == "a"
    assert "may be of the outputs a, b" in chosen.warnings[0]
