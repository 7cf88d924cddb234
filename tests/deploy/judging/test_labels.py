"""Labels are held against the output that they fit; where none fits, that is said."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from deploy.engines.base import Feeds
from deploy.inputs.data import ArrayRows, Dataset
from deploy.judging.checking import CheckPlan
from deploy.judging.label_choice import ClassOutput, choose_class_output
from deploy.judging.labels import check_labels, find_readings
from export.artifacts import BATCH, TensorSpec
from export.errors import ConfigError
from tests.samples import refuse

Array = np.ndarray[Any, Any]

MAPS = TensorSpec("maps", (BATCH, 3, 8, 8), "float32")
EMBEDDING = TensorSpec("embedding", (BATCH, 16), "float32")
LOGITS = TensorSpec("logits", (BATCH, 3), "float32")
AUX = TensorSpec("aux", (BATCH, 3), "float32")
PLAN = CheckPlan()


def labelled(labels: Array) -> Dataset:
    """Samples whose only value is their row number."""
    rows = np.arange(len(labels), dtype=np.float32)[:, None]
    return Dataset({"x": ArrayRows(rows, rows.dtype)}, labels, "data.npz")


def outputs_of(*args: Any, **options: Any) -> tuple[TensorSpec, ...]:
    return tuple(reading.spec for reading in find_readings(*args, **options))


def draw_labels(samples: int = 600) -> Array:
    return np.random.default_rng(0).integers(0, 3, samples)


class Eager:
    """A model that knows the labels and gets some wrong, by output."""

    def __init__(self, labels: Array, **right: float) -> None:
        rng = np.random.default_rng(1)
        self.samples = 0
        self._outputs = {"embedding": rng.standard_normal((len(labels), 16))}
        for name, share in right.items():
            known = rng.random(len(labels)) < share
            answers = np.where(known, labels, (labels + rng.integers(1, 3, len(labels))) % 3)
            self._outputs[name] = np.eye(3)[answers]

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        rows = feeds["x"][:, 0].astype(np.int64)
        self.samples += len(rows)
        return {name: values[rows] for name, values in self._outputs.items()}


def choose(labels: Array, outputs: tuple[TensorSpec, ...], **right: float) -> ClassOutput:
    data = labelled(labels)
    found = find_readings(data, outputs, PLAN)
    return choose_class_output(found, Eager(labels, **right), data, PLAN)


@pytest.mark.parametrize("outputs", [(EMBEDDING, LOGITS), (LOGITS, EMBEDDING)])
@pytest.mark.parametrize("share", [0.6, 0.98, 1.0])
def test_the_output_that_the_labels_fit_is_chosen_wherever_it_stands(
    outputs: tuple[TensorSpec, ...], share: float
) -> None:
    assert choose(draw_labels(), outputs, logits=share) == ClassOutput("logits")


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3)])
def test_the_classes_of_a_last_convolution_or_token_are_those_of_the_sample(
    shape: tuple[int, ...],
) -> None:
    labels = draw_labels()
    wide = TensorSpec("logits", (BATCH, *shape), "float32")
    data, eager = labelled(labels), Eager(labels, logits=0.9)

    def run(feeds: Feeds) -> dict[str, Array]:
        outputs = eager(feeds)
        return {**outputs, "logits": outputs["logits"].reshape(-1, *shape)}

    maps = TensorSpec("embedding", (BATCH, 16), "float32")
    found = find_readings(data, (maps, wide), PLAN)
    assert [reading.spec.name for reading in found] == ["embedding", "logits"]
    assert choose_class_output(found, run, data, PLAN) == ClassOutput("logits")


def test_the_better_of_two_heads_is_chosen_where_that_is_clear() -> None:
    assert choose(draw_labels(), (AUX, LOGITS), aux=0.7, logits=0.98) == ClassOutput("logits")


def test_of_two_heads_that_cannot_be_told_apart_the_first_is_taken_with_a_warning() -> None:
    found = choose(draw_labels(), (MAPS, LOGITS, AUX), aux=0.97, logits=0.96)
    assert found.name == "logits"
    (warning,) = found.warnings
    assert "logits, aux alike" in warning
    assert "held against logits" in warning
    assert "--classes" in warning


def test_two_heads_of_the_same_answers_need_no_warning() -> None:
    assert choose(draw_labels(), (LOGITS, AUX), logits=1.0, aux=1.0) == ClassOutput("logits")


def test_where_no_output_is_above_chance_none_is_chosen_and_that_is_said() -> None:
    found = choose(draw_labels(), (EMBEDDING, LOGITS), logits=1 / 3)
    assert found.name is None
    (warning,) = found.warnings
    assert "no output better than chance" in warning
    assert "embedding" in warning
    assert "logits 3" in warning  # its rate
    assert "--classes" in warning


def test_samples_are_taken_from_all_over_and_no_more_than_needed() -> None:
    labels = np.sort(draw_labels(3000))  # as a folder of images is: class by class
    data, eager = labelled(labels), Eager(labels, logits=0.9)
    found = find_readings(data, (EMBEDDING, LOGITS), PLAN)
    assert choose_class_output(found, eager, data, PLAN) == ClassOutput("logits")
    assert eager.samples == 256


def test_one_candidate_is_taken_without_running_anything() -> None:
    data = labelled(draw_labels())
    eager = Eager(draw_labels())
    found = find_readings(data, (MAPS, LOGITS), PLAN)
    assert choose_class_output(found, eager, data, PLAN) == ClassOutput("logits")
    assert eager.samples == 0


def test_an_output_of_too_few_classes_is_no_candidate_unless_all_are() -> None:
    data = labelled(np.array([0, 1, 2, 1]))
    narrow = TensorSpec("narrow", (BATCH, 2), "float32")
    assert outputs_of(data, (narrow, LOGITS), PLAN) == (LOGITS,)
    refuse(lambda: find_readings(data, (narrow,), PLAN), "label 2", "row 2", "0..1")


@pytest.mark.parametrize("shape", [(BATCH, 3, 8), (BATCH,), (BATCH, 1), (5, 3), (3, BATCH)])
def test_only_batch_by_classes_can_hold_classes(shape: tuple[int | str, ...]) -> None:
    data = labelled(draw_labels())
    assert outputs_of(data, (TensorSpec("y", shape, "float32"),), PLAN) == ()
    (warning,) = choose_class_output((), Eager(draw_labels()), data, PLAN).warnings
    assert "no output is (batch, classes)" in warning


@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, 1)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "bool"])
def test_a_lone_score_can_hold_labels_of_two_classes(
    shape: tuple[int | str, ...], dtype: str
) -> None:
    score = TensorSpec("score", shape, dtype)
    assert outputs_of(labelled(draw_labels() % 2), (MAPS, score), PLAN) == (score,)
    assert outputs_of(labelled(draw_labels()), (MAPS, score), PLAN) == ()


def test_a_lone_integer_is_a_class_number_however_many_there_are() -> None:
    number = TensorSpec("number", (BATCH,), "int64")
    assert outputs_of(labelled(draw_labels() + 500), (number,), PLAN) == (number,)


def test_labels_of_more_classes_than_the_logits_have_are_refused_beside_a_lone_score_too() -> None:
    data = labelled(np.array([0, 1, 2, 7]))
    score = TensorSpec("score", (BATCH,), "float32")
    refuse(lambda: find_readings(data, (score, LOGITS), PLAN), "label 7", "row 3", "0..2")


@pytest.mark.parametrize("squash", [True, False])
def test_of_scores_and_flags_the_one_that_the_labels_fit_is_chosen(squash: bool) -> None:
    labels = draw_labels() % 2
    rng = np.random.default_rng(5)
    logits = (4 * labels - 2 + rng.standard_normal(len(labels))).astype(np.float32)
    scores = 1 / (1 + np.exp(-logits)) if squash else logits
    other = rng.random(len(labels)).astype(np.float32)
    specs = (
        TensorSpec("other", (BATCH,), "float32"),
        TensorSpec("flag", (BATCH,), "bool"),
        TensorSpec("score", (BATCH, 1), "float32"),
    )

    def run(feeds: Feeds) -> dict[str, Array]:
        rows = feeds["x"][:, 0].astype(np.int64)
        return {"other": other[rows], "flag": other[rows] > 0.5, "score": scores[rows, None]}

    data = labelled(labels)
    found = find_readings(data, specs, PLAN)
    assert tuple(reading.spec for reading in found) == specs
    assert choose_class_output(found, run, data, PLAN) == ClassOutput("score")


def test_a_static_batch_is_a_batch_too() -> None:
    labels = draw_labels(50)
    data, plan = labelled(labels), CheckPlan(static_batch=8)
    fixed = tuple(TensorSpec(s.name, (8, *s.shape[1:]), s.dtype) for s in (EMBEDDING, LOGITS))
    found = find_readings(data, fixed, plan)
    assert tuple(reading.spec for reading in found) == fixed
    eager = Eager(labels, logits=0.95)
    assert choose_class_output(found, eager, data, plan) == ClassOutput("logits")
    assert eager.samples == 48


def test_without_labels_nothing_is_chosen_and_nothing_warned_of() -> None:
    data = Dataset(labelled(draw_labels()).inputs, None, "data.npz")
    assert outputs_of(data, (EMBEDDING, LOGITS), PLAN) == ()
    assert choose_class_output((), Eager(draw_labels()), data, PLAN) == ClassOutput(None)


def test_the_output_that_is_named_is_taken_whatever_fits() -> None:
    data = labelled(draw_labels())
    assert outputs_of(data, (LOGITS, AUX), PLAN, named="aux") == (AUX,)


@pytest.mark.parametrize("labels", [draw_labels(), None])
def test_a_name_that_cannot_be_is_refused_with_the_outputs(labels: Array | None) -> None:
    data = Dataset(labelled(draw_labels()).inputs, labels, "data.npz")
    bank = TensorSpec("bank", (5, 3), "float32")
    outputs = (MAPS, LOGITS, bank)

    def name(text: str) -> None:
        find_readings(data, outputs, PLAN, named=text)

    listed = ("maps:batchx3x8x8:float32", "logits:batchx3:float32")
    unknown = ("--classes 'scores'", "no such output", *listed)
    refuse(lambda: name("scores"), *unknown, kind=ConfigError)
    for unfit in ("bank",) if labels is None else ("bank", "maps"):
        words = (f"--classes {unfit!r}", "(batch, classes)", *listed)
        refuse(partial(name, unfit), *words, kind=ConfigError)


def test_labels_must_be_classes_of_the_model() -> None:
    dataset = labelled(np.array([0, 9, 10, 11]))
    check_labels(dataset.select([0, 1]), 10)
    refuse(lambda: check_labels(dataset, 10), "data.npz", "label 10", "row 2", "0..9", "2 of 4")
    refuse(lambda: check_labels(dataset.select([1, 3]), 10), "label 11", "row 3")


def test_amounts_beside_one_score_a_sample_are_told_to_be_no_classes() -> None:
    """Ages, say: no score tells 60 of them apart."""
    score = TensorSpec("age", ("batch", 1), "float32")
    ages = np.random.default_rng(0).integers(0, 60, 400)
    rows = ArrayRows(ages[:, None].astype(np.float32), np.dtype(np.float32))
    data = Dataset({"x": rows}, ages, "ages.npz")
    found = find_readings(data, [score], PLAN)
    assert found == ()
    (warning,) = choose_class_output(found, Eager(ages), data, PLAN).warnings
    assert "or one score where labels are 0 and 1" in warning
    assert "Of what a regression predicts save y.astype(np.float32)." in warning


def test_of_labels_of_tokens_those_that_stand_for_nothing_are_not_wrong() -> None:
    labels = np.array([[0, 255], [-100, 2], [-1, 9]])
    check_labels(labelled(labels[:2]), 3)
    words = ("label 9", "row 2", "0..2", "1 of 6", "255, -1, -100")
    refuse(lambda: check_labels(labelled(labels), 3), *words)


def test_a_sample_of_class_255_is_judged_and_a_place_of_it_is_not() -> None:
    """Of two outputs of 300 classes that differ in that class alone, the labels fit one."""
    labels = np.full(600, 255)
    labels[::4] = 7
    outputs = tuple(TensorSpec(name, (BATCH, 300), "float32") for name in ("aux", "logits"))

    def run(feeds: Feeds) -> dict[str, Array]:
        right = labels[feeds["x"][:, 0].astype(np.int64)]
        answers = {"aux": np.where(right == 255, 254, right), "logits": right}
        return {name: np.eye(300)[classes] for name, classes in answers.items()}

    data = labelled(labels)
    found = choose_class_output(find_readings(data, outputs, PLAN), run, data, PLAN)
    assert found == ClassOutput("logits")
