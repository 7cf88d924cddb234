"""What misses a limit does not read like it, and limits read as they were given."""

import math
from dataclasses import replace

import numpy as np
import pytest
from latencies import latency

from deploy.config import BuildConfig
from deploy.judging.accuracy import AccuracyAccumulator
from deploy.judging.gates import Verdict, judge_parity, judge_speed
from deploy.judging.label_notes import warn_of_labels
from deploy.judging.layouts import LabelledOutput
from deploy.judging.limits import (
    as_fixed,
    as_percent,
    show_decibels,
    show_drop,
    show_share,
    tell_apart,
)
from deploy.judging.parity import ParityAccumulator, ParityReport, SizeParity
from deploy.parity_words import describe_outputs


@pytest.mark.parametrize(
    ("value", "limit", "form", "digits", "text"),
    [
        (0.9796, 0.98, as_percent, 1, "97.96%"),
        (0.975, 0.98, as_percent, 1, "97.5%"),
        (19.97, 20, as_fixed, 1, "19.97"),
        (12.04, 20, as_fixed, 1, "12.0"),
        (0.99996, 1, as_fixed, 2, "0.99996"),
        (1.0, 1, as_fixed, 2, "1.00"),
        (math.nan, 20, as_fixed, 1, "nan"),
    ],
)
def test_as_many_digits_as_it_takes(value, limit, form, digits, text) -> None:
    assert tell_apart(value, limit, form, digits) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.98, "98%"), (0.985, "98.5%"), (0.57, "57%"), (0.9999, "99.99%"), (0, "0%")],
)
def test_a_limit_reads_as_it_was_given(share: float, text: str) -> None:
    assert show_share(share) == text


@pytest.mark.parametrize(
    ("limit", "text"),
    [(0.01, "1.00%"), (0, "0.00%"), (0.0025, "0.25%"), (0.00003, "0.003%"), (0.00125, "0.125%")],
)
def test_what_may_be_lost_reads_as_no_less_than_it_is(limit: float, text: str) -> None:
    assert show_drop(limit) == text


def test_an_infinite_sqnr_is_put_into_words() -> None:
    assert show_decibels(12.04) == "12.0 dB"
    assert "identical" in show_decibels(math.inf)
    assert "inf " not in show_decibels(-math.inf)


def _judge(reference: np.ndarray, candidate: np.ndarray, **options: float) -> Verdict:
    return judge_parity(
        _compare(reference, candidate), "int8", kind="unlabelled", config=BuildConfig(**options)
    )


def _compare(reference: np.ndarray, candidate: np.ndarray) -> ParityReport:
    parity = ParityAccumulator(("y",))
    parity.update({"y": reference}, {"y": candidate}, rows=len(reference))
    return parity.result()


def _numbers(count: int, differing: int) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers of which so many differ."""
    numbers = np.arange(count) % 7
    others = numbers.copy()
    others[:differing] += 1
    return numbers, others


def test_equal_integers_just_below_their_limit_say_so() -> None:
    reason = str(_judge(*_numbers(10_000, 204)).reason)  # 97.96%
    assert "is equal in 97.96% of its integers, below 98%" in reason
    verdict = _judge(*_numbers(1000, 16), min_agreement=0.985)
    assert verdict.gate == "equal integers at least 98.5%"
    assert "98.4% of its integers, below 98.5%" in str(verdict.reason)


def test_top1_agreement_is_held_against_the_limit_that_was_given() -> None:
    rng = np.random.default_rng(0)
    scores = 100 * np.eye(10)[rng.integers(10, size=4000)] + rng.standard_normal((4000, 10))
    others = scores.copy()
    others[:81] = others[:81, ::-1]
    verdict = _judge(scores, others, min_sqnr=0.0)
    assert f"{1 - 81 / 4000:.3%}"[:5] in str(verdict.reason)  # 97.98 of 97.975%
    assert verdict.gate.endswith("top-1 agreement at least 98%")
    assert _judge(scores, scores * 1.01, min_agreement=0.995).gate.endswith("at least 99.5%")


def test_an_sqnr_just_below_its_limit_says_so() -> None:
    values = np.random.default_rng(0).standard_normal((64, 10))
    scale = 1 + 10 ** (-19.97 / 20)
    assert "an SQNR of 19.97 dB, below 20" in str(_judge(values, values * scale).reason)


def test_a_speed_up_just_below_one_does_not_read_as_one() -> None:
    times = replace(latency(0.01), speedup=1.02, speedup_ci95=(0.9996, 1.04))
    reason = str(judge_speed(times).reason)
    assert reason == "not faster than eager: 1.02x (95% interval 0.9996 to 1.04)"


def test_other_sizes_that_are_wrong_beside_identical_answers_are_put_into_words() -> None:
    values = np.random.default_rng(0).standard_normal((64, 10))
    report = replace(_compare(values, values), sizes_checked=(SizeParity({"t": 7}, -math.inf),))
    reason = str(judge_parity(report, "int8", kind="unlabelled", config=BuildConfig()).reason)
    assert "inf dB" not in reason
    assert "and inf at" not in reason
    assert reason.startswith("at t=7 the SQNR is minus infinity")


def test_the_verdict_counts_class_numbers_and_gives_amounts_their_sqnr() -> None:
    assert describe_outputs(_compare(*_numbers(1000, 15))) == (
        "98.50% of the integers of output 'y' equal"
    )
    assert describe_outputs(_compare(*_numbers(1000, 0))) == "identical outputs"
    values = np.random.default_rng(0).standard_normal((64, 10))
    assert describe_outputs(_compare(values, values * 1.05)) == (
        "an output SQNR of 26.0 dB (an error of 5.0%)"
    )


def test_an_output_that_should_be_0_and_is_not_is_not_called_identical() -> None:
    text = describe_outputs(_compare(np.zeros((64, 10)), np.full((64, 10), 1e-9)))
    assert text == "an output 'y' that is 0 in eager and not in the engine"


@pytest.mark.parametrize(("rows", "right"), [(1, 1), (2, 2), (10, 8)])
def test_few_samples_that_eager_has_right_are_few_and_not_wrongly_labelled(
    rows: int, right: int
) -> None:
    labels = np.arange(rows) % 2
    answers = np.where(np.arange(rows) < right, labels, 1 - labels)
    scores = np.eye(2)[answers]
    accuracy = AccuracyAccumulator()
    accuracy.update(scores, scores, labels)
    found = accuracy.result()
    assert found is not None
    said = str(warn_of_labels(found, "y", []))
    assert "too few" in said
    assert "Number the classes" not in said
    assert said.startswith(
        "1 labelled sample is " if rows == 1 else f"{rows} labelled samples are "
    )


def test_few_samples_that_eager_has_wrong_may_be_labelled_wrongly() -> None:
    labels = np.arange(10) % 2
    accuracy = AccuracyAccumulator()
    accuracy.update(np.eye(2)[1 - labels], np.eye(2)[1 - labels], labels)
    found = accuracy.result()
    assert found is not None
    assert "Number the classes" in str(warn_of_labels(found, "y", []))


def test_a_gate_without_use_for_labels_does_not_call_eager_no_better_than_chance() -> None:
    labels = np.arange(2) % 2
    parity = ParityAccumulator(("y",), (LabelledOutput("y"),))
    scores = {"y": np.eye(2)[labels]}
    parity.update(scores, scores, rows=2, labels={"y": labels})
    gate = judge_parity(parity.result(), "int8", kind="labelled", config=BuildConfig()).gate
    assert "not above chance beyond doubt" in gate  # of two that are right
