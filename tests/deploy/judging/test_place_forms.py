"""Binary maps, tokens, questions and class numbers: right engines pass, wrong ones do not."""

from typing import Any

import numpy as np
import pytest

from deploy.config import BuildConfig
from deploy.judging.accuracy import Accuracy
from deploy.judging.gates import Verdict, judge_parity
from deploy.judging.layouts import LabelForm, LabelledOutput
from deploy.judging.parity import ParityAccumulator, ParityReport

Array = np.ndarray[Any, Any]
SAMPLES = 320


def compare(
    reference: Array, candidate: Array, labels: Array, form: LabelForm | None = None
) -> ParityReport:
    accumulator = ParityAccumulator(("y",), (LabelledOutput("y", form or LabelForm()),))
    for part in np.array_split(np.arange(len(labels)), min(4, len(labels))):
        ours, theirs = reference[part], candidate[part]
        told = {"y": labels[part]}
        accumulator.update({"y": ours}, {"y": theirs}, rows=len(part), labels=told)
    return accumulator.result()


def measure(*arrays: Array, form: LabelForm | None = None) -> Accuracy:
    return compare(arrays[0], arrays[1], arrays[2], form).accuracies["y"]


def judge(*arrays: Array, form: LabelForm | None = None) -> Verdict:
    report = compare(arrays[0], arrays[1], arrays[2], form)
    return judge_parity(report, "int8", kind="labelled", config=BuildConfig())


def draw_maps(size: int = 12, seed: int = 0) -> tuple[Array, Array]:
    """Logits [N, 1, H, W] that know a foreground of about two places in a hundred, and labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((SAMPLES, size, size)) < 0.02).astype(np.int64)
    logits = 8.0 * labels - 4 + 1.5 * rng.standard_normal(labels.shape)
    return logits[:, None], labels


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


@pytest.mark.parametrize("as_map", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_a_binary_map_has_the_accuracy_and_f1_of_scikit_learn(as_map: bool, unit: bool) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    logits, labels = draw_maps()
    answers = (logits[:, 0] > 0).ravel()
    given = labels[:, None] if unit else labels
    values = logits if as_map else logits[:, 0]
    for scores, threshold in ((values, 0.0), (sigmoid(values), 0.5)):
        found = measure(scores, scores, given)
        assert found.threshold == threshold
        assert found.reference == pytest.approx(accuracy_score(labels.ravel(), answers))
        assert found.f1 is not None
        assert found.f1.reference == pytest.approx(f1_score(labels.ravel(), answers))
        assert (found.f1.classes, found.above_chance) == (1, True)
        assert f"above {threshold:g}" in str(found.read_as)


def test_the_threshold_is_told_by_all_of_the_scores() -> None:
    logits, labels = draw_maps()
    squeezed = logits.copy()
    squeezed[:-1] = np.clip(logits[:-1], 0, 1)  # logits only in the last sample
    assert measure(squeezed, squeezed, labels).threshold == 0.0


def test_an_engine_that_forgets_the_foreground_is_rejected() -> None:
    logits, labels = draw_maps()
    silent = np.minimum(logits, -0.1)
    found = measure(logits, silent, labels)
    assert found.drop < 0.03
    verdict = judge(logits, silent, labels)
    assert not verdict.passed
    few = np.where(np.arange(12) < 6, logits, silent)  # and one that forgets half of it
    assert measure(logits, few, labels).drop < 0.01 < found.drop
    verdict = judge(logits, few, labels)
    assert "the F1 of class 1 drops by" in str(verdict.reason)


def test_an_engine_that_rounds_is_not_held_to_the_sqnr_of_a_map() -> None:
    logits, labels = draw_maps()
    rough = logits + 0.3 * np.random.default_rng(1).standard_normal(logits.shape)
    rough *= 1.5
    report = compare(logits, rough, labels)
    assert report.sqnr_db < 20
    verdict = judge(logits, rough, labels)
    assert verdict.passed, verdict
    assert verdict.gate == (
        "accuracy drop at most 1.00% on 320 samples, class 1 above 0, and of the F1 of class 1"
    )


def test_scores_that_are_neither_logits_nor_probabilities_judge_nothing() -> None:
    logits, labels = draw_maps()
    percent = 100 * sigmoid(logits)
    report = compare(percent, percent, labels)
    assert not report.judged
    verdict = judge(percent, percent, labels)
    assert "the labels judge nothing" in verdict.gate


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64])
def test_maps_of_answers_are_taken_as_they_are(dtype: type) -> None:
    logits, labels = draw_maps()
    answers = (logits[:, 0] > 0).astype(dtype)
    found = measure(answers, answers, labels)
    assert found.reference == pytest.approx((answers == labels).mean())
    assert found.threshold is None
    silent = np.zeros_like(answers)
    assert not judge(answers, silent, labels).passed


def test_class_numbers_of_255_and_negative_answers_are_no_error() -> None:
    labels = np.random.default_rng(2).integers(0, 5, (SAMPLES, 6, 6))
    answers = labels.copy()
    answers[:, 0, 0] = -1
    answers[:, 0, 1] = 2**40
    labels[:, 5] = 255
    found = measure(answers, answers, labels)
    assert found.reference == pytest.approx(28 / 30)
    assert "a class number" in str(found.read_as)


def draw_tokens(classes: int = 5, seed: int = 3) -> tuple[Array, Array]:
    """Logits [N, 16, classes] and labels [N, 16], nine in ten of class 0, -100 behind the end."""
    rng = np.random.default_rng(seed)
    shares = [0.9, *[0.1 / (classes - 1)] * (classes - 1)]
    labels = rng.choice(classes, (SAMPLES, 16), p=shares)
    logits = 4 * np.eye(classes)[labels] + rng.standard_normal((SAMPLES, 16, classes))
    ends = rng.integers(6, 17, SAMPLES)
    return logits, np.where(np.arange(16) < ends[:, None], labels, -100)


def test_tokens_have_the_scores_of_scikit_learn_where_they_are_labelled() -> None:
    from sklearn.metrics import f1_score

    logits, labels = draw_tokens()
    found = measure(logits, logits, labels)
    kept = labels != -100
    answers = logits.argmax(axis=2)
    shares = [
        (row == label)[label != -100].mean() for row, label in zip(answers, labels, strict=True)
    ]
    assert found.reference == pytest.approx(np.mean(shares))
    assert found.f1 is not None
    expected = f1_score(labels[kept], answers[kept], average="macro")
    assert found.f1.reference == pytest.approx(expected)
    assert "5 classes, whose scores lie on axis 2" in str(found.read_as)


def test_an_engine_that_answers_one_rare_token_class_as_another_is_rejected() -> None:
    logits, labels = draw_tokens()
    swapped = logits[..., [0, 1, 2, 4, 3]]
    rare = (logits.argmax(axis=2) == 3)[..., None]
    only_three = np.where(rare, swapped, logits)
    wrong = judge(logits, only_three, labels)
    assert not wrong.passed
    padding = np.where((labels == -100)[..., None], swapped, logits)
    assert judge(logits, padding, labels).passed  # only where nothing is labelled
    assert judge(logits, logits + 0.05 * np.roll(logits, 1), labels).passed


def test_of_two_hundred_classes_one_that_is_lost_is_seen_though_the_mean_hardly_moves() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 200, (SAMPLES, 60))
    logits = 9 * np.eye(200)[labels] + rng.standard_normal((SAMPLES, 60, 200))
    wrong = logits.copy()
    wrong[..., 77] = -50
    assert measure(logits, wrong, labels).drop < 0.01
    verdict = judge(logits, wrong, labels)
    assert "of 200 classes, 77 (counted from 0) is lost" in str(verdict.reason)


def test_the_axis_decides_where_tokens_and_classes_are_as_many() -> None:
    logits, labels = draw_tokens()
    square, told = logits[:, :5], labels[:, :5]
    assert measure(square, square, told, form=LabelForm(axis=2)).reference > 0.95
    assert measure(square, square, told, form=LabelForm(axis=1)).reference < 0.6


def draw_questions() -> tuple[Array, Array]:
    """Logits [N, 6] and labels [N, 6] of yes and no, from often to seldom yes."""
    rng = np.random.default_rng(6)
    labels = (rng.random((SAMPLES, 6)) < [0.6, 0.5, 0.3, 0.2, 0.1, 0.06]).astype(np.int64)
    return 6.0 * labels - 3 + rng.standard_normal(labels.shape), labels


QUESTIONS = LabelForm(columns=True)


def test_questions_have_the_macro_f1_of_scikit_learn_and_chance_by_question() -> None:
    from sklearn.metrics import cohen_kappa_score, f1_score

    logits, labels = draw_questions()
    answers = logits > 0
    answers[:20] = ~answers[:20]
    logits[:20] *= -1
    found = measure(logits, logits, labels, form=QUESTIONS)
    assert found.reference == pytest.approx((answers == labels).mean())
    assert found.f1 is not None
    assert found.f1.reference == pytest.approx(f1_score(labels, answers, average="macro"))
    chances = []
    for column in range(6):
        kappa = cohen_kappa_score(labels[:, column], answers[:, column])
        hit = (answers[:, column] == labels[:, column]).mean()
        chances.append((hit - kappa) / (1 - kappa))
    assert found.chance == pytest.approx(np.mean(chances))
    assert found.candidate_chance == found.chance
    other = measure(logits, np.full_like(logits, -1), labels, form=QUESTIONS)
    assert other.candidate_chance == pytest.approx(1 - labels.mean())


def test_an_engine_that_never_says_yes_to_a_rare_question_is_rejected() -> None:
    logits, labels = draw_questions()
    silent = logits.copy()
    silent[:, 5] = -3
    assert measure(logits, silent, labels, form=QUESTIONS).drop < 0.011
    assert not judge(logits, silent, labels, form=QUESTIONS).passed
    close = judge(logits, logits * 1.02, labels, form=QUESTIONS)
    assert close.passed
    assert "and of the F1 of 6 labels; all outputs: SQNR at least 20 dB" in close.gate


def test_questions_are_held_to_the_sqnr_besides_since_scores_rank_samples() -> None:
    logits, labels = draw_questions()
    signs = np.sign(logits)
    verdict = judge(logits, signs, labels, form=QUESTIONS)
    assert not verdict.passed
    assert "SQNR" in str(verdict.reason)


def test_labels_of_nothing_alone_give_no_accuracy() -> None:
    logits, labels = draw_maps()
    report = compare(logits, logits, np.full_like(labels, 255))
    assert not report.accuracies
    tokens, _ = draw_tokens()
    assert not compare(tokens, tokens, np.full((SAMPLES, 16), -100)).accuracies


def test_one_sample_has_an_accuracy_and_no_f1() -> None:
    logits, labels = draw_maps()
    found = measure(logits[:1], logits[:1], labels[:1])
    assert (found.samples, found.f1) == (1, None)
    low, high = found.reference_ci95
    assert 0 <= low <= found.reference <= high <= 1


def test_samples_whose_places_are_all_of_no_class_are_not_counted() -> None:
    logits, labels = draw_maps()
    labels[10:] = -1
    assert measure(logits, logits, labels).samples == 10


def draw_padded(seed: int = 0) -> Array:
    """Labels of long samples of both classes and of many short ones, padded, nearly all of 0."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((SAMPLES, 60)) < 0.5).astype(np.int64)
    labels[20:] = rng.random((SAMPLES - 20, 60)) < 0.02
    labels[20:, 5:] = -100
    return labels


@pytest.mark.parametrize("columns", [True, False])
def test_one_answer_throughout_is_chance_where_samples_have_labels_of_other_numbers(
    columns: bool,
) -> None:
    labels = draw_padded()
    never = np.full(labels.shape, -4.0)
    found = measure(never, never, labels, form=LabelForm(columns=columns))
    assert found.chance == pytest.approx(found.reference)
    assert not found.above_chance
    scores = np.stack([np.ones(labels.shape), np.zeros(labels.shape)], axis=2)
    tokens = measure(scores, scores, labels, form=LabelForm(2))
    assert tokens.chance == pytest.approx(tokens.reference)
    assert not tokens.above_chance


def test_one_answer_throughout_is_chance_where_all_samples_have_the_same_shares() -> None:
    for ones in range(1, 40):
        labels = np.zeros((SAMPLES, 41), np.int64)
        labels[:, :ones] = 1
        never = np.full(labels.shape, -4.0)
        assert not measure(never, never, labels).above_chance
        knows = 8.0 * labels - 4
        assert measure(knows, never, labels).forgotten


@pytest.mark.parametrize("fill", [-np.inf, -1e9, 7.0])
def test_what_fills_places_without_a_label_is_no_score(fill: float) -> None:
    labels = draw_padded()
    probabilities = np.where(labels == 1, 0.8, 0.2)
    probabilities[labels < 0] = fill
    found = measure(probabilities, probabilities, labels)
    assert (found.threshold, found.reference) == (0.5, 1.0)


def test_probabilities_may_leave_0_to_1_by_rounding() -> None:
    logits, labels = draw_maps()
    chances = sigmoid(logits)
    assert chances.max() < 1
    chances[0, 0, 0, 0] = np.nextafter(np.float32(1), np.float32(2))
    chances[1, 0, 0, 0] = -1e-7
    found = measure(chances, chances, labels)
    assert found.threshold == 0.5
    assert found.above_chance
    half = chances.astype(np.float16)
    half[0, 0, 0, 0] = np.nextafter(np.float16(1), np.float16(2))
    assert measure(half, half, labels).threshold == 0.5
