"""F1 against scikit-learn, its interval against simulation, and which classes count as lost."""

from typing import Any

import numpy as np
import pytest

from deploy.judging.class_scores import ClassCounts, ClassScores

Array = np.ndarray[Any, Any]


def score(labels: Array, ours: Array, theirs: Array, classes: int) -> ClassScores:
    counts = ClassCounts()
    for part in np.array_split(np.arange(len(labels)), 3):
        counts.update(labels[part], ours[part], theirs[part], classes)
    found = counts.result(np.asarray((labels >= 0).sum()))
    assert found is not None
    return found


def blur(labels: Array, share: float, classes: int, seed: int) -> Array:
    """The labels, but anything in some places, in some samples more than in others."""
    rng = np.random.default_rng(seed)
    rates = np.clip(share * rng.exponential(size=(len(labels), 1)), 0, 1)
    return np.where(
        rng.random(labels.shape) < rates, rng.integers(0, classes, labels.shape), labels
    )


def draw(samples: int, seed: int, places: int = 30) -> Array:
    return np.random.default_rng(seed).choice(4, (samples, places), p=[0.8, 0.1, 0.07, 0.03])


def test_mean_f1_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    labels = draw(60, 0)
    ours, theirs = blur(labels, 0.1, 4, 1), blur(labels, 0.2, 4, 2)
    found = score(labels, ours, theirs, 4)
    for value, answers in ((found.reference, ours), (found.candidate, theirs)):
        assert value == pytest.approx(f1_score(labels.ravel(), answers.ravel(), average="macro"))
    assert found.drop == pytest.approx(found.reference - found.candidate)
    assert (found.classes, found.lost) == (4, ())


def test_a_class_that_occurs_in_few_samples_or_in_none_is_left_out() -> None:
    from sklearn.metrics import f1_score

    labels = np.where(draw(60, 0) == 3, 0, draw(60, 0))
    labels[:9, 0] = 3  # in nine samples
    answers = blur(labels, 0.1, 6, 1)  # and answers of classes that nothing is labelled with
    found = score(labels, answers, answers, 6)
    expected = f1_score(labels.ravel(), answers.ravel(), labels=[0, 1, 2], average="macro")
    assert (found.classes, found.reference) == (3, pytest.approx(expected))


def test_places_without_a_label_count_for_nothing() -> None:
    labels = draw(60, 0)
    answers = blur(labels, 0.1, 4, 1)
    kept = np.random.default_rng(3).random(labels.shape) < 0.7
    masked = [np.where(kept, values, -1) for values in (labels, answers, answers)]
    from sklearn.metrics import f1_score

    found = score(masked[0], masked[1], masked[2], 4)
    assert found.reference == pytest.approx(f1_score(labels[kept], answers[kept], average="macro"))


def test_many_classes_are_counted_in_parts_that_add_up() -> None:
    labels = draw(40, 5)
    answers = blur(labels, 0.2, 4, 6)
    few, many = score(labels, answers, labels, 4), score(labels, answers, labels, 2**20)
    assert few == many


def test_the_interval_covers_the_true_drop_as_often_as_it_says() -> None:
    def measure(samples: int, seed: int) -> ClassScores:
        labels = draw(samples, seed)
        ours = blur(labels, 0.05, 4, seed + 10_000)
        return score(labels, ours, blur(ours, 0.04, 4, seed + 20_000), 4)

    true = measure(100_000, 1).drop
    intervals = [measure(150, seed).drop_ci95 for seed in range(300)]
    covered = sum(low <= true <= high for low, high in intervals)
    assert 273 <= covered <= 297


def test_an_engine_that_answers_a_rare_class_as_another_has_lost_it() -> None:
    labels = draw(400, 7)
    ours = blur(labels, 0.05, 4, 8)
    swapped = np.where(ours == 3, 2, ours)
    found = score(labels, ours, swapped, 4)
    assert found.lost == (3,)
    assert found.drop > 0.2
    assert found.drop_ci95[0] > 0


def test_a_class_that_the_reference_does_not_know_cannot_be_lost() -> None:
    labels = draw(400, 7)
    ours = np.where(labels == 3, 0, labels)
    assert score(labels, ours, ours, 4).lost == ()


def test_honest_noise_loses_no_class() -> None:
    for seed in range(40):
        labels = draw(300, seed, places=4)
        ours = blur(labels, 0.2, 4, seed + 100)
        assert score(labels, ours, blur(ours, 0.03, 4, seed + 200), 4).lost == ()


def test_without_labels_there_is_no_score() -> None:
    assert ClassCounts().result(np.asarray(0)) is None
    counts = ClassCounts()
    counts.update(*([np.full((5, 3), -1)] * 3), 2)
    assert counts.result(np.asarray(0)) is None


def test_of_a_thousand_classes_that_are_hardly_known_none_is_lost_by_luck() -> None:
    """Each hit 4 times of 40 by both, for the most part in other samples, as rare words are."""
    rng = np.random.default_rng(0)
    labels = np.stack([rng.permutation(1000) for _ in range(40)])
    ours = np.where(rng.random(labels.shape) < 0.1, labels, rng.permuted(labels, axis=1))
    redrawn = np.where(rng.random(labels.shape) < 0.1, labels, rng.permuted(labels, axis=1))
    theirs = np.where(rng.random(labels.shape) < 0.4, redrawn, ours)
    found = score(labels, ours, theirs, 1000)
    assert found.drop_ci95[0] < 0 < found.drop_ci95[1]
    assert (found.classes, found.lost) == (1000, ())


def test_a_class_of_ten_samples_is_lost_where_it_is_never_answered() -> None:
    labels = draw(400, 7)
    labels[labels == 3] = 0
    labels[5:15, 4] = 3
    ours = np.where(np.arange(400)[:, None] == 7, 0, labels)  # one of them missed
    assert score(labels, ours, ours, 4).lost == ()
    assert score(labels, ours, np.where(ours == 3, 0, ours), 4).lost == (3,)


def test_a_class_that_sinks_to_chance_from_just_above_it_is_not_lost() -> None:
    """Of a class that half of the places are of, F1 is a half by chance."""
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 2, (30, 4))
    ours, theirs = (
        np.where(rng.random(labels.shape) < p, labels, 1 - labels) for p in (0.56, 0.48)
    )
    found = score(labels, ours, theirs, 2)
    assert found.reference > 0.55
    assert found.candidate < 0.5
    assert found.lost == ()
    many = [np.tile(each, (80, 1)) for each in (labels, ours, theirs)]
    assert score(*many, 2).lost == (0, 1)
