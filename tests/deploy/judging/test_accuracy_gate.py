"""What may be lost of accuracy and F1, at the limits, and how the loss is named."""

from dataclasses import replace

import pytest

from deploy.judging.accuracy import Accuracy
from deploy.judging.accuracy_gate import explain_certain_drop, hold_accuracy
from deploy.judging.class_scores import ClassScores

EVEN = Accuracy(
    samples=1000,
    reference=0.9,
    candidate=0.9,
    drop=0.0,
    drop_ci95=(-0.01, 0.01),
    reference_ci95=(0.88, 0.92),
    candidate_ci95=(0.88, 0.92),
    chance=0.1,
    candidate_chance=0.1,
)


def scores(drop: float, low: float, lost: tuple[int, ...] = ()) -> ClassScores:
    return ClassScores(20, 0.8, 0.8 - drop, drop, (low, 2 * drop - low), lost)


@pytest.mark.parametrize(("low", "drops"), [(0.0099, False), (0.01, False), (0.0101, True)])
def test_a_drop_is_certain_where_its_whole_interval_is_beyond_the_limit(
    low: float, drops: bool
) -> None:
    found = replace(EVEN, drop=0.02, drop_ci95=(low, 0.03))
    assert (explain_certain_drop(found, 0.01) is not None) is drops


@pytest.mark.parametrize(
    ("drop", "low", "holds"),
    [(0.01, 0.005, True), (0.011, 0.0, True), (0.011, 0.001, False), (0.3, -0.01, True)],
)
def test_f1_may_drop_by_the_limit_and_by_what_may_be_chance(
    drop: float, low: float, holds: bool
) -> None:
    gate, reason = hold_accuracy(replace(EVEN, f1=scores(drop, low)), 0.01)
    assert gate.endswith("and of the F1 of 20 classes")
    assert (reason is None) is holds


@pytest.mark.parametrize(
    ("lost", "words"), [(1, "0 (counted from 0) is"), (5, "4 (c"), (6, "4 and 1 more (")]
)
def test_five_lost_classes_are_named_and_the_others_counted(lost: int, words: str) -> None:
    _, reason = hold_accuracy(replace(EVEN, f1=scores(0.0, -0.1, tuple(range(lost)))), 0.01)
    assert words in str(reason)
    assert ("more" in str(reason)) is (lost > 5)


@pytest.mark.parametrize(("low", "holds"), [(0.101, True), (0.1, False)])
def test_answers_at_chance_fail_where_they_are_worse_beyond_doubt(low: float, holds: bool) -> None:
    found = replace(EVEN, drop=0.005, drop_ci95=(0.001, 0.009), candidate_ci95=(low, 0.2))
    assert (hold_accuracy(found, 0.01)[1] is None) is holds
    assert hold_accuracy(replace(found, drop_ci95=(-0.001, 0.011)), 0.01)[1] is None
