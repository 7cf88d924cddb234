"""Labels of places: shares against scikit-learn, intervals against simulation, and the choice."""

from functools import partial
from typing import Any

import numpy as np
import pytest

from deploy.config import BuildConfig
from deploy.inputs.data import ArrayRows, Dataset
from deploy.judging.accuracy import Accuracy
from deploy.judging.checking import CheckPlan
from deploy.judging.gates import judge_parity
from deploy.judging.label_choice import ClassOutput, choose_class_output
from deploy.judging.labels import find_readings
from deploy.judging.layouts import LabelForm, LabelledOutput
from deploy.judging.parity import ParityAccumulator, ParityReport
from export.artifacts import BATCH, TensorSpec
from export.errors import ConfigError
from tests.samples import refuse

Array = np.ndarray[Any, Any]

MAPS = TensorSpec("maps", (BATCH, 3, 8, 8), "float32")
ANY_SIZE = TensorSpec("maps", (BATCH, 3, "h", "w"), "float32")
LOGITS = TensorSpec("logits", (BATCH, 3), "float32")
PLAN = CheckPlan()
ON_AXIS_1 = LabelForm(axis=1)


def draw(samples: int, *, right: float, seed: int = 0) -> tuple[Array, Array]:
    """Scores and labels of which a share is right, in some samples more and in some less."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (samples, 8, 8))
    share = np.clip(right + 0.1 * rng.standard_normal((samples, 1, 1)), 0, 1)
    known = rng.random(labels.shape) < share
    answers = np.where(known, labels, (labels + rng.integers(1, 3, labels.shape)) % 3)
    return np.moveaxis(np.eye(3)[answers], -1, 1), labels


def compare(reference: Array, candidate: Array, labels: Array) -> ParityReport:
    accumulator = ParityAccumulator(("maps",), (LabelledOutput("maps"),))
    for part in np.array_split(np.arange(len(labels)), 3):
        accumulator.update(
            {"maps": reference[part]},
            {"maps": candidate[part]},
            rows=len(part),
            labels={"maps": labels[part]},
        )
    return accumulator.result()


def measure(reference: Array, candidate: Array, labels: Array) -> Accuracy:
    return compare(reference, candidate, labels).accuracies["maps"]


def test_accuracy_is_the_share_of_right_places_and_chance_that_of_cohens_kappa() -> None:
    from sklearn.metrics import accuracy_score, cohen_kappa_score

    scores, labels = draw(40, right=0.8)
    answers = scores.argmax(axis=1).ravel()
    found = measure(scores, scores, labels)
    expected = accuracy_score(labels.ravel(), answers)
    kappa = cohen_kappa_score(answers, labels.ravel())
    assert (found.reference, found.drop, found.samples) == (pytest.approx(expected), 0.0, 40)
    assert (found.reference - found.chance) / (1 - found.chance) == pytest.approx(kappa)
    assert found.above_chance


def test_chance_of_the_candidate_is_that_of_its_own_answers() -> None:
    from sklearn.metrics import cohen_kappa_score

    scores, labels = draw(40, right=0.8)
    labels = np.minimum(labels, 1)  # two in three are of class 1
    shy = scores - np.reshape([0.0, 0.9, 0.0], (3, 1, 1)) + 0.2 * np.roll(scores, 1, axis=1)
    found = measure(scores, shy, labels)
    kappa = cohen_kappa_score(shy.argmax(axis=1).ravel(), labels.ravel())
    chance = found.candidate_chance
    assert (found.candidate - chance) / (1 - chance) == pytest.approx(kappa)
    assert chance < found.chance - 0.05


@pytest.mark.parametrize("void", [255, -1, -100])
def test_places_of_no_class_are_left_out_and_samples_of_nothing_else(void: int) -> None:
    scores, labels = draw(30, right=0.9)
    masked = labels.copy()
    masked[:, :3] = void
    masked[7] = void
    wrong = scores.copy()
    wrong[:, :, :3] = np.roll(wrong[:, :, :3], 1, axis=1)  # only where nothing is labelled
    found = measure(scores, wrong, masked)
    assert (found.samples, found.drop) == (29, 0.0)
    kept = np.delete(scores.argmax(axis=1) == labels, 7, axis=0)[:, 3:]
    assert found.reference == pytest.approx(kept.mean())


def test_the_interval_covers_the_true_share_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        found = measure(*(draw(50, right=0.7, seed=seed)[index] for index in (0, 0, 1)))
        low, high = found.reference_ci95
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 199


def draw_right(samples: int) -> tuple[Any, Any]:
    """Scores whose largest is always that of the label."""
    scores, labels = draw(samples, right=0.9)
    return np.moveaxis(np.eye(scores.shape[1], dtype=np.float32)[labels], -1, 1).copy(), labels


@pytest.mark.parametrize("right", [True, False])
def test_where_all_places_are_hit_or_none_each_sample_is_one_answer(right: bool) -> None:
    """At most three of a hundred samples may still be otherwise (1 - 0.963**100 is 0.977)."""
    scores, labels = draw_right(100)
    answers = scores if right else np.roll(scores, 1, axis=1)
    found = measure(answers, answers, labels)
    assert found.reference == found.candidate == pytest.approx(float(right))
    low, high = found.reference_ci95
    ends = (1 - high, 1 - low) if right else (low, high)
    assert ends == (pytest.approx(0, abs=1e-9), pytest.approx(0.037, abs=1e-3))
    assert found.candidate_ci95 == found.reference_ci95
    assert found.drop_ci95[0] == -found.drop_ci95[1]
    assert 0.01 < found.drop_ci95[1] < 0.04


def test_one_place_that_is_missed_tells_how_mistakes_gather() -> None:
    scores, labels = draw_right(100)
    wrong = scores.copy()
    wrong[3, :, 0, 0] = np.roll(wrong[3, :, 0, 0], 1)
    found = measure(scores, wrong, labels)
    assert 0 < found.drop < 0.001
    assert found.drop_ci95[1] < 0.001
    assert found.candidate_ci95[0] > 0.999


def test_an_engine_that_errs_at_places_is_rejected_whatever_its_sqnr() -> None:
    scores, labels = draw(320, right=0.9)
    close = scores.copy()
    edge = np.zeros(labels.shape, bool)
    edge[:, :, :1] = True  # an eighth of the places, decided by little
    close = np.where(edge[:, None], 0.5 + 0.01 * scores, scores)
    flipped = np.where(edge[:, None], 0.5 + 0.01 * np.roll(scores, 1, axis=1), scores)
    report = compare(close, flipped, labels)
    assert report.sqnr_db > 30
    verdict = judge_parity(report, "int8", kind="labelled", config=BuildConfig())
    assert not verdict.passed
    assert "accuracy drops by 1" in str(verdict.reason)
    same = compare(close, close * 1.2, labels)
    assert judge_parity(same, "int8", kind="labelled", config=BuildConfig()).passed


def outputs_of(*args: Any, **options: Any) -> tuple[TensorSpec, ...]:
    return tuple(reading.spec for reading in find_readings(*args, **options))


def labelled(labels: Array) -> Dataset:
    rows = np.arange(len(labels), dtype=np.float32)[:, None]
    return Dataset({"x": ArrayRows(rows, rows.dtype)}, labels, "data.npz")


@pytest.mark.parametrize("maps", [MAPS, ANY_SIZE])
def test_labels_of_places_are_held_against_the_output_of_such_places(maps: TensorSpec) -> None:
    _, labels = draw(20, right=1.0)
    labels[3, 0, 0] = 255
    assert outputs_of(labelled(labels), (LOGITS, maps), PLAN) == (maps,)
    refuse(
        lambda: find_readings(labelled(labels[:, :5]), (LOGITS, MAPS), PLAN),
        *("labels are Nx5x8", "maps:batchx3x8x8", "leave the labels out"),
    )
    assert outputs_of(labelled(labels[:, 0, 1]), (LOGITS, maps), PLAN) == (LOGITS,)
    labels[5, 2, 2] = 9
    refuse(
        lambda: find_readings(labelled(labels), (maps,), PLAN),
        *("label 9", "row 5", "0..2", "255, -1, -100"),
    )


def test_a_class_that_became_negative_in_a_narrow_type_is_refused() -> None:
    _, labels = draw(20, right=1.0)
    narrow = labels.astype(np.int8)
    narrow[5, 2, 2] = -56  # 200
    refuse(lambda: find_readings(labelled(narrow), (MAPS,), PLAN), "label -56", "row 5")
    narrow[5, 2, 2] = -100
    assert outputs_of(labelled(narrow), (MAPS,), PLAN) == (MAPS,)


def test_of_two_maps_the_one_that_the_labels_fit_is_chosen() -> None:
    scores, labels = draw(60, right=0.9)
    labels[:, 0] = 255
    other, _ = draw(60, right=0.9, seed=8)
    aux = TensorSpec("aux", MAPS.shape, "float32")

    def run(feeds: dict[str, Array]) -> dict[str, Array]:
        rows = feeds["x"][:, 0].astype(np.int64)
        return {"maps": scores[rows], "aux": other[rows]}

    data = labelled(labels)
    found = find_readings(data, (aux, MAPS), PLAN)
    assert tuple(reading.spec for reading in found) == (aux, MAPS)
    assert choose_class_output(found, run, data, PLAN) == ClassOutput("maps", form=ON_AXIS_1)


def test_maps_of_any_size_hold_labels_only_where_they_come_in_that_size() -> None:
    """SegFormer's logits have a quarter of the height and width of its input."""
    scores, labels = draw(20, right=0.9)
    small = TensorSpec("small", (BATCH, 3, "h/4", "w/4"), "float32")

    def run(feeds: dict[str, Array]) -> dict[str, Array]:
        rows = feeds["x"][:, 0].astype(np.int64)
        return {"maps": scores[rows], "small": scores[rows][..., ::4, ::4]}

    data = labelled(labels)
    found = find_readings(data, (small, ANY_SIZE), PLAN)
    assert choose_class_output(found, run, data, PLAN) == ClassOutput("maps", form=ON_AXIS_1)
    alone = find_readings(data, (small,), PLAN)
    for plan in (PLAN, CheckPlan(static_batch=32)):
        refuse(
            partial(choose_class_output, alone, run, data, plan),
            *("8x8 labels", "small 3x2x2", "leave the labels out"),
        )


def test_a_map_can_be_named_where_the_data_has_no_labels() -> None:
    data = Dataset(labelled(np.zeros(4, int)).inputs, None, "data.npz")
    assert outputs_of(data, (LOGITS, MAPS), PLAN, named="maps") == ()
    with pytest.raises(ConfigError, match="no such output"):
        find_readings(data, (LOGITS, MAPS), PLAN, named="nothing")


@pytest.mark.parametrize("shape", [(300, 8, 8), (300, 1, 8, 8)])
def test_a_foreground_that_is_never_answered_is_class_1_that_is_lost(
    shape: tuple[int, ...],
) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 8, 8)) < 0.02).astype(np.int64)
    logits = np.where(labels == 1, 3.0, -3.0).reshape(shape)
    found = compare(logits, np.full(shape, -3.0), labels).accuracies["maps"]
    assert found.f1 is not None
    assert found.f1.lost == (1,)
