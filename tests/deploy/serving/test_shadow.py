"""A share of the requests is compared with the float32 model, and none waits for that."""

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from servers import WAIT_S, rows, serving, wait_until

from deploy.engines.base import Array
from deploy.serving.models.shadow import BACKLOG, ShadowSampler
from export.errors import EngineError


def double(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": feeds["x"] * 2}


def feed(value: float, size: int = 4) -> dict[str, Array]:
    return {"x": np.full((1, size), value, np.float32)}


def wait_for(sampler: ShadowSampler, samples: int) -> None:
    wait_until(lambda: sampler.compared + sampler.failed >= samples)


def start_behind_gate() -> tuple[threading.Event, ShadowSampler]:
    """A sampler whose reference answers once the gate is set."""
    gate = threading.Event()

    def slow(feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert gate.wait(WAIT_S)
        return double(feeds)

    sampler = ShadowSampler(slow, 1.0)
    sampler.start()
    return gate, sampler


def test_the_difference_is_measured() -> None:
    sampler = ShadowSampler(double, 1.0)
    sampler.start()
    exact = double(feed(1.0))["y"]
    sampler.offer(feed(1.0), {"y": exact})
    wait_for(sampler, 1)
    assert (sampler.largest, sampler.sqnr_db) == (0.0, None)
    sampler.offer(feed(1.0), {"y": exact + np.float32(0.2)})
    wait_for(sampler, 2)
    sampler.stop()
    assert sampler.largest == pytest.approx(0.1, rel=1e-5)
    assert sampler.sqnr_db == pytest.approx(10 * np.log10(2 * 4 / 0.04), rel=1e-4)


def test_what_there_is_no_time_for_is_dropped_and_nobody_waits() -> None:
    gate, sampler = start_behind_gate()
    for _ in range(100):  # whoever waited here would wait for what comes behind it
        sampler.offer(feed(1.0), double(feed(1.0)))
    assert sampler.dropped >= 100 - BACKLOG - 1
    gate.set()
    sampler.stop()
    assert sampler.compared <= BACKLOG + 1


def test_a_share_is_taken_and_large_ones_are_not() -> None:
    sampler = ShadowSampler(double, 0.0)
    sampler.start()
    sampler.offer(feed(1.0), double(feed(1.0)))
    assert (sampler.compared, sampler.dropped) == (0, 0)
    sampler.share = 1.0
    large = feed(1.0, 5 * 2**20)
    sampler.offer(large, {"y": large["x"]})
    assert sampler.dropped == 1
    sampler.stop()


def test_a_reference_that_fails_is_counted() -> None:
    def fail(feeds: Mapping[str, Array]) -> dict[str, Array]:
        raise EngineError("no")

    sampler = ShadowSampler(fail, 1.0)
    sampler.start()
    sampler.offer(feed(1.0), double(feed(1.0)))
    wait_for(sampler, 1)
    sampler.stop()
    assert (sampler.failed, sampler.compared) == (1, 0)


def test_a_sample_that_cannot_be_compared_is_counted_and_the_next_one_is_compared() -> None:
    sampler = ShadowSampler(double, 1.0)
    sampler.start()
    sampler.offer(feed(1.0), {"y": np.ones((1, 3), np.float32)})
    sampler.offer(feed(1.0), {"z": np.ones((1, 4), np.float32)})
    sampler.offer(feed(1.0), double(feed(1.0)))
    wait_for(sampler, 3)
    assert sampler.stop()
    assert (sampler.failed, sampler.compared) == (2, 1)


def test_values_whose_squares_are_beyond_float64_leave_the_ratio_as_it_is() -> None:
    sampler = ShadowSampler(double, 1.0)
    sampler.start()
    for value in (1.0, 1e200):
        x = np.full((1, 4), value)
        sampler.offer({"x": x}, {"y": 2.2 * x})
    wait_for(sampler, 2)
    assert sampler.stop()
    assert sampler.sqnr_db == pytest.approx(20.0)


def test_a_reference_that_does_not_come_back_is_not_waited_for() -> None:
    gate, sampler = start_behind_gate()
    sampler.offer(feed(1.0), double(feed(1.0)))
    wait_until(sampler._backlog.empty)
    assert not sampler.stop(0.05)
    gate.set()


@pytest.mark.thorough
def test_a_server_shows_it_in_its_metrics(pristine: Path) -> None:
    labels = '{model="tiny",version="1"}'
    with serving(pristine, "--shadow", "1") as server:
        for _ in range(5):
            assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 200
        wait_until(lambda: server.metrics()[f"deploy_shadow_requests_total{labels}"] >= 5)
        assert server.metrics()[f"deploy_shadow_largest_difference{labels}"] < 1e-5
    with serving(pristine, "--shadow", "1", "--engine", "onnxruntime-fp32") as server:
        assert f"deploy_shadow_requests_total{labels}" not in server.metrics()
