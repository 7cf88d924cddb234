"""What is asked of torch and pycuda where a wrong call would fail on a GPU alone.

Both libraries are stood in for: what they do with the calls is tested in ``test_device_memory.py``.
"""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

import deploy.engines.device_memory.pycuda_memory as pycuda_memory
import deploy.engines.device_memory.torch_memory as torch_memory
from deploy.engines.device_memory import DeviceBuffer
from deploy.engines.device_memory.pycuda_memory import PycudaMemory
from deploy.engines.device_memory.torch_memory import TorchMemory
from export.errors import EngineError


class Stream:
    """Notes what it waits for."""

    cuda_stream = 4096

    def __init__(self) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)


def refuse_odd(handle: int) -> Any:
    """As torch's streams do: an odd number is one of its own."""
    if handle % 2:
        raise RuntimeError(f"invalid StreamId {handle}")
    return ("external", handle)


class Spoiled:
    """A graph whose capture CUDA ends as a failure; torch does not notice that it has ended."""

    def capture_begin(self, *, pool: Any, capture_error_mode: str) -> None:
        assert (pool, capture_error_mode) == ((0, 7), "thread_local")

    def capture_end(self) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> TorchMemory:
    cuda = SimpleNamespace(
        CUDAGraph=Spoiled,
        graph_pool_handle=lambda: (0, 7),
        current_device=lambda: 0,
        stream=contextlib.nullcontext,
        Stream=Stream,
        current_stream=lambda: "current",
        default_stream=lambda: "default",
        ExternalStream=refuse_odd,
    )
    ended: list[Any] = []
    _C = SimpleNamespace(_cuda_endAllocateToPool=lambda *given: ended.append(given))
    torch = SimpleNamespace(cuda=cuda, _C=_C, ended=ended)
    monkeypatch.setattr(torch_memory, "require", lambda module, extra: torch)
    return TorchMemory()


@pytest.mark.parametrize(
    ("handle", "waited"),
    [(None, "current"), (1, "default"), (2, ("external", 2)), (8192, ("external", 8192))],
    ids=["torch's own", "CUDA's default", "the thread's default", "any other"],
)
def test_streams_are_waited_for_by_any_handle_of_cuda(
    memory: TorchMemory, handle: int | None, waited: Any
) -> None:
    memory.wait_for(handle)
    assert memory._stream.waited == [waited]


def test_memory_that_is_let_go_waits_for_the_caller_s_own_stream(memory: TorchMemory) -> None:
    streams: list[Any] = []
    buffer = DeviceBuffer(256, 4, SimpleNamespace(record_stream=streams.append))
    memory.free(buffer)
    memory.free(buffer)
    assert streams == ["current"]
    assert buffer.owner is None


def test_after_a_capture_that_failed_torch_is_told_that_it_has_ended(memory: TorchMemory) -> None:
    """It else keeps memory that other streams have used from everybody, for good."""

    def work() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(EngineError, match="CUDA failed to capture a graph"):
        memory.capture(work)
    assert memory._torch.ended == [(0, (0, 7))]


def test_threads_that_come_first_together_share_one_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    class Context:
        push = pop = detach = staticmethod(lambda: None)

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        def retain_primary_context(self) -> Context:
            time.sleep(0.05)  # long enough for everybody to ask
            made.append(Context())
            return made[-1]

    class Driver:
        Error, Stream = RuntimeError, SimpleNamespace
        init = staticmethod(lambda: None)

        def __init__(self) -> None:
            self.Device = Device

    driver = Driver()
    monkeypatch.setattr(pycuda_memory, "require", lambda module, extra: driver)
    monkeypatch.setattr(pycuda_memory.atexit, "register", lambda call: None)
    barrier = threading.Barrier(4)

    def open_one() -> None:
        barrier.wait()
        PycudaMemory()

    with contextlib.ExitStack() as stack:
        stack.callback(pycuda_memory._primary_context.cache_clear)
        pycuda_memory._primary_context.cache_clear()
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(open_one) for _ in range(4)]:
                done.result()
    assert len(made) == 1
