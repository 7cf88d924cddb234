"""Plainly at first, then captured, then replayed; what cannot be captured says why and runs."""

import pytest
from host_gpu import HostGpu, HostMemory

from deploy.engines.cuda_graphs import GraphReplay
from export.errors import EngineError


@pytest.fixture
def memory() -> HostMemory:
    return HostGpu().open_memory()


def make(memory: HostMemory, *, capturable: bool = True) -> tuple[GraphReplay, list[str]]:
    done: list[str] = []
    replay = GraphReplay(
        memory, lambda: memory.enqueue(lambda: done.append("ran")), lambda: capturable
    )
    return replay, done


def test_every_call_runs_once_however_it_is_run(memory: HostMemory) -> None:
    replay, done = make(memory)
    for count in range(1, 6):
        replay()
        memory.synchronize()
        assert len(done) == count
        assert replay.captured == (count > 1)
    assert (memory.gpu.captures, memory.gpu.launches) == (1, 4)
    assert replay.refusal is None
    replay.free()
    replay.free()
    assert memory.gpu.open["graphs"] == 0


def test_a_library_that_captures_nothing_is_said(memory: HostMemory) -> None:
    memory.captures = False
    replay, done = make(memory)
    for _ in range(3):
        replay()
    memory.synchronize()
    assert replay.refusal == "host captures no CUDA graphs"
    assert (len(done), memory.gpu.captures) == (3, 0)


def test_what_tensorrt_does_not_let_be_captured_is_not_tried(memory: HostMemory) -> None:
    replay, done = make(memory, capturable=False)
    for _ in range(3):
        replay()
    memory.synchronize()
    assert "cannot be captured" in (replay.refusal or "")
    assert (len(done), memory.gpu.captures) == (3, 0)


def test_a_capture_that_fails_is_tried_once(memory: HostMemory) -> None:
    replay, done = make(memory)
    replay()
    memory.gpu.fail_at = memory.gpu.calls + 1
    for _ in range(3):
        replay()
    memory.synchronize()
    assert "CUDA failed" in (replay.refusal or "")
    assert (len(done), memory.gpu.captures) == (4, 0)


def test_work_that_fails_is_raised_and_captured_later(memory: HostMemory) -> None:
    def work() -> None:
        memory.gpu.touch()

    replay = GraphReplay(memory, work, lambda: True)
    memory.gpu.fail_at = memory.gpu.calls + 1
    with pytest.raises(EngineError):
        replay()
    replay()
    replay()
    assert replay.captured
