"""The batcher's contract, with a real engine, and with callables where faults are planted."""

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import answer, draw

from deploy.engines import EngineSpec, open_engine
from deploy.engines.base import Array
from deploy.serving.batching.batcher import Batcher
from deploy.serving.batching.running import BatchRun, RunPlan, run_batch
from deploy.serving.batching.waiting import BatchPolicy, Job
from deploy.serving.errors import (
    DeadlineError,
    EngineFailedError,
    MalformedRequestError,
    NonFiniteError,
    QueueFullError,
    UnavailableError,
)
from export.errors import EngineError

PLAN = RunPlan({"y": 0})


class Doubler:
    """y = 2x; remembers the rows of every run, and can be held shut."""

    def __init__(self) -> None:
        self.runs: list[list[float]] = []
        self.entered = 0
        self.open = threading.Event()
        self.open.set()

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.entered += 1
        assert self.open.wait(30)
        x = feeds["x"]
        self.runs.append(x[:, 0].tolist())
        return {"y": x * 2}

    @contextmanager
    def held(self) -> Iterator[None]:
        self.open.clear()
        try:
            yield
        finally:
            self.open.set()


def rows_of(value: float, rows: int = 1, width: int = 2) -> dict[str, Array]:
    return {"x": np.full((rows, width), value, np.float32)}


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(scenario(), 60))  # type: ignore[arg-type]


async def started(
    *engines: Any, policy: BatchPolicy | None = None, plan: RunPlan = PLAN
) -> Batcher:
    batcher = Batcher(engines, policy or BatchPolicy(), plan)
    batcher.start()
    return batcher


async def until(holds: Callable[[], bool]) -> None:
    """Let threads and callbacks work until it holds."""
    while not holds():
        await asyncio.sleep(0.001)


def test_a_free_engine_is_used_at_once_whatever_the_delay() -> None:
    async def scenario() -> None:
        engine = Doubler()
        batcher = await started(engine, policy=BatchPolicy(max_delay_s=20.0))
        outputs = await asyncio.wait_for(batcher.submit(rows_of(3), 1), 5)
        assert outputs["y"].tolist() == [[6.0, 6.0]]
        await batcher.stop()

    run(scenario)


def test_runs_that_are_shorter_than_a_handover_happen_at_once() -> None:
    async def scenario() -> None:
        threads = []

        def quick(feeds: Mapping[str, Array]) -> dict[str, Array]:
            threads.append(threading.current_thread())
            if feeds["x"][0, 0] < 0:
                time.sleep(0.03)
            return {"y": feeds["x"] * 2}

        batcher = await started(quick)
        for value in range(50):
            outputs = await batcher.submit(rows_of(value), 1, timeout_s=5.0)
            assert outputs["y"][0, 0] == 2 * value
        assert threads[0] is not threading.main_thread()
        assert threading.main_thread() in threads
        await batcher.submit(rows_of(-1), 1)
        await batcher.submit(rows_of(1), 1)
        assert threads[-1] is not threading.main_thread()  # one slow run, and it is careful again
        assert batcher.pending == 0
        await batcher.stop()

    run(scenario)


def test_what_comes_while_the_engine_runs_shares_the_next_run() -> None:
    async def scenario() -> None:
        engine = Doubler()
        batcher = await started(engine, policy=BatchPolicy(max_batch=4))
        with engine.held():
            futures = [batcher.submit(rows_of(value), 1) for value in range(7)]
            assert batcher.waiting == 6
        answers = await asyncio.gather(*futures)
        assert engine.runs == [[0], [1, 2, 3, 4], [5, 6]]
        assert [a["y"][0, 0] for a in answers] == [2.0 * value for value in range(7)]
        await batcher.stop()

    run(scenario)


def test_a_part_of_a_run_waits_for_others_no_longer_than_it_may() -> None:
    async def scenario() -> None:
        engine = Doubler()
        batcher = await started(engine, policy=BatchPolicy(max_batch=4, max_delay_s=0.5))
        begun = time.monotonic()
        with engine.held():
            first = batcher.submit(rows_of(0), 1)
            second = batcher.submit(rows_of(1), 1)
        await first
        third = batcher.submit(rows_of(2), 1)  # the engine is free, but others wait
        await asyncio.gather(second, third)
        assert engine.runs == [[0], [1, 2]]
        assert time.monotonic() - begun > 0.45
        await batcher.stop()

    run(scenario)


def test_several_instances_run_at_the_same_time() -> None:
    async def scenario() -> None:
        barrier = threading.Barrier(3)

        def meet(feeds: Mapping[str, Array]) -> dict[str, Array]:
            barrier.wait(30)
            return {"y": feeds["x"]}

        batcher = await started(meet, meet, meet)
        await asyncio.gather(*[batcher.submit(rows_of(value), 1) for value in range(3)])
        await batcher.stop()

    run(scenario)


def test_more_rows_than_a_run_holds_are_refused_and_fewer_never_split() -> None:
    async def scenario() -> None:
        engine = Doubler()
        batcher = await started(engine, policy=BatchPolicy(max_batch=4))
        with pytest.raises(MalformedRequestError, match="may have 4 rows and has 5"):
            batcher.submit(rows_of(1, 5), 5)
        with engine.held():
            futures = [batcher.submit(rows_of(value, 3), 3) for value in range(3)]
        await asyncio.gather(*futures)
        assert [len(rows) for rows in engine.runs] == [3, 3, 3]
        await batcher.stop()

    run(scenario)


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def scenario() -> None:
        engine = Doubler()
        batcher = await started(engine, policy=BatchPolicy(queue_rows=2))
        futures = []
        refused: list[QueueFullError] = []
        with engine.held():
            for value in range(40):
                try:
                    futures.append(batcher.submit(rows_of(value), 1))
                except QueueFullError as error:
                    refused.append(error)
        answers = await asyncio.gather(*futures)
        assert len(refused) == 37
        assert all(error.retry_after and error.retry_after >= 1 for error in refused)
        assert [a["y"][0, 0] for a in answers] == [0, 2, 4]
        await batcher.stop()

    run(scenario)


@pytest.mark.parametrize(
    ("instances", "rows", "seconds"), [(1, 10, 20), (2, 10, 10), (1, 25, 50), (1, 100, 60)]
)
def test_whoever_is_refused_comes_back_when_the_queue_will_have_drained(
    monkeypatch: pytest.MonkeyPatch, instances: int, rows: int, seconds: int
) -> None:
    """Of an engine that takes 2 s a row by its clock; nobody is sent away for over a minute."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("deploy.serving.batching.running.time", clock)
    doubler = Doubler()

    def engine(feeds: Mapping[str, Array]) -> dict[str, Array]:
        now[0] += 2.0 * len(feeds["x"])
        return doubler(feeds)

    async def scenario() -> None:
        policy = BatchPolicy(max_batch=4, queue_rows=rows)
        batcher = await started(*[engine] * instances, policy=policy)
        for _ in range(30):
            await batcher.submit(rows_of(1.0, 2), 2)
        with doubler.held():
            taken = [batcher.submit(rows_of(1.0), 1) for _ in range(instances + rows)]
            with pytest.raises(QueueFullError) as refused:
                batcher.submit(rows_of(1.0), 1)
        assert refused.value.retry_after == seconds
        await asyncio.gather(*taken)
        await batcher.stop()

    run(scenario)


def test_what_expires_is_answered_on_time_and_never_run() -> None:
    async def scenario() -> None:
        engine = Doubler()
        batcher = await started(engine)
        with engine.held():
            running = batcher.submit(rows_of(0), 1, timeout_s=0.5)
            waiting = batcher.submit(rows_of(1), 1, timeout_s=0.5)
            neighbour = batcher.submit(rows_of(2), 1)
            with pytest.raises(DeadlineError, match="took too long"):
                await running
            with pytest.raises(DeadlineError, match="waited too long"):
                await waiting
        assert (await neighbour)["y"][0, 0] == 4
        assert engine.runs == [[0], [2]]
        await batcher.stop()

    run(scenario)


def test_what_is_cancelled_leaves_its_neighbours_alone() -> None:
    async def scenario() -> None:
        engine = Doubler()
        batcher = await started(engine)
        with engine.held():
            running = batcher.submit(rows_of(0), 1)
            futures = [batcher.submit(rows_of(value), 1) for value in range(1, 6)]
            futures[1].cancel()
            await until(lambda: batcher.waiting == 4)
        await until(lambda: batcher.pending == 0)
        assert engine.runs == [[0], [1, 3, 4, 5]]
        with engine.held():
            batch = [batcher.submit(rows_of(value), 1) for value in (6, 7, 8)]
            await until(lambda: engine.entered == 3)
            batch[0].cancel()
        outputs = await asyncio.gather(*batch[1:], running)
        assert [a["y"][0, 0] for a in outputs] == [14, 16, 0]
        assert batcher.pending == 0
        await batcher.stop()

    run(scenario)


def test_the_urgent_overtake_those_who_wait() -> None:
    async def scenario() -> None:
        engine = Doubler()
        batcher = await started(engine, policy=BatchPolicy(max_batch=1))
        with engine.held():
            futures = [batcher.submit(rows_of(0), 1)]
            futures += [batcher.submit(rows_of(p), 1, priority=p) for p in (200, 100, 1, 0)]
        await asyncio.gather(*futures)
        assert engine.runs == [[0], [1], [100], [0], [200]]
        await batcher.stop()

    run(scenario)


@pytest.mark.parametrize("error", [EngineError("bad /srv/model.onnx row"), TypeError("a bug")])
def test_only_the_member_that_fails_is_to_blame(error: Exception) -> None:
    async def scenario() -> None:
        engine = Doubler()

        def picky(feeds: Mapping[str, Array]) -> dict[str, Array]:
            if (feeds["x"] == 13).any():
                raise error
            return engine(feeds)

        batcher = await started(picky)
        with engine.held():
            futures = [batcher.submit(rows_of(value), 1) for value in (0, 1, 13, 2)]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert isinstance(outcomes[2], EngineFailedError)
        assert "/srv" not in str(outcomes[2])
        assert "a bug" not in str(outcomes[2])
        good = [outcome["y"][0, 0] for outcome in outcomes if isinstance(outcome, dict)]
        assert good == [0, 2, 4]
        assert engine.runs == [[0], [1], [2]]
        await batcher.submit(rows_of(5), 1)  # the thread lives on
        await batcher.stop()

    run(scenario)


@pytest.mark.parametrize(("requests", "calls"), [(1, 1), (2, 3)])
def test_who_fails_alone_is_not_run_again(requests: int, calls: int) -> None:
    entered = []

    def engine(feeds: Mapping[str, Array]) -> dict[str, Array]:
        entered.append(len(feeds["x"]))
        raise EngineError("out of memory")

    jobs = [Job(rows_of(1.0), 1, 0, 0.0, lambda outcome: None) for _ in range(requests)]
    done = run_batch(engine, jobs, PLAN)
    assert (done.executions, len(entered)) == (calls, calls)
    assert len(done.outcomes) == requests
    for outcome in done.outcomes:
        assert isinstance(outcome, EngineFailedError)
        assert "out of memory" in str(outcome)


def test_a_run_takes_what_joining_computing_and_splitting_take() -> None:
    assert BatchRun([], 1, 0.0, join_s=1.0, compute_s=2.0, split_s=4.0).total_s == 7.0


def test_a_run_that_fails_beside_its_engine_is_answered_and_the_next_one_runs() -> None:
    def inspect(feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        if feeds["x"][0, 0] < 0:
            raise MemoryError

    async def scenario() -> None:
        batcher = await started(Doubler(), plan=RunPlan({"y": 0}, inspect))
        for _ in range(20):  # in the engine's thread, and on the event loop
            with pytest.raises(EngineFailedError, match="its log says how"):
                await batcher.submit(rows_of(-1), 1)
            assert (await batcher.submit(rows_of(1), 1))["y"][0, 0] == 2
        await batcher.stop()

    run(scenario)


def test_an_engine_that_loses_rows_is_found_out() -> None:
    async def scenario() -> None:
        gate = Doubler()

        def short(feeds: Mapping[str, Array]) -> dict[str, Array]:
            return {"y": gate(feeds)["y"][:1]}

        batcher = await started(short)
        with gate.held():
            futures = [batcher.submit(rows_of(value), 1) for value in range(3)]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [dict] + [EngineFailedError] * 2
        await batcher.stop()

    run(scenario)


def test_runs_are_filled_up_to_the_sizes_that_the_engine_has_programs_for() -> None:
    async def scenario() -> None:
        engine = Doubler()
        plan = RunPlan({"y": 0}, sizes=(1, 4, 8))
        batcher = await started(engine, policy=BatchPolicy(max_batch=8), plan=plan)
        with engine.held():
            futures = [batcher.submit(rows_of(value), 1) for value in range(4)]
        futures.append(batcher.submit(rows_of(9, 5), 5))
        answers = await asyncio.gather(*futures)
        assert engine.runs == [[0], [1, 2, 3, *[9] * 5]]
        assert [a["y"].shape[0] for a in answers] == [1, 1, 1, 1, 5]
        alone = await batcher.submit(rows_of(3, 2), 2)
        assert engine.runs[-1] == [3, 3, 3, 3]
        assert alone["y"].tolist() == [[6, 6], [6, 6]]
        await batcher.stop()

    run(scenario)


def test_outputs_are_looked_at_member_by_member() -> None:
    def inspect(feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> NonFiniteError | None:
        assert np.array_equal(feeds["x"] * 2, outputs["y"], equal_nan=True)
        return None if np.isfinite(outputs["y"]).all() else NonFiniteError("NaN")

    async def scenario() -> None:
        engine = Doubler()
        batcher = await started(engine, plan=RunPlan({"y": 0}, inspect))
        with engine.held():
            futures = [batcher.submit(rows_of(value), 1) for value in (0, 1, np.nan, 2)]
        outcomes = await asyncio.gather(*futures, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [dict, dict, NonFiniteError, dict]
        await batcher.stop()

    run(scenario)


def test_stopping_answers_what_was_taken_and_refuses_the_rest() -> None:
    async def scenario() -> None:
        before = threading.enumerate()
        engine = Doubler()
        batcher = await started(engine, policy=BatchPolicy(max_batch=2, max_delay_s=60.0))
        assert [t.name for t in threading.enumerate() if t not in before] == ["engine-0"]
        with engine.held():
            futures = [batcher.submit(rows_of(value), 1) for value in range(6)]
            stopping = asyncio.ensure_future(batcher.stop())
            await asyncio.sleep(0)
            with pytest.raises(UnavailableError, match="shutting down"):
                batcher.submit(rows_of(9), 1)
        answers = await asyncio.gather(*futures)
        await stopping
        assert [a["y"][0, 0] for a in answers] == [0, 2, 4, 6, 8, 10]
        new = [thread for thread in threading.enumerate() if thread not in before]
        assert not [thread for thread in new if thread.name.startswith("engine-")]

    run(scenario)


def test_batched_answers_of_a_real_engine_equal_those_of_samples_alone(tiny_onnx: Path) -> None:
    spec = EngineSpec("onnxruntime", "fp32", str(tiny_onnx), threads=1)

    async def scenario() -> None:
        with open_engine(spec) as one, open_engine(spec) as two:
            batcher = Batcher([one, two], BatchPolicy(max_batch=16), RunPlan({"logits": 0}))
            batcher.start()
            samples = [draw(1 + seed % 3, seed) for seed in range(120)]
            got = await asyncio.gather(*[batcher.submit({"x": x}, len(x)) for x in samples])
            for x, outputs in zip(samples, got, strict=True):
                np.testing.assert_allclose(outputs["logits"], answer(x), rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(outputs["logits"], one({"x": x})["logits"], rtol=1e-6)
            await batcher.stop()

    run(scenario)


class Schedule:
    """Random requests against a batcher with an engine that sometimes fails; all are told apart."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seen: list[float] = []
        self.lock = threading.Lock()

    def engine(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        x = feeds["x"]
        assert len(x) <= 5
        time.sleep(self.random.choice((0, 0, 0.0005)))
        if (x % 17 == 16).any():
            raise EngineError("one of these fails")
        with self.lock:
            self.seen += x[:, 0].tolist()
        return {"y": x * 2}

    async def client(self, batcher: Batcher, value: int) -> str:
        await asyncio.sleep(self.random.random() * 0.02)
        rows, width = self.random.randint(1, 5), self.random.choice((2, 3))
        timeout = self.random.choice((None, None, 0.001, 5.0))
        try:
            future = batcher.submit(
                rows_of(value, rows, width), rows, priority=value % 3, timeout_s=timeout
            )
            if self.random.random() < 0.15:
                self.random.choice((future.cancel, lambda: None))()
            outputs = await future
        except QueueFullError:
            return "full"
        except DeadlineError:
            return "late"
        except EngineFailedError:
            assert value % 17 == 16
            return "failed"
        except asyncio.CancelledError:
            return "cancelled"
        assert value % 17 != 16
        np.testing.assert_array_equal(outputs["y"], np.full((rows, width), value * 2.0))
        return "answered"


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    instances=st.integers(1, 3),
    delay=st.sampled_from((0.0, 0.002)),
)
def test_no_answer_is_lost_or_given_to_another(seed: int, instances: int, delay: float) -> None:
    schedule = Schedule(seed)

    async def scenario() -> None:
        policy = BatchPolicy(max_batch=5, max_delay_s=delay, queue_rows=60)
        batcher = await started(*[schedule.engine] * instances, policy=policy)
        told = await asyncio.gather(*[schedule.client(batcher, value) for value in range(80)])
        await batcher.stop()
        assert batcher.pending == 0
        assert told.count("answered") > 0
        for value, what in enumerate(told):
            if what == "full":
                assert value not in schedule.seen

    run(scenario)
