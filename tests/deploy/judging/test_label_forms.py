"""Labels of places, tokens and questions find the output they are of, or are refused in words."""

import tracemalloc
from functools import partial
from typing import Any

import numpy as np
import pytest

from deploy.engines.base import Feeds
from deploy.inputs.data import ArrayRows, Dataset
from deploy.judging.checking import CheckPlan
from deploy.judging.label_choice import ClassOutput, choose_class_output
from deploy.judging.labels import find_readings
from deploy.judging.layouts import LabelForm
from export.artifacts import BATCH, TensorSpec
from export.errors import ConfigError
from tests.samples import refuse

Array = np.ndarray[Any, Any]
PLAN = CheckPlan()


def labelled(labels: Array) -> Dataset:
    rows = np.arange(len(labels), dtype=np.float32)[:, None]
    return Dataset({"x": ArrayRows(rows, rows.dtype)}, labels, "data.npz")


def output(*sizes: int | str, name: str = "y", dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, (BATCH, *sizes), dtype)


def forms(labels: Array, *outputs: TensorSpec, named: str | None = None) -> list[Any]:
    found = find_readings(labelled(labels), outputs, PLAN, named=named)
    return [(reading.spec.name, reading.form.axis, reading.form.columns) for reading in found]


def draw(*shape: int, classes: int = 2) -> Array:
    return np.random.default_rng(0).integers(0, classes, (40, *shape))


@pytest.mark.parametrize("sizes", [(1, 8, 6), (8, 6), (8, 6, 1)])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bool", "uint8"])
def test_a_binary_map_is_found_with_and_without_its_channel(
    sizes: tuple[int, ...], unit: bool, dtype: str
) -> None:
    labels = draw(8, 6)
    labels[3, 0] = 255
    given = labels[:, None] if unit else labels
    assert forms(given, output(*sizes, dtype=dtype)) == [("y", None, False)]


def test_tokens_are_found_with_their_classes_last() -> None:
    labels = draw(16, classes=5)
    labels[:, 12:] = -100
    assert forms(labels, output(16, 5)) == [("y", 2, False)]
    assert forms(labels, output("length", 5)) == [("y", 2, False)]
    assert forms(labels, output(5, 16)) == [("y", 1, False)]
    assert forms(labels, output(5, name="pooled"), output(16, 5)) == [("y", 2, False)]


def test_class_numbers_of_places_are_found() -> None:
    assert forms(draw(8, 6, classes=9), output(8, 6, dtype="int64")) == [("y", None, False)]


def test_questions_are_found_where_the_number_of_labels_is_fixed() -> None:
    assert forms(draw(12), output(12)) == [("y", None, True)]
    assert forms(draw(12), output("length")) == [("y", None, False)]


def test_labels_of_a_column_are_labels_of_samples() -> None:
    from deploy.inputs.label_values import settle_labels

    assert settle_labels(draw(1, classes=5)).shape == (40,)


def test_more_classes_than_a_lone_score_has_are_refused_where_places_are_labelled() -> None:
    labels = draw(8, 6)
    labels[4, 1, 2] = 2
    refuse(lambda: forms(labels, output(1, 8, 6)), "label 2", "row 4", "0..1", "255, -1, -100")
    refuse(lambda: forms(draw(12) * 3, output(12)), "label 3", "0..1")


def test_masks_of_0_and_255_are_refused_since_255_stands_for_nothing() -> None:
    masks = draw(8, 6).astype(np.uint8) * 255
    for spec in (output(1, 8, 6), output(2, 8, 6)):
        refuse(lambda spec=spec: forms(masks, spec), "0 and 255", "(y == 255).astype(int)")
    assert forms(masks, output(3, 8, 6)) == [("y", 1, False)]
    masks[0, 0, 0] = 1
    assert forms(masks, output(1, 8, 6)) == [("y", None, False)]


def test_one_hot_rows_are_refused_as_questions() -> None:
    rows = np.eye(5, dtype=np.int64)[draw(classes=5)]
    refuse(lambda: forms(rows, output(5)), "single 1", "y.argmax(axis=1)")
    rows[0, :2] = 1
    assert forms(rows, output(5)) == [("y", None, True)]


@pytest.mark.parametrize("shape", [(15,), (8, 6), (16, 5, 2)])
def test_labels_that_fit_no_output_are_refused_with_the_outputs(shape: tuple[int, ...]) -> None:
    refuse(
        lambda: forms(draw(*shape), output(16, 5)),
        *("data.npz", f"Nx{'x'.join(map(str, shape))}", "y:batchx16x5:float32", "labels out"),
    )


def test_the_axis_can_be_named_where_shapes_leave_a_choice() -> None:
    labels, spec = draw(5, classes=5), output(5, 5)
    assert forms(labels, spec) == [("y", 1, False), ("y", 2, False)]
    assert forms(labels, spec, named="y") == [("y", 1, False), ("y", 2, False)]
    assert forms(labels, spec, named="y:2") == [("y", 2, False)]
    assert forms(labels, spec, named="y:-2") == [("y", 1, False)]
    assert forms(labels, spec, output(5, 5, name="z:1"), named="z:1") == [
        ("z:1", 1, False),
        ("z:1", 2, False),
    ]
    for name in ("y:0", "y:3", "y:last"):
        refuse(
            lambda name=name: forms(labels, spec, named=name),
            *(f"--classes {name!r}", "y:1 or y:2"),
            kind=ConfigError,
        )
    refuse(lambda: forms(labels, spec, named="q:1"), "no such output", kind=ConfigError)


class Eager:
    """Answers with what it was made of, by the number of the row."""

    def __init__(self, **outputs: Array) -> None:
        self.samples = 0
        self._outputs = outputs

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        rows = feeds["x"][:, 0].astype(np.int64)
        self.samples += len(rows)
        return {name: values[rows] for name, values in self._outputs.items()}


def choose(labels: Array, eager: Eager, *outputs: TensorSpec) -> ClassOutput:
    data = labelled(labels)
    return choose_class_output(find_readings(data, outputs, PLAN), eager, data, PLAN)


@pytest.mark.parametrize("axis", [1, 2])
def test_where_tokens_and_classes_are_as_many_eager_tells_which_axis_is_which(axis: int) -> None:
    labels = draw(5, classes=5)
    labels[:, 4] = -100
    scores = np.moveaxis(np.eye(5)[np.maximum(labels, 0)], 2, axis)
    found = choose(labels, Eager(y=scores), output(5, 5))
    assert found == ClassOutput("y", form=LabelForm(axis=axis))


def test_where_both_axes_fit_alike_the_first_is_taken_with_a_warning() -> None:
    rng = np.random.default_rng(2)
    scores = rng.random((40, 2, 2))
    scores = scores + np.swapaxes(scores, 1, 2)
    labels = scores.argmax(axis=1)
    found = choose(labels, Eager(y=scores + 0.3 * rng.random((40, 2, 2))), output(2, 2))
    assert (found.name, found.form) == ("y", LabelForm(axis=1))
    (warning,) = found.warnings
    assert "y:1, y:2 alike" in warning
    assert "held against y:1" in warning
    assert "--classes" in warning


def test_an_axis_of_a_size_that_is_not_known_is_told_by_running() -> None:
    labels = draw(9, classes=9)
    eager = Eager(y=np.zeros((40, 12, 9)))
    assert [axis for _, axis, _ in forms(labels, output("length", 9))] == [2]
    refuse(
        lambda: choose(labels, eager, output("length", 9)),
        *("each sample has 9 labels", "y 12x9", "labels out"),
    )


def test_labels_of_nothing_alone_choose_nothing_and_run_nothing() -> None:
    eager = Eager()
    found = choose(np.full((40, 16), -100), eager, output(16, 5))
    assert (found.name, eager.samples) == (None, 0)
    assert "stand for nothing: accuracy is not judged" in found.warnings[0]
    masks = np.full((40, 8, 6), 255)
    assert choose(masks, eager, output(1, 8, 6)).name is None


def test_of_a_score_map_and_a_map_of_classes_the_one_that_the_labels_fit_is_chosen() -> None:
    labels = draw(8, 6)
    other = np.random.default_rng(4).random((40, 1, 8, 6))
    scores = np.moveaxis(np.eye(2)[labels], 3, 1)
    outputs = (output(1, 8, 6, name="edges"), output(2, 8, 6, name="parts"))
    found = choose(labels, Eager(edges=other, parts=scores), *outputs)
    assert found == ClassOutput("parts", form=LabelForm(axis=1))


def test_one_sample_is_enough_to_choose_by() -> None:
    labels = draw(16, classes=5)[:1]
    found = choose(labels, Eager(y=np.eye(5)[labels]), output(16, 5))
    assert found == ClassOutput("y", form=LabelForm(axis=2))


def test_no_more_maps_are_run_to_choose_by_than_memory_is_for() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((48, 512, 512)) < 0.3).astype(np.uint8)
    data, heads = labelled(labels), (output(1, 512, 512, name="aux"), output(1, 512, 512))
    rows: list[int] = []

    def run(feeds: Feeds) -> dict[str, Array]:
        numbers = feeds["x"][:, 0].astype(int)
        rows.extend(numbers)
        right = labels[numbers][:, None].astype(np.float32)
        return {"y": right, "aux": np.zeros_like(right)}

    chosen = choose_class_output(find_readings(data, heads, PLAN), run, data, PLAN)
    assert (chosen.name, len(rows)) == ("y", 16)


def test_labels_of_maps_are_looked_through_in_little_memory() -> None:
    labels = (np.random.default_rng(0).random((64, 256, 256)) < 0.3).astype(np.uint8)
    data = labelled(labels)
    tracemalloc.start()
    try:
        assert find_readings(data, [output(1, 256, 256)], PLAN)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * labels.nbytes


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8])
@pytest.mark.parametrize("lone", [True, False])
def test_numbers_that_are_no_class_are_refused_however_large(dtype: type, lone: bool) -> None:
    for value in (np.iinfo(dtype).max, np.iinfo(dtype).min):
        labels: Array = draw(8, 6).astype(dtype)
        labels[3, 2, 1] = value
        if 0 <= value < 2:
            continue
        sizes = (1, 8, 6) if lone else (3, 8, 6)
        data, outputs = labelled(labels), [output(*sizes)]
        refuse(partial(find_readings, data, outputs, PLAN), str(value), "row 3")


def test_few_rows_of_questions_may_hold_a_single_yes_each() -> None:
    assert forms(np.eye(6, dtype=np.int64)[[2, 4]], output(6)) == [("y", None, True)]
