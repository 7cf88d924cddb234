"""Requests share a run where that was seen to pay, and only there."""

import asyncio
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from deploy.engines.base import Array
from deploy.serving.batching.batcher import Batcher
from deploy.serving.batching.joining import JoiningGain
from deploy.serving.batching.running import RunPlan
from deploy.serving.batching.waiting import BatchPolicy

ROWS = 8


def seen(*, seconds_alone: float, seconds_shared: float, runs: int = 10) -> JoiningGain:
    gain = JoiningGain()
    for _ in range(runs):
        gain.observe(1, 1, seconds_alone)
        gain.observe(ROWS, ROWS, seconds_shared)
    return gain


def test_until_it_is_known_requests_share() -> None:
    assert JoiningGain().pays(ROWS)
    assert seen(seconds_alone=0.01, seconds_shared=0.2, runs=3).pays(ROWS)


@pytest.mark.parametrize(
    ("shared", "pays", "pressed"),
    [
        (0.010, True, True),
        (0.060, True, True),
        (0.070, False, True),
        (0.079, False, False),
        (0.160, False, False),
    ],
)
def test_sharing_pays_where_a_row_takes_less_time(shared: float, pays: bool, pressed: bool) -> None:
    gain = seen(seconds_alone=0.01, seconds_shared=shared)
    assert gain.pays(ROWS) == pays
    assert gain.pays(ROWS, pressed=True) == pressed


def test_runs_that_are_shorter_than_their_handover_are_shared() -> None:
    assert seen(seconds_alone=1e-5, seconds_shared=ROWS * 1e-5).pays(ROWS)


def test_sizes_are_told_apart() -> None:
    gain = seen(seconds_alone=0.01, seconds_shared=0.01)
    for _ in range(10):
        gain.observe(2, 2, 0.03)
    assert gain.pays(ROWS)
    assert not gain.pays(2)


def test_what_is_not_known_of_a_size_is_taken_from_the_next_larger_one() -> None:
    gain = JoiningGain({1: 0.01, 8: 0.079})
    assert not gain.pays(8)
    assert not gain.pays(3)
    assert gain.pays(16)
    assert JoiningGain({1: 0.01, 8: 0.02}).pays(3)


def test_it_looks_again_and_changes_its_mind() -> None:
    gain = seen(seconds_alone=0.01, seconds_shared=0.09)
    asked = [gain.pays(ROWS) for _ in range(200)]
    assert 1 <= sum(asked) <= 4
    for _ in range(40):
        gain.observe(ROWS, ROWS, 0.01)
    assert gain.pays(ROWS)


def test_few_runs_say_as_much_as_many() -> None:
    for alone, shared in ((4, 40), (40, 4)):
        for seconds, pays in ((0.060, True), (0.079, False)):
            gain = JoiningGain()
            for _ in range(alone):
                gain.observe(1, 1, 0.01)
            for _ in range(shared):
                gain.observe(ROWS, ROWS, seconds)
            assert gain.pays(ROWS) is pays


def test_what_was_seen_a_thousand_times_is_forgotten_after_forty_others() -> None:
    gain = seen(seconds_alone=0.01, seconds_shared=0.01, runs=1000)
    assert gain.pays(ROWS)
    for _ in range(40):
        gain.observe(ROWS, ROWS, 0.16)
    assert not gain.pays(ROWS)


class Clock:
    """The time that runs are measured by; it stands still but for what the engine takes."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("deploy.serving.batching.running.time", made)
    return made


def serve(clock: Clock, seconds: Callable[[int], float], policy: BatchPolicy) -> list[int]:
    """Rows of every run when four requests are made again and again, 40 times."""
    sizes: list[int] = []

    def engine(feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = len(feeds["x"])
        sizes.append(rows)
        clock.now += seconds(rows)
        return {"y": feeds["x"]}

    async def scenario() -> None:
        batcher = Batcher([engine], policy, RunPlan({"y": 0}))
        batcher.start()
        for value in range(40):
            x = np.full((1, 2), value, np.float32)
            answers = await asyncio.gather(*(batcher.submit({"x": x + n}, 1) for n in range(4)))
            assert [a["y"][0, 0] for a in answers] == [value + n for n in range(4)]
        await batcher.stop()

    asyncio.run(scenario())
    return sizes


def grow(rows: int) -> float:
    """Seconds of a run that loses by being shared."""
    return 0.001 * rows**2


def test_an_engine_that_gains_nothing_comes_to_run_requests_alone(clock: Clock) -> None:
    sizes = serve(clock, grow, BatchPolicy())
    assert sizes[:2] == [1, 3]
    assert sizes[-40:].count(1) >= 36  # now and then it looks again


def test_an_engine_that_gains_goes_on_sharing(clock: Clock) -> None:
    assert serve(clock, lambda rows: 0.003, BatchPolicy())[-20:] == [1, 3] * 10


def test_whoever_asked_for_delay_gets_shared_runs(clock: Clock) -> None:
    assert max(serve(clock, grow, BatchPolicy(max_delay_s=0.002))[-20:]) > 1
