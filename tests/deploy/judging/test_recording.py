"""A recorded reference asks the real one once for each batch, and says the same."""

import numpy as np
import pytest

from deploy.engines.base import Feeds
from deploy.judging import recording
from deploy.judging.recording import RecordedReference
from export.artifacts import TensorSpec


class Doubling:
    """Twice its input; counts how often it is asked."""

    outputs = (TensorSpec("y", ("batch", 2), "float32"),)

    def __init__(self) -> None:
        self.asked = 0
        self.floors = 0

    def __call__(self, feeds: Feeds) -> dict[str, np.ndarray]:
        self.asked += 1
        return {"y": 2 * feeds["x"]}

    def floor(
        self, feeds: Feeds, eager: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        self.floors += 1
        return {"y": 2 * feeds["x"].astype(np.float64)}, eager


def batch(value: float) -> dict[str, np.ndarray]:
    return {"x": np.full((1, 2), value, np.float32)}


def test_equal_batches_are_asked_once_in_any_order() -> None:
    real = Doubling()
    recorded = RecordedReference(real)
    for value in (1.0, 2.0, 2.0, 1.0):
        answer = recorded(batch(value))
        np.testing.assert_array_equal(answer["y"], [[2 * value, 2 * value]])
        exact, noisy = recorded.floor(batch(value), answer) or ({}, {})
        np.testing.assert_array_equal(exact["y"], [[2 * value, 2 * value]])
        np.testing.assert_array_equal(noisy["y"], answer["y"])
    assert (real.asked, real.floors) == (2, 2)
    assert recorded.outputs == real.outputs


def test_beyond_its_room_it_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_LIMIT_BYTES", 12)
    real = Doubling()
    recorded = RecordedReference(real)
    for value in (1.0, 2.0, 2.0, 1.0):
        assert recorded(batch(value))["y"][0, 0] == 2 * value
    assert real.asked == 3
