"""Captures run alone; everything else side by side."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from deploy.engines.capture_gate import CaptureGate

LIMIT = 20


def test_work_runs_side_by_side() -> None:
    gate, meeting = CaptureGate(), threading.Barrier(4)

    def work() -> None:
        with gate.together():
            meeting.wait(LIMIT)  # breaks unless all four are in

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result(LIMIT)


def test_a_capture_is_alone_and_waits_for_those_inside() -> None:
    gate, inside, alone = CaptureGate(), [], []

    def work(index: int) -> None:
        for _ in range(50):
            if index % 4 == 0:
                with gate.alone():
                    alone.append(index)
                    assert alone == [index]
                    assert not inside
                    alone.clear()
            else:
                with gate.together():
                    inside.append(index)
                    assert not alone
                    inside.remove(index)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, index) for index in range(8)]:
            future.result(LIMIT)


def test_who_comes_after_a_waiting_capture_goes_after_it() -> None:
    gate, order = CaptureGate(), []
    waits, inside = threading.Event(), threading.Event()

    def capture() -> None:
        inside.wait(LIMIT)
        waits.set()
        with gate.alone():
            order.append("capture")

    def follow() -> None:
        with gate.together():
            order.append("work")

    with ThreadPoolExecutor(2) as pool:
        with gate.together():
            first = pool.submit(capture)
            inside.set()
            waits.wait(LIMIT)
            until = time.monotonic() + LIMIT
            while not gate._waiting and time.monotonic() < until:
                time.sleep(0.001)
            second = pool.submit(follow)
            assert order == []
        first.result(LIMIT)
        second.result(LIMIT)
    assert order == ["capture", "work"]


def test_a_failure_leaves_the_gate_open() -> None:
    gate = CaptureGate()
    for enter in (gate.alone, gate.together, gate.alone):
        with pytest.raises(KeyError), enter():
            raise KeyError
    with gate.alone():
        pass
