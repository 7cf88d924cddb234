"""The answers that fare worst, against closed forms; a few ruined ones never pass a gate."""

import math
from typing import Any

import numpy as np
import pytest

from deploy.config import BuildConfig
from deploy.judging.gates import Verdict, judge_parity
from deploy.judging.layouts import LabelledOutput
from deploy.judging.output_parity import OutputAccumulator
from deploy.judging.parity import ParityAccumulator, ParityReport
from deploy.judging.worst_samples import (
    KEPT,
    SampleParity,
    SamplePowers,
    explain_ruined,
    warn_of_poor,
)

Array = np.ndarray[Any, Any]
ROWS, WIDTH = 1000, 12


def answers(seed: int = 0) -> Array:
    """Of a regression: none has a class."""
    values: Array = np.random.default_rng(seed).standard_normal((ROWS, WIDTH, 1))
    return values


def rounded(values: Array, decibels: float = 30.0, seed: int = 1) -> Array:
    """With errors as int8 makes them: everywhere of the same size."""
    noise = np.random.default_rng(seed).standard_normal(values.shape)
    return values + noise * np.sqrt(np.square(values).mean()) * 10 ** (-decibels / 20)


def worst(ours: Array, theirs: Array, numbers: Array | None = None) -> tuple[SampleParity, ...]:
    powers = SamplePowers(numbers)
    powers.update(ours, theirs)
    return powers.result()


def compare(ours: Array, theirs: Array) -> ParityReport:
    parity = ParityAccumulator(("y",))
    for rows in np.split(np.arange(len(ours)), [1, 3, 6]):
        parity.update({"y": ours[rows]}, {"y": theirs[rows]}, rows=len(rows))
    return parity.result()


def judge(parity: ParityReport, precision: str = "int8", **options: Any) -> Verdict:
    return judge_parity(parity, precision, kind="unlabelled", config=BuildConfig(**options))


def _swap(values: Array) -> None:
    values[[400, 401]] = values[[401, 400]]


def _turn(values: Array) -> None:
    values[400] = np.roll(values[400], 1, axis=0)


def _negate(values: Array) -> None:
    values[400] *= -1


def _blank(values: Array) -> None:
    values[400] = 0


def _repeat(values: Array) -> None:
    values[400] = values[399]


@pytest.mark.parametrize("spoil", [_swap, _turn, _negate, _blank, _repeat])
@pytest.mark.parametrize("precision", ["int8", "int4", "mixed", "bf16", "fp16"])
def test_one_ruined_answer_of_a_thousand_fails(spoil: Any, precision: str) -> None:
    ours = answers()
    theirs = rounded(ours, 60.0)
    assert judge(compare(ours, theirs), precision).passed
    spoil(theirs)
    parity = compare(ours, theirs)
    verdict = judge(parity, precision, min_sqnr=20.0)
    assert parity.sqnr_db > 23
    assert not verdict.passed
    assert "'y' is ruined in sample 40" in str(verdict.reason)
    assert verdict.gate.endswith("no sample ruined")


@pytest.mark.parametrize("decibels", [20.3, 22.0, 25.0, 30.0])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 2.0])
def test_honest_errors_pass_however_the_sizes_of_the_answers_are_spread(
    decibels: float, seed: int, spread: float
) -> None:
    sizes = np.exp(spread * np.random.default_rng(seed + 50).standard_normal((ROWS, 1, 1)))
    ours = answers(seed) * sizes
    verdict = judge(compare(ours, rounded(ours, decibels, seed)))
    assert verdict == Verdict(True, "SQNR at least 20 dB")


def test_empty_scenes_may_err_as_much_as_full_ones() -> None:
    """Nine of ten answers are nearly zero, and int8 errs there by as much as elsewhere."""
    ours = answers()
    ours[np.arange(ROWS) % 10 > 0] *= 1e-4
    theirs = rounded(ours, 25.0)
    assert worst(ours, theirs)[0].sqnr_db < -40
    assert judge(compare(ours, theirs)).passed
    theirs[5] = ours[10]  # something, where there is nothing
    assert not judge(compare(ours, theirs)).passed


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("bias", [0.0, -4.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_probability_near_zero_may_double_but_not_turn(
    shape: tuple[int, ...], bias: float, seed: int
) -> None:
    """A sigmoid leaves errors of the logits where it is steep, so that they are not of one size."""

    def squash(logits: Array) -> Array:
        return (1 / (1 + np.exp(-logits))).reshape(shape)

    logits = 6 * np.random.default_rng(seed + 50).standard_normal(ROWS) + bias
    ours, theirs = squash(logits), squash(rounded(logits, 25.0, seed))
    assert judge(compare(ours, theirs)).passed
    row = int(np.argmin(logits))
    turned = squash(rounded(logits, 40.0, seed))
    turned[row] = 1 - turned[row]
    verdict = judge(compare(ours, turned))
    assert not verdict.passed
    assert f"ruined in sample {row} of the data" in str(verdict.reason)


def test_labels_that_hold_decide_and_the_ruined_sample_is_named_all_the_same() -> None:
    ours = answers()[..., 0]
    theirs = rounded(ours, 60.0)
    _negate(theirs)
    parity = ParityAccumulator(("y",), (LabelledOutput("y"),))
    labels = {"y": ours.argmax(axis=1)}
    parity.update({"y": ours}, {"y": theirs}, rows=ROWS, labels=labels)
    assert judge(parity.result()).passed
    assert parity.result().outputs[0].worst_samples[0].sample == 400


def test_numbers_are_their_closed_forms() -> None:
    ours = np.array([[3.0, 4.0], [3.0, -4.0], [-5.0, 0.0], [0.0, 5.0]])
    theirs = ours * [[1.1], [1.0], [1.01], [0.0]]  # errors of 1/4, 0, 1/400 and 25
    assert worst(ours, theirs) == (
        SampleParity(3, pytest.approx(0.0), pytest.approx(100.0)),
        SampleParity(0, pytest.approx(20.0), pytest.approx(1.0)),
        SampleParity(2, pytest.approx(40.0), pytest.approx(0.01)),
    )


def test_small_answers_with_usual_errors_are_not_the_worst() -> None:
    ours = answers()
    ours[10] *= 1e-3
    theirs = rounded(ours, 30.0)
    theirs[20] *= 0.7
    assert worst(ours, theirs)[0].sample == 20


def test_samples_go_by_their_rows_in_the_data() -> None:
    ours = answers()
    theirs = rounded(ours)
    _blank(theirs)
    numbers = 7 * np.arange(ROWS) + 3
    assert worst(ours, theirs, numbers)[0].sample == 2803
    parity = ParityAccumulator(("y",), numbers=numbers)
    parity.update({"y": ours}, {"y": theirs}, rows=ROWS)
    assert "sample 2803 of the data" in str(judge(parity.result()).reason)


def test_a_batch_at_a_time_finds_what_all_at_once_does() -> None:
    ours = answers()
    theirs = rounded(ours)
    parts = SamplePowers()
    for rows in np.split(np.arange(ROWS), [1, 3, 6, 38]):
        parts.update(ours[rows], theirs[rows])
    assert parts.result() == worst(ours, theirs)
    assert len(worst(ours, theirs)) == KEPT


def test_samples_on_another_axis_are_found_there() -> None:
    ours = answers()
    theirs = rounded(ours)
    _blank(theirs)
    turned = OutputAccumulator("y", 1)
    turned.update(np.moveaxis(ours, 0, 1), np.moveaxis(theirs, 0, 1))
    assert turned.result().worst_samples == worst(ours, theirs)


def test_what_has_no_samples_or_no_amounts_has_no_worst_one() -> None:
    values = np.arange(12.0).reshape(4, 3)
    for axis, array in ((None, values), (0, np.asarray(3.0)), (0, values.astype(np.int64))):
        accumulator = OutputAccumulator("y", axis)
        accumulator.update(array, array + array.dtype.type(1))
        assert accumulator.result().worst_samples == ()
    assert OutputAccumulator("y").result().worst_samples == ()
    assert explain_ruined("y", (), 20.0) is None
    assert warn_of_poor("engine", [("y", ())], 20.0) is None


def test_colour_images_have_samples() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    accumulator = OutputAccumulator("y")
    accumulator.update(images, np.where(np.arange(5)[:, None, None, None] == 2, 0, images))
    assert accumulator.result().worst_samples == (SampleParity(2, 0.0, 1.0),)


def test_identical_answers_are_left_out_and_infinities_in_place_are_no_error() -> None:
    ours = answers()
    assert worst(ours, ours) == ()
    masked = np.where(np.arange(WIDTH)[:, None] < 3, -np.inf, ours)
    assert worst(masked, masked) == ()
    assert worst(np.zeros((2, 3)), np.ones((2, 3)))[0] == SampleParity(0, -math.inf, 1.0)


def test_errors_beyond_float64_are_ruined() -> None:
    ours = answers()
    theirs = rounded(ours)
    theirs[5] = 1e200
    assert worst(ours, theirs)[0] == SampleParity(5, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("sqnr_db", "times", "least", "ruined", "poor"),
    [
        (-3.0, 1e4, 20.0, True, True),
        (-3.0, 99.0, 20.0, False, True),  # as small an answer as this errs like others
        (-3.0, 49.0, 20.0, False, False),
        (0.1, 1e4, 20.0, False, True),
        (0.1, 1e4, 40.0, False, True),
        (10.1, 1e4, 20.0, False, False),
        (-3.0, 1e4, 15.0, False, True),  # less is asked of all, so of each
        (-5.1, 1e4, 15.0, True, True),
        (5.1, 1e4, 15.0, False, False),
    ],
)
def test_what_is_ruined_and_what_is_poor(
    sqnr_db: float, times: float, least: float, ruined: bool, poor: bool
) -> None:
    found = (SampleParity(7, sqnr_db, times), SampleParity(2, 30.0, 2.0))
    reason = explain_ruined("y", found, least)
    warning = warn_of_poor("engine-int8", [("x", ()), ("y", found)], least)
    assert (reason is not None, warning is not None) == (ruined, poor)
    assert reason is None or "'y' is ruined in sample 7 of the data" in reason
    assert warning is None or f"output 'y' in sample 7 ({sqnr_db:.1f} dB)" in warning


def test_an_answer_that_should_be_nothing_has_no_infinite_sqnr_in_words() -> None:
    worst = (SampleParity(7, -math.inf, 1e4),)
    assert "ruined in sample 7 of the data, with an answer that should be 0" in str(
        explain_ruined("y", worst, 20.0)
    )
    assert "in sample 7 (an answer that should be 0)" in str(warn_of_poor("e", [("y", worst)], 20))
