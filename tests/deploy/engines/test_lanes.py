"""A few calls side by side, each in a lane of its own; what fails is closed and made anew."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from deploy.engines.lanes import LanePool
from export.errors import EngineError


class Lane:
    def __init__(self, *, broken: bool = False) -> None:
        self.closed = 0
        self.broken = broken

    def close(self) -> None:
        self.closed += 1
        if self.broken:
            raise EngineError("cannot be closed")


def make(size: int = 2, *, broken: bool = False) -> tuple[LanePool[Lane], list[Lane]]:
    opened: list[Lane] = []

    def open_lane() -> Lane:
        opened.append(Lane(broken=broken))
        return opened[-1]

    return LanePool(open_lane, size), opened


def test_one_after_the_other_needs_one_lane() -> None:
    pool, opened = make()
    for _ in range(5):
        with pool.take():
            pass
    assert len(opened) == 1
    pool.close()
    assert opened[0].closed == 1


def test_never_more_than_its_size_and_never_two_in_one() -> None:
    pool, opened = make(3)
    lock, busy, most = threading.Lock(), set[int](), 0

    def work(_: int) -> None:
        nonlocal most
        with pool.take() as lane:
            with lock:
                assert id(lane) not in busy
                busy.add(id(lane))
                most = max(most, len(busy))
            threading.Event().wait(0.001)
            with lock:
                busy.remove(id(lane))

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(120)))
    assert most <= len(opened) <= 3


def test_a_lane_that_failed_is_closed_and_another_opened() -> None:
    pool, opened = make(1)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="of the call"), pool.take():
            raise RuntimeError("of the call")
    with pool.take():
        pass
    assert [lane.closed for lane in opened] == [1, 1, 1, 0]


def test_a_failure_to_close_does_not_hide_the_calls_own() -> None:
    pool, opened = make(1, broken=True)
    with pytest.raises(RuntimeError, match="of the call"), pool.take():
        raise RuntimeError("of the call")
    assert opened[0].closed == 1


def test_every_lane_is_closed_even_where_one_fails() -> None:
    pool, opened = make(2, broken=True)
    with pool.take(), pool.take():
        pass
    with pytest.raises(EngineError, match="cannot be closed"):
        pool.close()
    assert [lane.closed for lane in opened] == [1, 1]


def test_a_lane_that_does_not_open_takes_no_place() -> None:
    failing = True

    def open_lane() -> Lane:
        if failing:
            raise EngineError("no memory")
        return Lane()

    pool = LanePool(open_lane, 1)
    for _ in range(3):
        with pytest.raises(EngineError, match="no memory"), pool.take():
            pass
    failing = False
    with pool.take():
        pass


def test_closing_waits_for_calls_and_refuses_later_ones() -> None:
    pool, opened = make(1)
    running, go = threading.Event(), threading.Event()

    def call() -> None:
        with pool.take():
            running.set()
            assert go.wait(10)

    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(call)
        assert running.wait(10)
        waiting = threads.submit(call)
        closing = threads.submit(pool.close)
        with pytest.raises(EngineError, match="closed"):
            waiting.result(10)
        assert not closing.done()
        assert opened[0].closed == 0
        go.set()
        first.result(10)
        closing.result(10)
    assert opened[0].closed == 1
    with pytest.raises(EngineError, match="closed"), pool.take():
        pass
