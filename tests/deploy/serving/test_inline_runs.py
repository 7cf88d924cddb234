"""Short runs happen on the event loop; what may take longer must not hold it."""

import asyncio
import threading
from collections.abc import Mapping

import numpy as np
import pytest

from deploy.engines.base import Array
from deploy.serving.batching import inline as module
from deploy.serving.batching.batcher import Batcher
from deploy.serving.batching.inline import INLINE_S, InlineRuns
from deploy.serving.batching.running import RunPlan
from deploy.serving.batching.waiting import BatchPolicy

SHORT, LONG = INLINE_S / 5, INLINE_S * 5


def after(*seconds: float, runs: InlineRuns | None = None) -> InlineRuns:
    """What is decided after runs of so many seconds, each where it was allowed."""
    runs = runs or InlineRuns()
    for value in seconds:
        runs.observe(value, 100, inline=runs.on)
    return runs


def test_nothing_is_known_at_first() -> None:
    assert not InlineRuns().allow(0)
    assert not after(*[SHORT] * 7).allow(100)


def test_short_runs_come_to_happen_on_the_event_loop_and_long_ones_do_not() -> None:
    assert after(*[SHORT] * 8).allow(100)
    assert not after(*[LONG] * 100).allow(100)


def test_runs_in_threads_that_had_to_wait_for_the_interpreter_do_not_count() -> None:
    runs = InlineRuns()
    for seconds in (SHORT, LONG, LONG) * 3:
        runs.observe(seconds, 100, inline=False)
    assert runs.allow(100)


def test_a_stray_long_run_changes_nothing_and_many_do() -> None:
    runs = after(*[SHORT] * 20)
    assert after(LONG, *[SHORT] * 3, runs=runs).on
    assert not after(*[LONG] * 12, runs=runs).on


@pytest.mark.parametrize("inline", [True, False])
def test_a_run_that_would_hold_everybody_ends_it_for_long(inline: bool) -> None:
    runs = after(*[SHORT] * 20)
    runs.observe(0.1, 100, inline=inline)
    assert not runs.on
    assert not after(*[SHORT] * 200, runs=runs).on
    assert after(*[SHORT] * 100, runs=runs).on


def test_a_larger_request_is_not_allowed_until_it_was_seen() -> None:
    runs = after(*[SHORT] * 20)
    assert not runs.allow(101)
    runs.observe(SHORT, 101, inline=False)
    assert runs.allow(101)


def test_of_runs_as_long_those_stay_whose_input_another_core_would_have_to_fetch() -> None:
    seconds, few, many = 1.5 * INLINE_S, 100, 2**20
    runs = InlineRuns()
    for _ in range(20):
        runs.observe(seconds, many, inline=runs.on)
    assert runs.allow(many)
    for _ in range(40):
        runs.observe(seconds, few, inline=runs.on)
    assert not runs.on


def test_however_much_there_is_to_fetch_the_event_loop_is_not_held_for_long() -> None:
    runs = InlineRuns()
    for _ in range(40):
        runs.observe(LONG, 2**30, inline=runs.on)
    assert not runs.on


def test_a_size_that_takes_long_holds_the_event_loop_once_among_short_ones() -> None:
    runs = after(*[SHORT] * 20)
    runs.observe(SHORT, 800, inline=False)
    assert runs.allow(800)
    runs.observe(0.01, 800, inline=True)
    for _ in range(30):
        assert runs.allow(100)
        assert not runs.allow(800)
        runs.observe(SHORT, 100, inline=True)
        runs.observe(0.01, 800, inline=False)


def test_a_request_larger_than_all_before_it_does_not_run_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "INLINE_S", 10.0)
    threads: list[str] = []

    def engine(feeds: Mapping[str, Array]) -> dict[str, Array]:
        threads.append(threading.current_thread().name)
        return {"y": feeds["x"]}

    async def scenario() -> None:
        batcher = Batcher([engine], BatchPolicy(), RunPlan({"y": 0}))
        batcher.start()
        for width in [2] * 9 + [2, 2000, 2000, 2]:
            await batcher.submit({"x": np.zeros((1, width), np.float32)}, 1)
        await batcher.stop()

    asyncio.run(scenario())
    here = threading.current_thread().name
    assert threads[-4:] == [here, "engine-0", here, here]
