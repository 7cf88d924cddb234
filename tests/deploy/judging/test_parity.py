"""Parity metrics against closed forms and scipy; every wrong output shows in a metric."""

import math
from typing import Any

import numpy as np
import pytest
from wrong_answers import WRONG, logits, with_value

from deploy.judging.layouts import LabelledOutput
from deploy.judging.output_parity import OutputAccumulator, OutputParity, decibels, same_nonfinite
from deploy.judging.parity import ParityAccumulator, ParityReport

Array = np.ndarray[Any, Any]


def compare(reference: Array, candidate: Array) -> OutputParity:
    accumulator = OutputAccumulator("y")
    accumulator.update(reference, candidate)
    return accumulator.result()


def judge_classifier(reference: Array, candidate: Array, labels: Array | None) -> ParityReport:
    accumulator = ParityAccumulator(("y",), () if labels is None else (LabelledOutput("y"),))
    told = None if labels is None else {"y": labels}
    accumulator.update({"y": reference}, {"y": candidate}, rows=len(reference), labels=told)
    return accumulator.result()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_metrics_agree_with_other_formulas(seed: int) -> None:
    from scipy import spatial

    ours, theirs = logits(seed=seed), logits(seed=seed) + 0.1 * logits(seed=seed + 50)
    exact, candidate = ours.astype(np.float64).ravel(), theirs.astype(np.float64).ravel()
    result = compare(ours, theirs)
    assert result.max_abs == pytest.approx(np.linalg.norm(exact - candidate, np.inf))
    assert result.mean_abs == pytest.approx(np.linalg.norm(exact - candidate, 1) / exact.size)
    assert result.relative_to_range == pytest.approx(result.max_abs / np.ptp(exact))
    assert result.cosine == pytest.approx(1 - spatial.distance.cosine(exact, candidate))
    snr = 20 * np.log10(np.linalg.norm(exact) / np.linalg.norm(exact - candidate))
    assert result.sqnr_db == pytest.approx(snr)
    same = [int(np.argmax(a) == np.argmax(b)) for a, b in zip(ours, theirs, strict=True)]
    assert result.top1_agreement == pytest.approx(sum(same) / len(same))
    assert result.error_eager == pytest.approx(result.max_abs / np.abs(exact).max())
    assert (result.error_float64, result.noise_float64, result.finite) == (None, None, True)


def test_errors_to_float64_are_relative_to_its_largest_value() -> None:
    exact = np.array([[1.0, -4.0]])
    eager, candidate = np.array([[1.0, -4.1]]), np.array([[1.2, -4.0]])
    accumulator = OutputAccumulator("y")
    accumulator.update(eager, candidate, (exact, eager))
    result = accumulator.result()
    assert result.noise_float64 == pytest.approx(0.1 / 4)
    assert result.error_float64 == pytest.approx(0.2 / 4)


@pytest.mark.parametrize(
    ("eager", "candidate", "ratio"),
    [(0.1, 0.3, 9.0), (-0.1, 0.3, 16.0), (0.1, 0.1, 1.0), (0.0, 0.1, math.inf), (0.0, 0.0, 0.0)],
)
def test_power_of_the_error_is_over_that_of_eagers_own(
    eager: float, candidate: float, ratio: float
) -> None:
    """The larger of that against float64 and that against eager: 0.4**2 over 0.1**2, say."""
    exact = np.arange(12.0).reshape(4, 3)
    accumulator = OutputAccumulator("y")
    accumulator.update(exact + eager, exact + candidate, (exact, exact + eager))
    assert accumulator.result().power_ratio == pytest.approx(ratio)


@pytest.mark.parametrize("scale", [1.01, 0.99, 1.1, 2.0])
def test_sqnr_of_a_scale_is_its_closed_form(scale: float) -> None:
    ours = logits().astype(np.float64)
    assert compare(ours, ours * scale).sqnr_db == pytest.approx(-20 * math.log10(abs(scale - 1)))


def test_one_percent_of_scale_is_forty_decibels() -> None:
    assert compare(logits(), WRONG["scaled by 1.01"](logits())).sqnr_db == pytest.approx(
        40, abs=1e-3
    )


@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_output_shows_in_the_metrics(name: str) -> None:
    result = compare(logits(), WRONG[name](logits()))
    assert not result.finite or result.error_eager > 5e-3
    assert not result.finite or result.sqnr_db < 40.01


@pytest.mark.parametrize("fill", [-1e4, -1e9, float(np.finfo(np.float32).min)])
@pytest.mark.parametrize("name", WRONG)
def test_a_fill_of_masked_values_hides_no_wrong_output(name: str, fill: float) -> None:
    """Beside 1e9 any error of a logit would be rounding."""
    ours = logits()
    ours[:, 7:] = fill
    with np.errstate(over="ignore"):
        theirs = WRONG[name](ours)
    theirs[:, 7:] = fill
    plain = compare(ours[:, :7], theirs[:, :7])
    result = compare(ours, theirs)
    assert result.finite is plain.finite
    assert result.sqnr_db == pytest.approx(plain.sqnr_db)
    assert result.error_eager == pytest.approx(plain.error_eager)
    assert result.cosine == pytest.approx(plain.cosine)


def test_a_mask_that_float64_fills_with_its_own_least_number_leaves_the_noise_as_it_is() -> None:
    ours, exact = logits(), logits().astype(np.float64)
    ours[:, 7:], exact[:, 7:] = np.finfo(np.float32).min, np.finfo(np.float64).min
    theirs = ours * np.float32(1)
    theirs[:, :7] *= np.float32(1.01)
    accumulator = OutputAccumulator("y")
    accumulator.update(ours, theirs, (exact, ours))
    result = accumulator.result()
    assert result.noise_float64 == 0
    assert result.error_float64 == pytest.approx(0.01, rel=1e-3)


def test_integers_that_differ_in_the_last_of_64_bits_differ() -> None:
    ours = np.random.default_rng(0).integers(2**60, 2**61, (32, 4))
    accumulator = OutputAccumulator("y")
    accumulator.update(ours, ours + 1, (ours, ours))
    result = accumulator.result()
    assert (result.error_eager, result.error_float64, result.noise_float64) == (1, 1, 0)


def test_errors_beyond_float64_are_no_agreement() -> None:
    huge = logits().astype(np.float64) * 1e200
    with np.errstate(over="ignore"):
        assert compare(huge, -huge).sqnr_db == -math.inf


def test_identical_outputs_have_no_error() -> None:
    result = compare(logits(), logits())
    assert (result.max_abs, result.mean_abs, result.error_eager) == (0, 0, 0)
    assert result.sqnr_db == math.inf
    assert result.cosine == pytest.approx(1)
    assert result.top1_agreement == 1
    assert result.finite


def test_all_zero_reference_is_matched_only_by_zeros() -> None:
    zeros = np.zeros((4, 3), np.float32)
    assert compare(zeros, zeros).sqnr_db == math.inf
    assert compare(zeros, zeros).cosine == 1
    off = compare(zeros, zeros + np.float32(1e-3))
    assert off.sqnr_db == -math.inf
    assert off.cosine == 0
    assert off.error_eager == pytest.approx(1e-3)


def test_opposite_sign_has_cosine_minus_one() -> None:
    assert compare(logits(), -logits()).cosine == pytest.approx(-1)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (math.nan, 0.0),
        (0.0, math.nan),
        (math.inf, -math.inf),
        (math.nan, math.inf),
        (-math.inf, -3e38),
    ],
)
def test_another_nonfinite_value_is_never_taken_for_the_same(ours: float, theirs: float) -> None:
    assert not compare(with_value(logits(), ours), with_value(logits(), theirs)).finite
    assert not same_nonfinite(np.array([1.0, ours]), np.array([1.0, theirs]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_same_nonfinite_value_is_left_out_of_all_metrics(value: float) -> None:
    ours = np.abs(with_value(logits(), value)) + 5
    ours[len(ours) // 2, 3] = value
    theirs = ours * np.float32(1.1)
    accumulator = OutputAccumulator("y")
    accumulator.update(ours, theirs, (ours.astype(np.float64), ours))
    result = accumulator.result()
    kept = ours[np.isfinite(ours)].astype(np.float64)
    assert result.finite
    assert result.relative_to_range == pytest.approx(0.1 * kept.max() / np.ptp(kept), rel=1e-4)
    assert result.sqnr_db == pytest.approx(20, abs=1e-4)
    assert result.error_float64 == pytest.approx(0.1, rel=1e-4)
    assert result.noise_float64 == 0


def test_a_masked_logit_does_not_hide_an_error_from_the_float64_floor() -> None:
    ours = with_value(logits(), -math.inf)
    accumulator = OutputAccumulator("y")
    accumulator.update(ours, ours * np.float32(1.01), (ours.astype(np.float64), ours))
    error = accumulator.result().error_float64
    assert error is not None
    assert error == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3, 4), ()])
def test_only_rows_of_classes_have_a_top1(shape: tuple[int, ...]) -> None:
    values = np.ones(shape, np.float32)
    result = compare(values, values)
    assert result.top1_agreement is None
    assert result.sqnr_db == math.inf


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.float16])
def test_other_dtypes_are_compared_as_numbers(dtype: type) -> None:
    ours = np.array([[1, 0, 1], [0, 1, 1]], dtype)
    theirs = ours.copy()
    theirs[0, 0] = 0
    assert compare(ours, ours).max_abs == 0
    assert compare(ours, theirs).max_abs == 1


def test_unsigned_differences_do_not_wrap() -> None:
    ours, theirs = np.array([[1, 5]], np.uint8), np.array([[2, 5]], np.uint8)
    assert compare(ours, theirs).max_abs == 1
    assert compare(theirs, ours).max_abs == 1


def test_half_precision_sums_do_not_overflow() -> None:
    ours = np.full((100, 100), 6e4, np.float16)
    assert compare(ours, ours).cosine == pytest.approx(1)


def test_a_batch_at_a_time_equals_all_at_once() -> None:
    ours, theirs = logits(57, seed=3), logits(57, seed=3) + 0.05 * logits(57, seed=4)
    exact = ours.astype(np.float64) + 1e-7
    parts, whole = OutputAccumulator("y"), OutputAccumulator("y")
    whole.update(ours, theirs, (exact, ours))
    for rows in np.split(np.arange(57), [1, 3, 6, 38]):
        parts.update(ours[rows], theirs[rows], (exact[rows], ours[rows]))
    left, right = parts.result(), whole.result()
    whole_values = {"name", "lost_channels", "flat_channels", "worst_samples"}
    assert all(getattr(left, name) == getattr(right, name) for name in whole_values)
    for name in set(OutputParity.__dataclass_fields__) - whole_values:
        assert getattr(left, name) == pytest.approx(getattr(right, name), rel=1e-12), name


def test_one_bad_batch_is_not_averaged_away() -> None:
    accumulator = OutputAccumulator("y")
    for index in range(50):
        ours = logits(8, seed=index)
        accumulator.update(ours, with_value(ours, math.nan) if index == 20 else ours)
    assert not accumulator.result().finite


@pytest.mark.parametrize("shape", [(64, 9), (63, 10), (64, 10, 1), (10, 64), (64,)])
def test_wrong_shape_is_refused_and_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"output 'y' has shape .* instead of \[64, 10\]"):
        compare(logits(), np.zeros(shape, np.float32))


def test_missing_output_is_refused() -> None:
    accumulator = ParityAccumulator(("y", "z"))
    with pytest.raises(ValueError, match="output 'z' is missing"):
        accumulator.update({"y": logits(), "z": logits()}, {"y": logits()}, rows=64)


def test_report_holds_every_output_and_the_worst_sqnr() -> None:
    accumulator = ParityAccumulator(("y", "z"))
    good, bad = logits(), logits() * np.float32(1.1)
    accumulator.update({"y": good, "z": good}, {"y": good, "z": bad}, rows=64)
    accumulator.update({"y": good, "z": good}, {"y": good, "z": good}, rows=3)
    report = accumulator.result()
    assert [output.name for output in report.outputs] == ["y", "z"]
    assert report.sqnr_db == report.outputs[1].sqnr_db < math.inf
    assert (report.samples, report.batches_checked) == (67, (3, 64))
    assert not report.accuracies
    assert report.consistency_db is None


@pytest.mark.parametrize("name", WRONG)
def test_answers_that_change_with_the_batch_size_are_noticed(name: str) -> None:
    accumulator = ParityAccumulator(("y",))
    accumulator.check_consistency({"y": logits(3)}, {"y": logits(3)}, rows=3)
    assert accumulator.consistency_db == math.inf
    accumulator.check_consistency({"y": logits(2)}, {"y": WRONG[name](logits(2))}, rows=2)
    accumulator.check_consistency({"y": logits(3)}, {"y": logits(3)}, rows=3)
    worst = accumulator.result().consistency_db
    assert worst is not None
    assert worst < 40.01
    if name in ("one NaN", "one Inf"):
        assert worst == -math.inf
    assert accumulator.result().batches_checked == (1, 2, 3)


def test_at_other_sizes_too_the_signal_is_the_references() -> None:
    accumulator = ParityAccumulator(("y",))
    accumulator.check_sizes({"y": logits(8)}, {"y": logits(8) / 2}, sizes={"t": 7})
    (found,) = accumulator.result().sizes_checked
    assert found.sqnr_db == pytest.approx(20 * math.log10(2), abs=1e-4)


def test_accuracy_counts_the_pairs() -> None:
    truth = np.arange(400) % 4
    ours, theirs = np.eye(4)[truth], np.eye(4)[truth]
    ours[:10] = np.roll(ours[:10], 1, axis=1)  # only the candidate is right in 10
    theirs[10:40] = np.roll(theirs[10:40], 1, axis=1)  # only the reference is right in 30
    accuracy = judge_classifier(ours, theirs, truth).accuracies["y"]
    assert accuracy.samples == 400
    assert accuracy.reference == pytest.approx(390 / 400)
    assert accuracy.candidate == pytest.approx(370 / 400)
    assert accuracy.drop == pytest.approx(20 / 400)
    assert accuracy.drop_ci95[0] < 0.05 < accuracy.drop_ci95[1]
    assert accuracy.drop_ci95[0] > 0


def test_labels_without_an_output_of_classes_give_no_accuracy() -> None:
    accumulator = ParityAccumulator(("y",))
    accumulator.update({"y": logits(4)}, {"y": logits(4)}, rows=4, labels={"y": np.arange(4)})
    assert not accumulator.result().accuracies


@pytest.mark.parametrize(
    ("signal", "error", "expected"),
    [(1.0, 0.0, math.inf), (0.0, 0.0, math.inf), (0.0, 1.0, -math.inf), (100.0, 1.0, 20.0)],
)
def test_decibels(signal: float, error: float, expected: float) -> None:
    assert decibels(signal, error) == expected


def test_integers_hold_no_number_that_stands_for_infinity() -> None:
    ours = np.array([[3, -10_000], [4, 5]])
    theirs = np.array([[3, -7], [4, 5]])
    result = compare(ours, theirs)
    assert result.finite
    assert (result.compared, result.top1_agreement) == (4, 0.75)


def test_a_row_of_the_same_nan_agrees() -> None:
    ours = with_value(logits(), math.nan)
    result = compare(ours, ours.copy())
    assert (result.finite, result.top1_agreement) == (True, 1)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_maps_of_many_class_numbers_are_no_colours_however_many_maps_there_are(dtype: type) -> None:
    classes = np.random.default_rng(0).integers(0, 200, (4, 3, 8, 8)).astype(dtype)
    found = OutputAccumulator("y")
    found.update(classes, classes + dtype(1))
    assert not found.result().pixels
    assert found.result().top1_agreement == 0
    images = OutputAccumulator("y")
    images.update(classes.astype(np.uint8), classes.astype(np.uint8) + np.uint8(1))
    assert images.result().pixels
