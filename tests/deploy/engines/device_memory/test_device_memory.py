"""Both libraries keep the one contract of device memory. All of it needs a GPU."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deploy.engines.device_memory import DeviceMemory, DeviceTensor
from export.errors import EngineError
from export.optional import is_installed

pytestmark = pytest.mark.gpu

SIZES = (1, 4, 1000, 1 << 20)


@pytest.fixture(params=["torch", "pycuda"])
def memory(request: pytest.FixtureRequest) -> Iterator[DeviceMemory]:
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    if request.param == "torch":
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("this torch has no CUDA")
        from deploy.engines.device_memory.torch_memory import TorchMemory as Memory
    else:
        from deploy.engines.device_memory.pycuda_memory import PycudaMemory as Memory
    opened: DeviceMemory = Memory()
    yield opened
    opened.close()


def random_bytes(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size, np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_what_goes_in_comes_out(memory: DeviceMemory, size: int) -> None:
    buffer, there, back = memory.allocate(size), memory.pin(size), memory.pin(size)
    there[:] = random_bytes(size)
    back[:] = 0
    memory.copy_in(there, buffer)
    memory.copy_out(buffer, back)
    memory.synchronize()
    np.testing.assert_array_equal(back, random_bytes(size))
    assert buffer.address % 256 == 0
    memory.free(buffer)
    memory.unpin(there)
    memory.unpin(back)


def test_nothing_is_a_size_too(memory: DeviceMemory) -> None:
    buffer, pinned = memory.allocate(0), memory.pin(0)
    memory.copy_in(pinned, buffer)
    memory.copy_out(buffer, pinned)
    memory.synchronize()
    memory.free(buffer)
    memory.unpin(pinned)


def test_streams_are_apart_and_waited_for(memory: DeviceMemory) -> None:
    other = type(memory)()
    assert other.stream != memory.stream
    size = 1 << 24
    buffer, there, back = memory.allocate(size), memory.pin(size), other.pin(size)
    there[:] = random_bytes(size)
    memory.copy_in(there, buffer)
    other.wait_for(memory.stream)
    other.copy_out(buffer, back)
    other.synchronize()
    np.testing.assert_array_equal(back, there)
    memory.free(buffer)
    memory.unpin(there)
    other.unpin(back)
    other.close()


@pytest.mark.parametrize("handle", [1, 2], ids=["the default stream", "the thread's"])
def test_the_default_streams_are_waited_for_by_their_handles(
    memory: DeviceMemory, handle: int
) -> None:
    memory.wait_for(handle)
    memory.wait_for(None)
    memory.synchronize()


def test_events_tell_seconds(memory: DeviceMemory) -> None:
    size = 1 << 26
    buffer, there = memory.allocate(size), memory.pin(size)
    start = memory.record_event()
    memory.copy_in(there, buffer)
    end = memory.record_event()
    memory.synchronize()
    assert 1e-4 < memory.elapsed(start, end) < 10  # 64 MiB over PCI Express
    memory.free(buffer)
    memory.unpin(there)


def test_another_thread_may_use_and_free_it(memory: DeviceMemory) -> None:
    size = 1000

    def work() -> np.ndarray:
        buffer, there, back = memory.allocate(size), memory.pin(size), memory.pin(size)
        there[:] = random_bytes(size)
        memory.copy_in(there, buffer)
        memory.copy_out(buffer, back)
        memory.synchronize()
        got = back.copy()
        memory.free(buffer)
        memory.unpin(there)
        memory.unpin(back)
        return got

    with ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            np.testing.assert_array_equal(pool.submit(work).result(), random_bytes(size))
    np.testing.assert_array_equal(work(), random_bytes(size))


def test_more_than_there_is_is_an_error_and_no_end(memory: DeviceMemory) -> None:
    with pytest.raises(EngineError, match="CUDA failed to allocate"):
        memory.allocate(1 << 50)
    memory.free(memory.allocate(100))


def test_captured_work_runs_at_every_launch(memory: DeviceMemory) -> None:
    size = 1000
    buffer, there, back = memory.allocate(size), memory.pin(size), memory.pin(size)

    def work() -> None:
        memory.copy_in(there, buffer)
        memory.copy_out(buffer, back)

    if not memory.captures:
        with pytest.raises(EngineError, match="captures no CUDA graphs"):
            memory.capture(work)
    else:
        graph = memory.capture(work)
        for value in (1, 2, 3):
            there[:] = value
            graph.launch()
            memory.synchronize()
            assert (back == value).all()
        graph.free()
    memory.free(buffer)
    memory.unpin(there)
    memory.unpin(back)


def test_what_cannot_be_captured_is_an_error_and_the_stream_goes_on(memory: DeviceMemory) -> None:
    buffer, there, back = memory.allocate(100), memory.pin(100), memory.pin(100)
    there[:] = random_bytes(100)
    with pytest.raises(EngineError):  # a stream that is captured cannot be waited for
        memory.capture(memory.synchronize)
    memory.copy_in(there, buffer)
    memory.copy_out(buffer, back)
    memory.synchronize()
    np.testing.assert_array_equal(back, there)
    memory.free(buffer)
    memory.unpin(there)
    memory.unpin(back)
    for _ in range(256):  # what is freed after it is used again: 64 GiB in all
        memory.free(memory.allocate(1 << 28))
        memory.synchronize()


def test_many_streams_at_once_from_many_threads(memory: DeviceMemory) -> None:
    """More than torch has, which then gives the same ones again."""

    def work(seed: int) -> bool:
        mine = type(memory)()
        buffer, there, back = mine.allocate(1 << 16), mine.pin(1 << 16), mine.pin(1 << 16)
        for value in range(20):
            there[:] = (seed + value) % 256
            mine.copy_in(there, buffer)
            mine.copy_out(buffer, back)
            mine.synchronize()
            if not (back == (seed + value) % 256).all():
                return False
        mine.free(buffer)
        mine.unpin(there)
        mine.unpin(back)
        mine.close()
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(80)))


def test_an_output_that_is_let_go_is_not_overwritten_while_the_caller_reads_it() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    from deploy.engines.device_memory.torch_memory import TorchMemory

    memory, size = TorchMemory(), 1 << 20
    first, ones, twos = memory.allocate(size), memory.pin(size), memory.pin(size)
    ones[:], twos[:] = 1, 2
    memory.copy_in(ones, first)
    memory.synchronize()
    address = first.address
    output = DeviceTensor(memory, first, (size,), "|u1")
    seen = torch.as_tensor(output, device="cuda")
    assert seen.data_ptr() == address
    torch.cuda._sleep(1_000_000_000)  # about half a second of the caller's stream
    read = seen.clone()
    del seen, output
    second = memory.allocate(size)
    memory.copy_in(twos, second)
    memory.synchronize()
    assert bool((read.cpu() == 1).all())
    memory.free(second)
    memory.close()


def test_memory_is_given_back(memory: DeviceMemory) -> None:
    """64 GiB in all, which no GPU of this test's size would hold at once."""
    for _ in range(256):
        buffer = memory.allocate(1 << 28)
        memory.free(buffer)
