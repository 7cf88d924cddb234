"""Classes without a labelled sample are told of, but where chance leaves out as many."""

import numpy as np
import pytest

from deploy.judging.label_notes import warn_of_unseen


def draw(classes: int, samples: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, classes, samples)


@pytest.mark.parametrize(("classes", "samples"), [(2, 40), (10, 300), (100, 1000), (1000, 1000)])
def test_nothing_is_said_of_labels_drawn_from_all_classes(classes: int, samples: int) -> None:
    for seed in range(50):
        labels = np.random.default_rng(seed).integers(0, classes, samples)
        assert warn_of_unseen(labels, classes, "logits") is None


def test_a_single_class_that_is_missing_is_named() -> None:
    labels = draw(10, 600)
    said = warn_of_unseen(labels[labels != 4], 10, "logits")
    assert said is not None
    assert said.startswith("1 of the 10 classes of 'logits' (4) are those of no sample")


def test_half_of_many_classes_that_are_missing_is_counted() -> None:
    said = warn_of_unseen(draw(50, 600), 100, "logits")
    assert said is not None
    assert said.startswith(
        "50 of the 100 classes of 'logits' (50, 51, 52, 53, 54, 55, 56, 57 and 42"
    )
    assert "Pass samples of every class" in said
