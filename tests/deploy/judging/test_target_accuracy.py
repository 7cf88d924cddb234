"""R² of the targets of a regression: against scikit-learn's, and as a gate."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deploy.config import BuildConfig
from deploy.judging.accuracy import Accuracy
from deploy.judging.accuracy_gate import explain_certain_drop, hold_accuracy
from deploy.judging.gates import judge_parity
from deploy.judging.label_notes import describe_reading, warn_of_labels
from deploy.judging.layouts import LabelForm, LabelledOutput
from deploy.judging.parity import ParityAccumulator, ParityReport
from deploy.judging.target_accuracy import TargetAccumulator, fit_targets

Array = np.ndarray[Any, Any]
CONFIG = BuildConfig()


def measure(ours: Array, theirs: Array, targets: Array, rows: int = 7) -> Accuracy | None:
    """In batches of so many rows."""
    tally = TargetAccumulator()
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        tally.update(ours[part], theirs[part], targets[part])
    return tally.result()


def draw(*shape: int, error: float = 0.3, seed: int = 0) -> tuple[Array, Array, Array]:
    """Targets, and two answers that are off by `error` and a little more."""
    rng = np.random.default_rng(seed)
    targets = rng.standard_normal(shape) * rng.uniform(0.1, 50, shape[1:]) + 1000
    scale = targets.std(axis=0)
    ours = targets + error * scale * rng.standard_normal(shape)
    return targets, ours, ours + 0.1 * error * scale * rng.standard_normal(shape)


@pytest.mark.parametrize("columns", [1, 3, 64])
@pytest.mark.parametrize("rows", [7, 1000])
def test_it_is_the_mean_over_the_columns_that_scikit_learn_finds(columns: int, rows: int) -> None:
    from sklearn.metrics import r2_score

    targets, ours, theirs = draw(301, columns)
    found = measure(ours, theirs, targets, rows)
    assert found is not None
    assert found.measure == "R²"
    assert found.samples == 301
    assert found.reference == pytest.approx(r2_score(targets, ours), abs=1e-12)
    assert found.candidate == pytest.approx(r2_score(targets, theirs), abs=1e-12)
    assert found.drop == pytest.approx(found.reference - found.candidate, abs=1e-12)
    assert not found.ranks


@pytest.mark.parametrize("shape", [(60, 4, 5), (60, 1, 4, 5), (60, 65), (60,)])
def test_of_maps_and_many_columns_all_values_count_together(shape: tuple[int, ...]) -> None:
    targets, ours, theirs = draw(*shape)
    found = measure(ours, theirs, targets)
    assert found is not None
    spread = ((targets - targets.mean()) ** 2).sum()
    assert found.reference == pytest.approx(1 - ((ours - targets) ** 2).sum() / spread, abs=1e-12)
    assert found.candidate == pytest.approx(1 - ((theirs - targets) ** 2).sum() / spread, abs=1e-12)
    roots = [float(np.sqrt(((each - targets) ** 2).mean())) for each in (ours, theirs)]
    assert found.rmse == pytest.approx(roots)
    assert measure(*reversed(draw(60, 3))).rmse is None  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(200, 3), (200, 4, 5)])
def test_what_is_nan_is_not_judged(shape: tuple[int, ...]) -> None:
    from sklearn.metrics import r2_score

    targets, ours, theirs = draw(*shape)
    gone = np.random.default_rng(1).random(shape) < 0.3
    gone[5:8] = True
    held = np.where(gone, np.nan, targets)
    found = measure(ours, theirs, held)
    assert found is not None
    assert found.samples == (~gone).reshape(200, -1).any(axis=1).sum()
    if len(shape) == 2:
        kept = ~gone
        each = [r2_score(targets[k, c], ours[k, c]) for c, k in enumerate(kept.T)]
        # a column's errors are over its own spread, and the samples those that have any target
        assert found.reference == pytest.approx(np.mean(each), abs=1e-12)
    else:
        known = targets[~gone]
        spread = ((known - known.mean()) ** 2).sum()
        missed = ((ours[~gone] - known) ** 2).sum() / spread
        assert found.reference == pytest.approx(1 - missed, abs=1e-12)


def test_float16_answers_and_shapes_that_differ_by_axes_of_one_are_taken() -> None:
    targets, ours, theirs = draw(50)
    one = measure(ours[:, None].astype(np.float16), theirs[:, None], targets)
    other = measure(ours.astype(np.float16), theirs, targets[:, None])
    assert one is not None
    assert other is not None
    assert one.reference == other.reference


@pytest.mark.parametrize("value", [0.1, np.nan])
def test_targets_that_are_all_the_same_judge_nothing(value: float) -> None:
    _, ours, theirs = draw(20, 2)
    assert measure(ours, theirs, np.full((20, 2), value)) is None
    assert TargetAccumulator().result() is None


@pytest.mark.parametrize("value", [0.1, np.nan])
def test_a_column_without_targets_that_differ_is_left_to_the_sqnr(value: float) -> None:
    targets, ours, theirs = draw(400, 3)
    whole = measure(ours[:, :2], theirs[:, :2], targets[:, :2])
    targets[:, 2] = value
    found = measure(ours, theirs, targets)
    assert found is not None
    assert whole is not None
    assert found.ranks
    assert found.reference == pytest.approx(whole.reference, abs=1e-12)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """Eager explains 75%; errors of the candidate add 4% to its squared error, a point of R²."""
    held = {"drop": 0, "reference": 0}
    trials = 500
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        targets = rng.standard_normal(400)
        ours = targets + 0.5 * rng.standard_normal(400)
        found = measure(ours, ours + 0.1 * rng.standard_normal(400), targets, 50)
        assert found is not None
        held["drop"] += found.drop_ci95[0] <= 0.01 <= found.drop_ci95[1]
        held["reference"] += found.reference_ci95[0] <= 0.75 <= found.reference_ci95[1]
    for count in held.values():
        assert 0.925 < count / trials < 0.975


def test_a_lone_sample_tells_nothing() -> None:
    targets, ours, theirs = draw(1, 4, 4)
    found = measure(ours, theirs, targets)
    assert found is not None
    assert not found.above_chance
    assert not found.forgotten


@pytest.mark.parametrize(
    ("shape", "places", "fits"),
    [
        (("batch", 1), (), True),
        (("batch",), (1,), True),
        (("batch", 3), (3,), True),
        (("batch", 1, 8, 6), (8, 6), True),
        (("batch", "h", "w"), (8, 6), True),
        (("batch", 3), (), False),
        (("batch", 3), (2,), False),
        (("batch", 8, 6), (6, 8), False),
        (("batch", "h"), (8, 6), False),
    ],
)
def test_shapes_that_fit(shape: tuple[Any, ...], places: tuple[int, ...], fits: bool) -> None:
    assert fit_targets(shape, places) is fits


def explained(reference: float, candidate: float, spread: float = 0.0) -> Accuracy:
    drop = reference - candidate
    interval = (drop - spread, drop + spread)
    ends = (reference - 0.01, reference + 0.01)
    return Accuracy(600, reference, candidate, drop, interval, ends, ends, 0.0, measure="R²")


@pytest.mark.parametrize(
    ("reference", "candidate", "holds"),
    [
        (0.80, 0.791, True),
        (0.80, 0.789, False),
        (0.99, 0.9891, True),  # a tenth of its squared error
        (0.99, 0.9889, False),
        (0.9999, 0.99, False),
        (0.90, 0.95, True),
    ],
)
def test_r2_may_drop_by_a_point_and_the_squared_error_grow_by_a_tenth(
    reference: float, candidate: float, holds: bool
) -> None:
    gate, reason = hold_accuracy(explained(reference, candidate), 0.01)
    assert gate.startswith("R² drop at most ")
    assert ("squared error grow by 10%" in gate) is (reference > 0.9)
    assert (reason is None) is holds
    if reason is not None:
        assert reason.startswith("R² drops by ")
    twice, _ = hold_accuracy(explained(reference, candidate), 0.02)
    assert ("grow by 20%" in twice) is (reference > 0.95)


def test_float32_may_not_lose_more_beyond_doubt() -> None:
    assert explain_certain_drop(explained(0.99, 0.985, spread=0.001), 0.01) == (
        "R² drops by 0.500% (95% interval 0.400% to 0.600%), more than 0.100% beyond doubt"
    )
    assert explain_certain_drop(explained(0.99, 0.985, spread=0.005), 0.01) is None
    assert explain_certain_drop(explained(0.80, 0.795, spread=0.001), 0.01) is None


def report(
    noise: float, *, samples: int = 600, gone: bool = False, offset: float = 0.0
) -> ParityReport:
    """Eager explains 91% of three targets, and a candidate is off from it by so much besides."""
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((samples, 3))
    eager = targets + 0.3 * rng.standard_normal(targets.shape) + offset
    answers = eager + noise * rng.standard_normal(targets.shape)
    if gone:
        targets[:, 1] = np.nan
    parity = ParityAccumulator(("y",), (LabelledOutput("y", LabelForm(targets=True)),))
    for start in range(0, samples, 100):
        part = slice(start, start + 100)
        one, other = eager[part].astype(np.float32), answers[part].astype(np.float32)
        parity.update({"y": one}, {"y": other}, rows=len(one), labels={"y": targets[part]})
    return parity.result()


@pytest.mark.parametrize(
    ("parity", "passed", "words"),
    [
        (report(0.08), True, "R² drop at most 0.9"),  # an SQNR of 22 dB
        (report(0.09), True, "R² drop at most 0.9"),
        (report(0.30), False, "R² drops by 9"),
        (report(0.09, samples=200), True, "SQNR at least 20"),
        (report(0.30, samples=200), False, "an SQNR of 10"),
        (report(0.08, gone=True), True, "all outputs: SQNR at least 20"),
        (report(0.08, offset=9.0), True, "labels judge nothing"),
    ],
    ids=["near", "as near", "far", "few", "few and far", "partial", "unscaled"],
)
def test_int8_is_held_to_r2_where_targets_are_enough(
    parity: ParityReport, passed: bool, words: str
) -> None:
    verdict = judge_parity(parity, "int8", kind="labelled", config=CONFIG)
    assert verdict.passed is passed, verdict
    assert words in (verdict.gate if passed else str(verdict.reason))
    assert "top-1" not in verdict.gate


def test_an_engine_that_is_far_from_eager_passes_where_eager_is_as_far_from_the_targets() -> None:
    """Its SQNR is 17 dB, below the gate of unlabelled data; R² drops by 3 points of 5."""
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((5000, 1))
    eager = targets + rng.standard_normal(targets.shape) * 0.7
    answers = eager + 0.17 * rng.standard_normal(targets.shape)
    for labels in (targets, None):
        parity = ParityAccumulator(("y",), (LabelledOutput("y", LabelForm(targets=True)),))
        told = None if labels is None else {"y": labels}
        parity.update({"y": eager}, {"y": answers}, rows=5000, labels=told)
        found = parity.result()
        assert found.sqnr_db == pytest.approx(17.1, abs=0.5)
        kind = "unlabelled" if labels is None else "labelled"
        config = replace(CONFIG, max_drop=0.05)
        verdict = judge_parity(found, "int8", kind=kind, config=config)  # type: ignore[arg-type]
        assert verdict.passed is (labels is not None), verdict


def test_a_report_says_how_targets_were_read_and_why_they_do_not_decide() -> None:
    good, far, few = report(0.05), report(0.05, offset=9.0), report(0.05, samples=200)
    said = str(describe_reading([good]))
    assert said.startswith("the 3 targets of a sample are what a regression predicts: R² is the")
    assert "as the mean over the 3 of them; what is NaN is not judged. Held against y." in said
    assert warn_of_labels(good.accuracies["y"], "y", ()) is None
    warning = str(warn_of_labels(far.accuracies["y"], "y", ("z",)))
    assert warning.startswith("Eager's own R² is -")
    assert "the SQNR was judged instead. They were held against 'y'. Scale the targets" in warning
    assert warning.endswith("or name another output with --classes (z).")
    assert "too few to judge R² by" in str(warn_of_labels(few.accuracies["y"], "y", ()))
