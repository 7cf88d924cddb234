"""Intervals against scipy and the papers; chance against closed forms and shuffled labels."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from deploy.judging.accuracy import (
    Accuracy,
    AccuracyAccumulator,
    chance_agreement,
    paired_drop_interval,
    wilson_interval,
)

Array = np.ndarray[Any, Any]


def judge(answers: Array, labels: Array, classes: int) -> Accuracy:
    """Of a reference that gives `answers`; the candidate is the same."""
    outputs = np.eye(classes)[answers]
    return judge_scores(outputs, outputs, labels)


def draw(classes: int, samples: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, classes, samples)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_chance_is_that_of_cohens_kappa(seed: int) -> None:
    from sklearn.metrics import cohen_kappa_score

    labels = draw(5, 400, seed)
    answers = np.where(np.arange(400) % 3 == 0, labels, draw(7, 400, seed + 9) // 2)
    accuracy, chance = (answers == labels).mean(), chance_agreement(answers, labels)
    kappa = cohen_kappa_score(answers, labels)
    assert (accuracy - chance) / (1 - chance) == pytest.approx(kappa)


def test_chance_is_what_shuffled_labels_are_hit_by() -> None:
    rng = np.random.default_rng(3)
    labels = rng.choice(4, 1000, p=[0.7, 0.2, 0.1, 0.0])
    answers = rng.choice(4, 1000, p=[0.5, 0.1, 0.1, 0.3])
    shuffled = [(answers == rng.permutation(labels)).mean() for _ in range(400)]
    assert chance_agreement(answers, labels) == pytest.approx(np.mean(shuffled), abs=0.002)


def test_one_class_answered_throughout_is_chance_and_not_above_it() -> None:
    labels = np.array([0] * 900 + [1] * 100)
    result = judge(np.zeros(1000, np.int64), labels, 2)
    assert result.reference == pytest.approx(0.9)
    assert result.chance == pytest.approx(0.9)
    assert not result.above_chance


def test_below_the_share_of_the_largest_class_a_model_may_know_its_labels() -> None:
    labels = np.array([0] * 900 + [1] * 100)
    answers = labels.copy()
    answers[:150] = 1  # a careful detector: 85% right, fewer than 'never' would be
    result = judge(answers, labels, 2)
    assert result.reference == pytest.approx(0.85)
    assert result.above_chance


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_answers_that_have_nothing_to_do_with_the_labels_are_at_chance(classes: int) -> None:
    above = [
        judge(draw(classes, 500, seed), draw(classes, 500, 1000 + seed), classes).above_chance
        for seed in range(100)
    ]
    assert sum(above) <= 7  # one-sided 2.5% of 100


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_answers_that_are_often_right_are_above_chance(share: float) -> None:
    labels, known = draw(10, 500, 0), np.random.default_rng(1).random(500) < share
    answers = np.where(known, labels, draw(10, 500, 2))
    assert judge(answers, labels, 10).above_chance


def test_without_labels_there_is_no_accuracy() -> None:
    assert AccuracyAccumulator().result() is None


@pytest.mark.parametrize("samples", [1, 100, 151, 300, 717])
def test_the_interval_of_all_or_none_ends_there_whatever_is_rounded(samples: int) -> None:
    assert wilson_interval(samples, samples)[1] == 1
    assert wilson_interval(0, samples)[0] == 0


@pytest.mark.parametrize(("hits", "samples"), [(0, 10), (10, 10), (3, 10), (288, 300), (999, 1000)])
def test_wilson_interval_is_that_of_scipy(hits: int, samples: int) -> None:
    from scipy import stats

    expected = stats.binomtest(hits, samples).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(hits, samples)
    assert low == pytest.approx(expected.low, abs=1e-5)
    assert high == pytest.approx(expected.high, abs=1e-5)


def test_wilson_limits_are_where_the_score_test_turns() -> None:
    from scipy import optimize

    low, high = wilson_interval(30, 40)

    def score(share: float) -> float:
        return (0.75 - share) ** 2 - 1.96**2 * share * (1 - share) / 40

    assert low == pytest.approx(optimize.brentq(score, 0.1, 0.75), abs=1e-9)
    assert high == pytest.approx(optimize.brentq(score, 0.75, 0.999), abs=1e-9)


def test_paired_interval_is_that_of_the_paper() -> None:
    low, high = paired_drop_interval(14, 2, 30)  # Bonett & Price 2012: Laplace-adjusted Wald
    mean, variance = 12 / 32, (15 / 32 + 3 / 32) - (12 / 32) ** 2
    assert (low + high) / 2 == pytest.approx(mean)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(variance / 32))


def test_paired_interval_stays_within_one() -> None:
    assert paired_drop_interval(5, 0, 5)[1] <= 1
    assert paired_drop_interval(0, 5, 5)[0] >= -1


@pytest.mark.parametrize(
    ("lost", "gained", "samples"), [(0.03, 0.02, 1000), (0.05, 0.05, 300), (0.1, 0.04, 500)]
)
def test_paired_interval_covers_the_true_drop_in_95_of_100(
    lost: float, gained: float, samples: int
) -> None:
    rng = np.random.default_rng(1)
    counts = rng.multinomial(samples, [lost, gained, 1 - lost - gained], size=4000)
    covered = 0
    for a, b, _ in counts:
        low, high = paired_drop_interval(int(a), int(b), samples)
        covered += low <= lost - gained <= high
    assert covered / 4000 == pytest.approx(0.95, abs=0.02)


def judge_scores(reference: Array, candidate: Array, labels: Array) -> Accuracy:
    accumulator = AccuracyAccumulator()
    for part in np.array_split(np.arange(len(labels)), 4):
        accumulator.update(reference[part], candidate[part], labels[part])
    result = accumulator.result()
    assert result is not None
    return result


@pytest.mark.parametrize("shape", [(800,), (800, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_lone_logit_and_its_probability_have_the_accuracy_that_scikit_learn_finds(
    shape: tuple[int, ...], dtype: type
) -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(7)
    x = rng.standard_normal((800, 3))
    labels = (x @ [1.0, -2.0, 0.5] + rng.standard_normal(800) > 0.3).astype(np.int64)
    model = LogisticRegression().fit(x, labels)
    logits = model.decision_function(x).astype(dtype).reshape(shape)
    shares = model.predict_proba(x)[:, 1].astype(dtype).reshape(shape)
    for scores, threshold in ((logits, 0.0), (shares, 0.5)):
        found = judge_scores(scores, scores, labels)
        assert found.threshold == threshold
        assert found.reference == pytest.approx(model.score(x, labels), abs=0.0026)
        assert found.above_chance


def test_a_candidate_is_held_to_the_threshold_of_the_reference() -> None:
    labels = np.arange(600) % 2
    shares = np.where(labels == 1, 0.9, 0.1)
    moved = shares + 0.2  # leaves 0 to 1, and is no logit for that
    found = judge_scores(shares, moved, labels)
    assert (found.threshold, found.drop) == (0.5, 0.0)
    assert judge_scores(shares, shares - 0.5, labels).candidate == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("low", "high", "threshold"), [(0.0, 1.0, 0.5), (0.0, 1.5, 0.0), (-0.5, 1.0, 0.0)]
)
def test_scores_that_leave_0_to_1_on_one_side_are_no_probabilities(
    low: float, high: float, threshold: float
) -> None:
    scores = np.where(np.arange(600) % 2, high, low)
    assert judge_scores(scores, scores, np.arange(600) % 2).threshold == threshold


@pytest.mark.parametrize(("tie", "other"), [(0.5, 1.0), (0.0, 3.0)])
def test_a_score_that_lies_on_the_threshold_is_not_above_it(tie: float, other: float) -> None:
    scores = np.where(np.arange(600) % 2, other, tie)
    found = judge_scores(scores, scores, np.arange(600) % 2)
    assert found.reference == 1.0


@pytest.mark.parametrize("shape", [(600,), (600, 1)])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_a_lone_integer_or_boolean_is_the_class_itself(shape: tuple[int, ...], dtype: type) -> None:
    labels = np.random.default_rng(2).integers(0, 2 if dtype is np.bool_ else 9, 600)
    wrong = labels.copy()
    wrong[:60] = 1 - np.minimum(wrong[:60], 1)
    found = judge_scores(
        labels.astype(dtype).reshape(shape), wrong.astype(dtype).reshape(shape), labels
    )
    assert found.reference == 1.0
    assert found.candidate == pytest.approx((wrong == labels).mean())
    assert found.threshold is None


def test_a_candidate_that_never_answers_a_rare_class_has_forgotten_the_labels() -> None:
    labels = np.zeros(1000, np.int64)
    labels[::100] = 1
    caught = np.where((labels == 1) & (np.arange(1000) % 500 != 0), 3.0, -3.0)
    silent = np.full(1000, -3.0)
    found = judge_scores(caught, silent, labels)
    assert found.drop == pytest.approx(0.008)  # within one point
    assert found.above_chance
    assert found.forgotten
    assert not judge_scores(caught, caught, labels).forgotten


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5])
def test_an_engine_of_the_same_skill_has_forgotten_nothing(share: float) -> None:
    rng = np.random.default_rng(4)
    forgotten = 0
    for _ in range(200):
        labels = (rng.random(1000) < share).astype(np.int64)
        logits = 3.0 * labels - 1.5 + rng.standard_normal(1000)
        forgotten += judge_scores(
            logits, logits + 0.1 * rng.standard_normal(1000), labels
        ).forgotten
    assert forgotten == 0


@pytest.mark.parametrize("shape", [(-1, 5, 1, 1), (-1, 1, 5), (-1, 1, 5, 1)])
def test_axes_of_one_value_beside_the_classes_change_nothing(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    labels, scores = draw(5, 400, 0), rng.standard_normal((400, 5))
    candidate = scores + 0.3 * rng.standard_normal((400, 5))
    expected = judge_scores(scores, candidate, labels)
    assert judge_scores(scores.reshape(shape), candidate.reshape(shape), labels) == expected
    assert 0 < expected.reference < 1


def test_lone_scores_may_have_further_axes_of_one_value() -> None:
    rng = np.random.default_rng(0)
    labels, scores = draw(2, 400, 0), rng.standard_normal(400)
    expected = judge_scores(scores, scores, labels)
    maps = scores.reshape(400, 1, 1)
    assert judge_scores(maps, maps, labels) == expected
