"""Each gate rejects wrong outputs and passes right ones; what a gate cannot see is said by name."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from latencies import NO_LUCK, latency
from wrong_answers import WRONG, logits, wrong

from deploy.config import BuildConfig
from deploy.judging.accuracy import MIN_LABELLED
from deploy.judging.gates import (
    DataKind,
    Verdict,
    choose_winner,
    judge_parity,
    judge_speed,
)
from deploy.judging.layouts import LabelledOutput
from deploy.judging.parity import ParityAccumulator, ParityReport, SizeParity
from deploy.measuring.luck import Luck

Array = np.ndarray[Any, Any]
CONFIG = BuildConfig()
FEWER_BITS = ("fp16", "bf16", "int8", "int4", "mixed")


def linear(order: slice = slice(None), dtype: type = np.float32) -> Array:
    """The same product, summed in an order of one's own."""
    rng = np.random.default_rng(5)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((64, 300), (300, 10)))
    total = np.zeros((64, 10), dtype)
    for k in range(300)[order]:
        total += x[:, k : k + 1].astype(dtype) * w[k].astype(dtype)
    return total


EXACT, EAGER = linear(dtype=np.float64), linear()


def report(
    eager: Array,
    candidate: Array,
    *,
    exact: Array | None = None,
    labels: Array | None = None,
) -> ParityReport:
    accumulator = ParityAccumulator(("y",), () if labels is None else (LabelledOutput("y"),))
    floor = None if exact is None else ({"y": exact}, {"y": eager})
    told = None if labels is None else {"y": labels}
    accumulator.update({"y": eager}, {"y": candidate}, rows=len(eager), floor=floor, labels=told)
    return accumulator.result()


def judge(
    parity: ParityReport, precision: str, kind: DataKind = "unlabelled", **options: Any
) -> Verdict:
    return judge_parity(parity, precision, kind=kind, config=BuildConfig(**options))


def labelled(rows: int = 1000, share: float = 0.9) -> tuple[Array, Array]:
    """Logits, and labels that they hit in `share` of the rows."""
    values = logits(rows, seed=7)
    labels = values.argmax(axis=1)
    missed = int(rows * (1 - share))
    labels[:missed] = (labels[:missed] + 1) % 10
    return values, labels


def test_fp32_passes_another_order_of_summation() -> None:
    candidate = linear(slice(None, None, -1))
    assert (candidate != EAGER).any()
    assert judge(report(EAGER, candidate, exact=EXACT), "fp32") == Verdict(
        True, "error at most 10x eager's own float32 noise, floor 1e-06"
    )


@pytest.mark.parametrize("kind", ["labelled", "unlabelled", "synthetic"])
@pytest.mark.parametrize("name", WRONG)
def test_fp32_rejects_every_wrong_output_on_any_data(name: str, kind: DataKind) -> None:
    verdict = judge(report(EAGER, WRONG[name](EAGER), exact=EXACT), "fp32", kind)
    assert not verdict.passed
    assert "'y'" in str(verdict.reason)


@pytest.mark.parametrize("name", WRONG)
def test_fp32_rejects_wrong_samples_that_the_floor_was_not_taken_from(name: str) -> None:
    accumulator = ParityAccumulator(("y",))
    accumulator.update({"y": EAGER}, {"y": EAGER}, rows=64, floor=({"y": EXACT}, {"y": EAGER}))
    accumulator.update({"y": EAGER}, {"y": WRONG[name](EAGER)}, rows=64)
    assert not judge(accumulator.result(), "fp32").passed


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_fp32_limit_is_ten_times_eagers_own_noise(factor: float) -> None:
    exact = np.array([[0.0, 1.0]])
    eager, candidate = exact + np.array([[0, 1e-5]]), exact - [[0, factor * 1e-4]]
    assert judge(report(eager, candidate, exact=exact), "fp32").passed is (factor < 1)


def test_fp32_beyond_ten_times_eagers_noise_is_no_better_on_the_side_of_eager() -> None:
    """Eager's own error hides nothing of one that has its sign."""
    exact = np.array([[0.0, 1.0]])
    eager = np.array([[0.0, 1.0 + 1e-5]])
    for error, passes in ((0.95e-4, True), (1.05e-4, False)):
        candidate = np.array([[0.0, 1.0 + error]])
        assert judge(report(eager, candidate, exact=exact), "fp32").passed is passes


@pytest.mark.parametrize("error", [0.9e-6, 1.2e-6])
def test_fp32_limit_is_never_below_one_millionth(error: float) -> None:
    exact = np.array([[0.0, 1.0]])
    assert judge(report(exact, exact + error, exact=exact), "fp32").passed is (error < 1e-6)


@pytest.mark.parametrize(("steps", "passes"), [(1, True), (2, False)])
def test_fp32_of_an_output_of_float16_may_be_the_next_number(steps: int, passes: bool) -> None:
    """What lies between two of its numbers may become either, where eager happens to differ from
    float64 in none."""
    exact = np.linspace(-1.9, 1.9, 640).astype(np.float16).reshape(64, 10)
    candidate = exact.copy()
    for _ in range(steps):
        candidate[5, 9] = np.nextafter(candidate[5, 9], np.float16(9))
        candidate[63, 9] = np.nextafter(candidate[63, 9], np.float16(9))
    verdict = judge(report(exact, candidate, exact=exact.astype(np.float64)), "fp32")
    assert verdict.passed is passes


def test_fp32_is_relative_to_the_largest_value_so_an_error_of_a_small_channel_is_not_seen() -> None:
    """Noise is taken from the whole output too: outputs of mixed units are best kept apart."""
    exact = np.array([[1000.0, 1e-3]])
    assert judge(report(exact, exact * [1, 1.5], exact=exact), "fp32").passed


def masks(flips: int, seed: int, rows: int = 64) -> Array:
    """Maps of 0 and 1, of which some values fall the other way than with no seed."""
    values = (np.random.default_rng(3).random((rows, 1, 16, 16)) > 0.5).astype(np.float32)
    places = np.random.default_rng(seed).choice(values.size, flips, replace=False)
    values.flat[places] = 1 - values.flat[places]
    return values


@pytest.mark.parametrize(("flips", "passes"), [(1, True), (250, True), (350, False), (8000, False)])
def test_fp32_of_which_eager_itself_crosses_a_threshold_may_not_differ_everywhere(
    flips: int, passes: bool
) -> None:
    """Three values of eager's are as wrong as can be; so is any wrong value of a candidate."""
    verdict = judge(report(masks(3, 1), masks(flips, 2), exact=masks(0, 0)), "fp32")
    assert verdict.passed is passes
    assert passes or "times the mean power of eager's own" in str(verdict.reason)


@pytest.mark.parametrize(("noise", "passes"), [(0.9e-3, True), (1.1e-3, False)])
def test_power_counts_from_where_noise_allows_more_than_a_hundredth(
    noise: float, passes: bool
) -> None:
    """Eager is off in one value, the candidate in all of them by nearly ten times as much."""
    exact = np.ones((64, 10))
    eager = exact + noise * (np.arange(640).reshape(64, 10) == 5)
    candidate = exact + 9 * noise
    assert judge(report(eager, candidate, exact=exact), "fp32").passed is passes


def test_fp32_that_is_wrong_where_no_floor_was_taken_is_seen_by_its_power() -> None:
    floor = ({"y": masks(0, 0)}, {"y": masks(3, 1)})
    accumulator = ParityAccumulator(("y",))
    accumulator.update({"y": masks(3, 1)}, {"y": masks(2, 2)}, rows=64, floor=floor)
    assert judge(accumulator.result(), "fp32").passed
    accumulator.update({"y": masks(3, 1)}, {"y": 1 - masks(3, 1)}, rows=64)
    assert not judge(accumulator.result(), "fp32").passed


@pytest.mark.parametrize(
    ("samples", "off", "passes"), [(1000, 1, True), (1000, 4, False), (200, 4, True)]
)
def test_fp32_that_eagers_noise_excuses_may_not_be_wrong_more_often(
    samples: int, off: float, passes: bool
) -> None:
    """It is off by what eager is from float64, or four times that; few labels prove nothing."""
    values, labels = labelled(samples)
    noise = [2 * np.random.default_rng(seed).standard_normal(values.shape) for seed in (1, 2)]
    eager = values + 8 * np.eye(10)[labels]
    parity = report(eager, eager + off * noise[0], exact=eager + noise[1], labels=labels)
    verdict = judge(parity, "fp32", "labelled")
    assert verdict.passed is passes
    assert (
        passes or "of accuracy" in verdict.gate or "no accuracy lost beyond doubt" in verdict.gate
    )


@pytest.mark.parametrize("name", WRONG)
def test_fp32_without_a_floor_is_judged_by_the_recorded_noise(name: str) -> None:
    noise = {"y": 2e-7}

    def passes(candidate: Array) -> bool:
        parity = report(EAGER, candidate)
        return judge_parity(
            parity, "fp32", kind="labelled", config=CONFIG, recorded_noise=noise
        ).passed

    assert passes(linear(slice(None, None, -1)))
    assert not passes(WRONG[name](EAGER))


def test_fp32_without_any_noise_to_judge_by_is_rejected() -> None:
    parity = report(EAGER, EAGER)
    assert judge(parity, "fp32").reason == "there is no noise floor to judge it by"
    assert not judge_parity(
        parity, "fp32", kind="labelled", config=CONFIG, recorded_noise={}
    ).passed


def heights(offset: float, shape: tuple[int, ...] = (64, 1, 8, 8)) -> Array:
    """Values of spread 1 around an offset."""
    return offset + np.random.default_rng(4).standard_normal(shape)


@pytest.mark.parametrize("precision", FEWER_BITS)
@pytest.mark.parametrize("shape", [(64, 1, 8, 8), (64,), (64, 1), (64, 5), (64, 8, 5), (64, 5, 8)])
@pytest.mark.parametrize("share", [0.0, 0.9, 1.0])
def test_answers_that_are_all_their_mean_are_rejected_whatever_their_sqnr(
    share: float, shape: tuple[int, ...], precision: str
) -> None:
    """0.9: nine tenths of what they differ by is left, an error of a hundredth of its power."""
    eager = heights(3000, shape)
    candidate = share * eager + (1 - share) * eager.mean()
    verdict = judge(report(eager, candidate), precision, min_agreement=0.0)
    assert verdict.passed is (share > 0)
    assert verdict.passed or "its mean would be as near" in str(verdict.reason)


@pytest.mark.parametrize("axis", [1, 2])
def test_means_of_channels_are_not_what_their_values_differ_by(axis: int) -> None:
    means = np.linspace(1000, 3000, 6)
    eager = np.moveaxis(heights(0, (64, 8, 6)) + means, 2, axis)
    candidate = np.moveaxis(np.zeros((64, 8, 6)) + means, 2, axis)
    verdict = judge(report(eager, candidate), "int8")
    assert "its mean would be as near" in str(verdict.reason)


def test_one_answer_to_every_sample_is_rejected_though_its_places_differ() -> None:
    usual = np.random.default_rng(3).uniform(0, 1, (17, 2))  # where joints are, of whoever it is
    eager = usual + 0.02 * heights(0, (64, 17, 2))
    assert judge(report(eager, usual + 0.9 * (eager - usual)), "int8").passed
    verdict = judge(report(eager, np.broadcast_to(usual, eager.shape)), "int8")
    assert "differs from sample to sample by no more than it is off" in str(verdict.reason)


def test_answers_that_do_not_differ_at_all_may_be_their_mean() -> None:
    eager = np.full((64, 5), 3000.0, np.float32)
    assert judge(report(eager, eager + 1), "int8", min_agreement=0.0).passed


def test_on_noise_answers_need_not_differ() -> None:
    eager = heights(3000, (64, 5))
    candidate = np.full_like(eager, eager.mean())
    assert judge(report(eager, candidate), "bf16", "synthetic").passed


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "mixed"])
def test_rounding_of_its_own_precision_passes(precision: str) -> None:
    step = {"fp16": 2**-11, "bf16": 2**-8}.get(precision, 2**-6)
    noise = np.random.default_rng(0).uniform(-step, step, EAGER.shape)
    candidate = (EAGER * (1 + noise)).astype(np.float32)
    assert judge(report(EAGER, candidate), precision).passed


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4", "mixed"])
@pytest.mark.parametrize("name", wrong("scaled by 1.01"))
def test_sqnr_gates_reject_wrong_outputs(name: str, precision: str) -> None:
    assert not judge(report(EAGER, WRONG[name](EAGER)), precision).passed


@pytest.mark.parametrize("name", wrong("scaled by 1.01"))
def test_fp16_gate_rejects_wrong_outputs_on_synthetic_data_too(name: str) -> None:
    assert not judge(report(EAGER, WRONG[name](EAGER)), "fp16", "synthetic").passed


def test_fp16_gate_has_its_edge_at_one_percent_of_scale() -> None:
    assert not judge(report(EAGER, EAGER * 1.0101), "fp16").passed
    assert judge(report(EAGER, EAGER * 1.0099), "fp16").passed


@pytest.mark.parametrize(
    ("precision", "least"),
    [("tf32", 40), ("fp16", 40), ("bf16", 25), ("int8", 20), ("mixed", 20), ("int4", 20)],
)
def test_every_precision_has_its_own_least_sqnr(precision: str, least: float) -> None:
    """Scaled by 1 + e, the SQNR is -20 log10 e."""
    for decibels in (least - 0.1, least + 0.1):
        parity = report(EAGER, EAGER.astype(np.float64) * (1 + 10 ** (-decibels / 20)))
        assert judge(parity, precision).passed is (decibels > least)


@pytest.mark.parametrize("precision", ["fp32", *FEWER_BITS])
@pytest.mark.parametrize(("decibels", "there"), [(45.0, 35.0), (90.0, 60.0), (math.inf, 60.0)])
def test_another_size_may_lose_10_db_and_whatever_is_left_above_60(
    precision: str, decibels: float, there: float
) -> None:
    values = EXACT[:, :1]
    parity = report(values, values * (1 + 10 ** (-decibels / 20)), exact=values * (1 + 1e-2))
    for least in (there - 0.1, there + 0.1):
        sizes = (SizeParity({"x_2": 9}, math.inf), SizeParity({"x_2": 7}, least))
        verdict = judge(replace(parity, sizes_checked=sizes), precision)
        assert verdict.passed is (least > there)
        assert verdict.passed or "at x_2=7" in str(verdict.reason)


@pytest.mark.parametrize("precision", ["bf16", "int8", "int4", "mixed"])
def test_below_fp16_no_gate_sees_one_percent_of_scale_since_no_class_changes(
    precision: str,
) -> None:
    values, labels = labelled()
    scaled = WRONG["scaled by 1.01"](values)
    assert judge(report(values, scaled), precision).passed
    parity = report(values, scaled, labels=labels)
    assert judge(parity, precision, "labelled").passed
    assert parity.accuracies["y"].drop == 0


def test_int8_gates_do_not_see_two_samples_swapped_among_a_thousand() -> None:
    """24 dB and an agreement of 99.8%; the check of small batches sees what swaps always."""
    values, labels = labelled()
    swapped = WRONG["two samples swapped"](values)
    assert judge(report(values, swapped), "int8").passed
    assert judge(report(values, swapped, labels=labels), "int8", "labelled").passed
    assert not judge(report(values, swapped), "fp16").passed


def test_int8_gates_do_not_see_two_channels_swapped_among_a_thousand() -> None:
    values = logits(500, 1000, seed=2)
    swapped = WRONG["two channels swapped"](values)
    assert judge(report(values, swapped), "int8").passed
    assert not judge(report(values, swapped), "bf16").passed


def test_agreement_rejects_what_a_large_offset_hides_from_the_sqnr() -> None:
    values = logits(400) + np.float32(100)
    for name in ("two channels swapped", "two samples swapped"):
        candidate = values.copy()
        for start in range(0, 400, 2):
            candidate[start : start + 2] = WRONG[name](values[start : start + 2])
        parity = report(values, candidate)
        assert parity.sqnr_db > 20
        verdict = judge(parity, "int8")
        assert not verdict.passed
        assert "top-1 agrees" in str(verdict.reason)
        assert "--min-agreement" in str(verdict.reason)
        without = judge(parity, "int8", min_agreement=0.0)
        assert without.passed is (name == "two channels swapped")


@pytest.mark.parametrize("differ", [8, 9])
def test_agreement_of_98_percent_is_enough_and_less_is_not(differ: int) -> None:
    values = logits(400) + np.float32(100)
    candidate = values.copy()
    candidate[:differ] = np.roll(values[:differ], 1, axis=1)
    assert judge(report(values, candidate), "int8").passed is (differ == 8)


@pytest.mark.parametrize("drop", [0.01, 0.011])
def test_accuracy_may_drop_by_one_percent_and_no_more(drop: float) -> None:
    values, labels = labelled(1000, share=1.0)
    candidate = values.copy()
    rows = round(1000 * drop)
    candidate[:rows] = np.roll(values[:rows], 1, axis=1)
    verdict = judge(report(values, candidate, labels=labels), "int8", "labelled")
    assert verdict.passed is (drop == 0.01)
    assert "accuracy drop at most 1.00% on 1000 samples" in verdict.gate
    if drop > 0.01:
        assert "accuracy drops by 1.10%" in str(verdict.reason)
        assert "interval" in str(verdict.reason)


@pytest.mark.parametrize("name", wrong("scaled by 1.01", "two samples swapped"))
@pytest.mark.parametrize("precision", FEWER_BITS)
def test_accuracy_gate_rejects_wrong_outputs(name: str, precision: str) -> None:
    values, labels = labelled()
    parity = report(values, WRONG[name](values), labels=labels)
    assert not judge(parity, precision, "labelled").passed


def test_accuracy_gate_rejects_a_batch_answered_in_reverse() -> None:
    values, labels = labelled()
    parity = report(values, values[::-1].copy(), labels=labels)
    assert not judge(parity, "int8", "labelled").passed


def test_accuracy_is_what_counts_where_there_are_labels_whatever_the_sqnr() -> None:
    values, labels = labelled()
    parity = report(values, values * np.float32(3), labels=labels)
    assert parity.sqnr_db < 0
    assert judge(parity, "int8", "labelled").passed


def scored(reference: Array, candidate: Array, labels: Array) -> ParityReport:
    """Of an output that is one score for each sample."""
    accumulator = ParityAccumulator(("score",), (LabelledOutput("score"),))
    ours, theirs, told = ({"score": each} for each in (reference, candidate, labels))
    accumulator.update(ours, theirs, rows=len(labels), labels=told)
    return accumulator.result()


def test_a_lone_score_is_held_to_the_accuracy_and_to_the_sqnr() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 1000)
    logits = np.where(labels == 1, 0.3, -0.3) + 20 * (rng.random(1000) < 0.02)
    flipped = np.where(np.arange(1000) < 15, -0.3 * np.sign(logits), logits)  # 38 dB
    verdict = judge(scored(logits, flipped, labels), "int8")
    assert not verdict.passed
    assert "accuracy drop at most 1.00% on 1000 samples, class 1 above 0" in verdict.gate
    assert "drops by 1.50%" in str(verdict.reason) or "drops by 1.4" in str(verdict.reason)
    noisy = judge(scored(logits, logits * rng.uniform(0.5, 2.0, 1000), labels), "int8")
    assert not noisy.passed
    assert "SQNR" in str(noisy.reason)
    assert judge(scored(logits, logits * 1.01, labels), "int8").passed


def test_an_engine_that_never_answers_the_rare_class_is_rejected_within_the_drop() -> None:
    labels = np.zeros(1000, np.int64)
    labels[::120] = 1
    rare = np.stack([np.zeros(1000), np.where(labels == 1, 4.0, -4.0)], axis=1)
    accumulator = ParityAccumulator(("logits",), (LabelledOutput("logits"),))
    silent = np.minimum(rare, 0) - [0.0, 1.0]
    accumulator.update({"logits": rare}, {"logits": silent}, rows=1000, labels={"logits": labels})
    verdict = judge(accumulator.result(), "int8")
    assert not verdict.passed
    assert "rare are lost" in str(verdict.reason)


def test_labels_that_the_reference_knows_no_better_than_chance_do_not_certify_zeros() -> None:
    values = logits(1000, seed=7)
    labels = np.arange(1000) % 10
    parity = report(values, np.zeros_like(values), labels=labels)
    assert abs(parity.accuracies["y"].reference - 0.1) < 0.03
    verdict = judge(parity, "int8", "labelled", max_drop=0.03)
    assert not verdict.passed
    assert "SQNR" in str(verdict.reason)
    assert "the labels judge nothing: eager's own accuracy is not above chance" in verdict.gate
    exact = judge(report(values, values, labels=labels), "int8", "labelled")
    assert exact.passed
    assert "top-1 agreement" in exact.gate
    assert "the labels judge nothing" in exact.gate


def test_few_labels_still_say_which_output_has_the_classes_that_must_agree() -> None:
    values, labels = labelled(200)
    values = values + np.float32(100)
    accumulator = ParityAccumulator(("embedding", "logits"), (LabelledOutput("logits"),))
    ours = {"embedding": logits(200, 16), "logits": values}
    theirs = {**ours, "logits": np.roll(values, 1, 1)}
    accumulator.update(ours, theirs, rows=200, labels={"logits": labels})
    verdict = judge(accumulator.result(), "int8", "labelled")
    assert not verdict.passed
    assert "top-1 agrees" in str(verdict.reason)


@pytest.mark.parametrize("rows", [MIN_LABELLED - 1, MIN_LABELLED])
def test_fewer_than_300_labels_fall_back_to_the_sqnr(rows: int) -> None:
    values, labels = labelled(rows)
    verdict = judge(report(values, values * np.float32(3), labels=labels), "int8", "labelled")
    assert verdict.passed is (rows == MIN_LABELLED)
    assert ("SQNR" in verdict.gate) is (rows < MIN_LABELLED)


def test_too_few_labels_still_need_the_top1_agreement() -> None:
    values, labels = labelled(299)
    values = values + np.float32(100)
    candidate = np.roll(values, 1, axis=1)
    verdict = judge(report(values, candidate, labels=labels), "int8", "labelled")
    assert not verdict.passed
    assert "top-1" in str(verdict.reason)
    assert "pass more samples with labels" in str(verdict.reason)
    without = judge(report(values, candidate), "int8")
    assert "pass labels with the data" in str(without.reason)


@pytest.mark.parametrize("name", wrong("scaled by 1.01"))
def test_labels_of_one_output_do_not_excuse_another(name: str) -> None:
    values, labels = labelled(400)
    boxes = logits(400, 4, seed=9)

    def verdict(candidate: Array) -> Verdict:
        accumulator = ParityAccumulator(("classes", "boxes"), (LabelledOutput("classes"),))
        accumulator.update(
            {"classes": values, "boxes": boxes},
            {"classes": values, "boxes": candidate},
            rows=400,
            labels={"classes": labels},
        )
        return judge(accumulator.result(), "int8", "labelled")

    assert verdict(boxes).passed
    assert "accuracy" in verdict(boxes).gate
    assert "other outputs: SQNR" in verdict(boxes).gate
    candidate = boxes.copy()
    for start in range(0, 400, 20):
        candidate[start : start + 20] = WRONG[name](boxes[start : start + 20])
    assert not verdict(candidate).passed
    assert "'boxes'" in str(verdict(candidate).reason)


@pytest.mark.parametrize("precision", ["int8", "int4", "mixed"])
def test_integers_never_pass_on_synthetic_data(precision: str) -> None:
    verdict = judge(report(EAGER, EAGER, exact=EXACT), precision, "synthetic")
    assert not verdict.passed
    assert "--data" in str(verdict.reason)
    assert not judge(
        report(EAGER, EAGER), precision, "synthetic", min_sqnr=-999.0, min_agreement=0.0
    ).passed


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_floats_are_judged_on_synthetic_data_without_agreement(precision: str) -> None:
    values = logits(100) + np.float32(100)
    swapped = np.roll(values, 1, axis=1)
    assert judge(report(values, swapped), precision, "synthetic", min_sqnr=20.0).passed
    assert not judge(report(values, swapped), precision, "unlabelled", min_sqnr=20.0).passed


@pytest.mark.parametrize("precision", ["fp32", *FEWER_BITS])
@pytest.mark.parametrize("decibels", [-math.inf, 19.9, 20.1, math.inf, None])
def test_answers_must_not_change_with_the_batch_size(
    precision: str, decibels: float | None
) -> None:
    parity = replace(report(EAGER, EAGER, exact=EXACT), consistency_db=decibels)
    verdict = judge(parity, precision)
    assert verdict.passed is (decibels is None or decibels >= 20)
    assert verdict.passed or "batch size" in str(verdict.reason)


@pytest.mark.parametrize("precision", ["fp32", *FEWER_BITS])
def test_nothing_is_passed_on_no_samples(precision: str) -> None:
    for outputs in (("y",), ("y", "z")):
        assert not judge(ParityAccumulator(outputs).result(), precision).passed


@pytest.mark.parametrize("precision", ["fp32", *FEWER_BITS])
def test_one_nan_in_the_second_output_rejects(precision: str) -> None:
    accumulator = ParityAccumulator(("y", "z"))
    both, broken = {"y": EAGER, "z": EAGER}, {"y": EAGER, "z": WRONG["one NaN"](EAGER)}
    accumulator.update(both, broken, rows=64, floor=({"y": EXACT, "z": EXACT}, both))
    verdict = judge(accumulator.result(), precision)
    assert not verdict.passed
    assert "'z' has NaN" in str(verdict.reason)


def test_min_sqnr_overrides_the_precisions_own() -> None:
    scaled = report(EAGER, EAGER * 1.05)  # 26 dB
    assert judge(scaled, "int8").passed
    assert not judge(scaled, "int8", min_sqnr=30.0).passed
    assert not judge(scaled, "fp16").passed
    assert judge(scaled, "fp16", min_sqnr=25.0).passed


@pytest.mark.parametrize(
    ("interval", "passed", "words"),
    [
        ((1.01, 1.2), True, "None"),
        ((0.9, 1.0), False, "not faster than eager"),
        ((1.0, 1.5), False, "not faster than eager"),
        ((0.99, 4.0), False, "not faster than eager"),
        ((0.5, 0.9), False, "slower than eager"),
        ((math.nan, math.nan), False, "eager"),
    ],
)
def test_only_an_interval_above_one_is_faster(
    interval: tuple[float, float], passed: bool, words: str
) -> None:
    verdict = judge_speed(replace(latency(0.01), speedup_ci95=interval))
    assert verdict.passed is passed
    assert words in str(verdict.reason)


def test_the_fastest_wins_where_it_can_be_told() -> None:
    passed = {"a": ("fp32", latency(0.009)), "b": ("int8", latency(0.005, seed=1))}
    assert choose_winner(passed, seed=0) == "b"
    assert choose_winner(dict(reversed(passed.items())), seed=0) == "b"


@pytest.mark.parametrize("order", [1, -1])
def test_a_tie_goes_to_the_more_precise(order: int) -> None:
    passed = {
        "int8": ("int8", latency(0.00499, spread=0.05, seed=1)),
        "bf16": ("bf16", latency(0.00500, spread=0.05, seed=2)),
        "fp32": ("fp32", latency(0.00501, spread=0.05, seed=3)),
    }
    chosen = choose_winner(dict(list(passed.items())[::order]), seed=0)
    assert chosen == "fp32"


def test_a_tie_of_equal_precision_goes_to_the_faster() -> None:
    passed = {
        "a": ("int8", latency(0.00501, spread=0.05, seed=1)),
        "b": ("int8", latency(0.00500, spread=0.05, seed=2)),
    }
    assert choose_winner(passed, seed=0) == "b"


def test_what_the_luck_of_a_process_explains_is_a_tie() -> None:
    for luck, winner in ((NO_LUCK, "int8"), (Luck(0.01**2, 5, 2), "fp32")):
        passed = {
            "int8": ("int8", latency(0.00490, spread=0.001, luck=luck)),
            "fp32": ("fp32", latency(0.00500, spread=0.001, seed=1, luck=luck)),
        }
        assert choose_winner(passed, seed=0) == winner


@pytest.mark.parametrize("order", [1, -1])
def test_a_tie_by_noise_alone_yields_to_what_is_as_precise_and_faster(order: int) -> None:
    """A noisy engine cannot be told apart from the leader; a steady, faster one can."""
    passed = {
        "int8": ("int8", latency(0.00100, spread=0.001, seed=1)),
        "int8-slow": ("int8", latency(0.00200, spread=0.001, seed=4)),
        "fp32-steady": ("fp32", latency(0.00120, spread=0.001, seed=2)),
        "fp32-noisy": ("fp32", latency(0.00125, spread=0.9, seed=3)),
    }
    chosen = choose_winner(dict(list(passed.items())[::order]), seed=0)
    assert chosen == "fp32-steady"


def test_no_candidate_no_winner() -> None:
    assert choose_winner({}, seed=0) is None


@pytest.mark.parametrize("precision", FEWER_BITS)
def test_scores_lost_beside_large_boxes_are_seen_though_the_sqnr_is_high(precision: str) -> None:
    rng = np.random.default_rng(0)
    boxes, scores = rng.uniform(100, 600, (50, 4, 30)), rng.uniform(0, 1, (50, 16, 30))
    eager = np.concatenate([boxes, scores], axis=1).astype(np.float32)
    lost = eager * (np.arange(20) < 4)[:, None]
    near = eager + 0.01 * rng.standard_normal(eager.shape).astype(np.float32)
    parity = report(eager, lost)
    assert parity.sqnr_db > 50
    verdict = judge(parity, precision)
    assert not verdict.passed
    assert "lost 16 of its 20 channels" in str(verdict.reason)
    assert judge(report(eager, near), precision).passed


def test_one_rare_class_of_many_may_be_lost() -> None:
    eager = np.random.default_rng(0).standard_normal((400, 30)).astype(np.float32)
    eager[:, 7] *= 1e-3
    candidate = eager.copy()
    candidate[:, 7] = 0
    assert judge(report(eager, candidate), "int8").passed


@pytest.mark.parametrize("lost", [2, 3])
def test_a_tenth_of_the_channels_may_be_lost_and_no_more(lost: int) -> None:
    eager = np.random.default_rng(0).standard_normal((400, 20))
    eager[:, :lost] *= 1e-3
    candidate = eager * (np.arange(20) >= lost)
    assert judge(report(eager, candidate), "int8").passed is (lost == 2)


@pytest.mark.parametrize("precision", FEWER_BITS)
def test_class_numbers_are_held_to_equality_not_to_a_ratio(precision: str) -> None:
    eager = np.random.default_rng(0).integers(90, 100, (64, 16, 16))
    parity = report(eager, eager + 1)
    assert parity.outputs[0].sqnr_db > 39.5
    verdict = judge(parity, precision, min_sqnr=20.0)
    assert not verdict.passed
    assert "equal in 0.0% of its integers" in str(verdict.reason)
    some = np.where(np.random.default_rng(1).random(eager.shape) < 0.01, 0, eager)
    assert judge(report(eager, some), precision, min_sqnr=20.0).passed


def test_integers_of_which_just_the_least_share_is_equal_pass() -> None:
    eager = np.zeros((100, 1), np.int64)
    for equal in range(50, 100):
        parity = report(eager, (np.arange(100) >= equal).astype(np.int64)[:, None])
        for percent, passes in ((equal, True), (equal + 1, False)):
            assert judge(parity, "int8", min_agreement=percent / 100).passed is passes


def test_where_nothing_is_found_no_class_number_differs() -> None:
    """As of detections, where both found none."""
    none = np.zeros((64, 0), np.int64)
    assert judge(report(none, none), "int8").passed


def test_one_tie_of_eagers_own_excuses_no_other_class() -> None:
    exact = np.random.default_rng(0).integers(0, 20, (64, 16, 16))
    eager = exact.copy()
    eager[0, 0, 0] += 1
    assert judge(report(eager, exact, exact=exact), "fp32").passed
    verdict = judge(report(eager, np.roll(exact, 1, axis=2), exact=exact), "fp32")
    assert not verdict.passed
    assert "of its values" in str(verdict.reason)


def test_a_class_that_falls_the_other_way_at_another_size_is_no_other_answer() -> None:
    """Beside logits that are as near there as anywhere; two samples are run at such a size."""
    values = logits(1000, seed=3)
    noisy = values + 0.01 * values.std() * np.random.default_rng(0).standard_normal(values.shape)
    classes, other = values.argmax(1), values[:2].argmax(1)
    other[0] = 9 - other[0]
    accumulator = ParityAccumulator(("y", "class"))
    accumulator.update({"y": values, "class": classes}, {"y": noisy, "class": classes}, rows=1000)
    accumulator.check_sizes(
        {"y": values[:2], "class": values[:2].argmax(1)},
        {"y": noisy[:2], "class": other},
        sizes={"x_2": 7},
    )
    assert judge(accumulator.result(), "int8").passed


def test_a_map_of_classes_that_is_wrong_at_another_size_is_rejected() -> None:
    classes = np.random.default_rng(0).integers(90, 100, (4, 16, 16))
    accumulator = ParityAccumulator(("class",))
    accumulator.update({"class": classes}, {"class": classes}, rows=4)
    wrong_there = np.roll(classes, 1, axis=2)
    accumulator.check_sizes({"class": classes}, {"class": wrong_there}, sizes={"x_2": 7})
    verdict = judge(accumulator.result(), "int8")
    assert verdict.gate.startswith("at other sizes")
    assert not verdict.passed


def test_a_map_of_classes_does_not_depend_on_the_batch_for_a_pixel_at_the_edge() -> None:
    classes = np.random.default_rng(0).integers(0, 20, (3, 64, 64))
    values = np.random.default_rng(1).standard_normal((3, 4))
    other = classes.copy()
    other[0, 0, 0] = 19 - other[0, 0, 0]
    accumulator = ParityAccumulator(("y", "class"))
    accumulator.check_consistency(
        {"y": values, "class": classes}, {"y": values, "class": other}, rows=3
    )
    assert accumulator.consistency_db == pytest.approx(10 * math.log10(classes.size))


def classes_of(rows: int, differ: int) -> ParityReport:
    """Logits whose largest class differs in so many rows; a large offset hides that elsewhere."""
    values = logits(rows) + np.float32(100)
    candidate = values.copy()
    candidate[:differ] = np.roll(values[:differ], 1, axis=1)
    return report(values, candidate)


def test_one_sample_of_few_that_falls_the_other_way_is_no_fault_and_two_are() -> None:
    """Of 49 samples no share but 0 is below 2%."""
    for rows in (3, 16, 49):
        verdict = judge(classes_of(rows, 1), "int8")
        assert verdict.passed
        assert f"({rows} are too few to tell: one may differ)" in verdict.gate
        assert not judge(classes_of(rows, 2), "int8").passed
    assert judge(classes_of(50, 1), "int8").gate.endswith("at least 98%")
    assert not judge(classes_of(50, 2), "int8").passed


def test_one_of_two_samples_is_more_than_chance_and_all_may_be_asked_to_agree() -> None:
    assert not judge(classes_of(2, 1), "int8").passed
    assert judge(classes_of(2, 0), "int8").passed
    for rows in (30, 400):
        verdict = judge(classes_of(rows, 1), "int8", min_agreement=1.0)
        assert not verdict.passed
        assert f"of {rows} samples, below 100%" in str(verdict.reason)


def test_of_few_class_numbers_none_may_differ_as_no_sqnr_stands_behind_them() -> None:
    classes = np.random.default_rng(0).integers(0, 10, 16)
    for differ in (0, 1):
        other = classes.copy()
        other[:differ] += 1
        assert judge(report(classes, other), "int8").passed is (differ == 0)


def tied(margin: float) -> tuple[Array, Array]:
    """Class 1 leads class 0 by so much in eager, and the candidate has it the other way."""
    values = np.zeros((200, 10)) + np.arange(10, 0, -1)
    values[:, 1] = 10 + margin
    candidate = values.copy()
    candidate[:, :2] = values[:, 1::-1]
    return values, candidate


@pytest.mark.parametrize("margin", [0.0, 1.9e-3, 2.1e-3])
def test_classes_that_eagers_noise_does_not_tell_apart_count_as_one(margin: float) -> None:
    """Its noise is 1e-3: a lead of twice as much may be none."""
    values, candidate = tied(margin)
    parity = report(values, candidate, exact=values - [0, 1e-3, *[0] * 8])
    assert judge(parity, "int8").passed is (margin < 2e-3)


def test_without_a_noise_floor_only_equal_classes_count_as_one() -> None:
    for margin in (0.0, 1e-9):
        values, candidate = tied(margin)
        candidate[:, 0] += 1e-6
        assert judge(report(values, candidate), "int8").passed is (margin == 0)


def images(*shape: int) -> Array:
    """Smooth ones, from 20 to 230."""
    rows = np.linspace(20, 200, shape[0] * shape[1]).reshape(shape[0], shape[1], 1, 1)
    noise = np.random.default_rng(0).integers(0, 30, shape)
    return (rows + noise).astype(np.uint8)


@pytest.mark.parametrize("shape", [(16, 12, 12, 3), (16, 4, 12, 12)])
@pytest.mark.parametrize("precision", FEWER_BITS)
def test_images_that_are_off_by_a_little_are_no_misses(
    shape: tuple[int, ...], precision: str
) -> None:
    values = images(*shape)
    near = values + np.random.default_rng(1).integers(0, 2, shape, dtype=np.uint8)
    parity = report(values, near)
    assert parity.outputs[0].error_eager > 0.4
    verdict = judge(parity, precision)
    assert verdict.passed
    assert "SQNR" in verdict.gate
    assert not judge(report(values, near[::-1].copy()), precision).passed
    assert not judge(report(values, (values * 0.8).astype(np.uint8)), precision).passed


@pytest.mark.parametrize("shape", [(16, 12, 12), (16, 1, 12, 12), (16, 12, 12, 1)])
def test_maps_of_one_number_a_place_are_class_numbers_however_large(
    shape: tuple[int, ...],
) -> None:
    values = images(*shape, 1).reshape(shape) if len(shape) == 3 else images(*shape)
    verdict = judge(report(values, values + np.uint8(1)), "int8")
    assert not verdict.passed
    assert "return them as floats" in str(verdict.reason)
    assert "--min-agreement" in str(verdict.reason)


def test_masks_of_three_classes_are_no_images() -> None:
    masks = (images(16, 3, 12, 12) > 100).astype(np.uint8)
    assert not judge(report(masks, 1 - masks), "int8", min_sqnr=-10.0).passed


def test_images_that_are_as_near_at_another_size_hold_there() -> None:
    values = images(4, 8, 8, 3)
    near = values + np.uint8(1)
    accumulator = ParityAccumulator(("image",))
    accumulator.update({"image": values}, {"image": near}, rows=4)
    accumulator.check_sizes({"image": values}, {"image": near}, sizes={"x_1": 7})
    assert judge(accumulator.result(), "int8").passed
