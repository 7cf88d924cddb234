"""Memory that TensorRT asks for while it runs: grown, used again, given back."""

from typing import Any

import pytest
from host_gpu import HostGpu, HostMemory, Model, make_trt

from deploy.engines.output_allocator import GrowingOutput, make_allocator_class
from export.errors import EngineError


@pytest.fixture
def memory() -> HostMemory:
    return HostGpu().open_memory()


@pytest.fixture
def output(memory: HostMemory) -> GrowingOutput:
    trt: Any = make_trt(memory.gpu, Model())
    return GrowingOutput(make_allocator_class(trt), memory)


def ask(output: GrowingOutput, size: int) -> int:
    return int(output.native.reallocate_output_async("y", 0, size, 256, 0))


def test_memory_grows_and_is_used_again(output: GrowingOutput, memory: HostMemory) -> None:
    first = ask(output, 100)
    assert ask(output, 60) == ask(output, 100) == first
    second = ask(output, 101)
    assert second != first
    assert memory.gpu.open["buffers"] == 2  # the first may still be written to
    output.settle()
    assert memory.gpu.open["buffers"] == 1
    assert ask(output, 101) == second
    output.free()
    assert memory.gpu.open["buffers"] == 0


def test_an_empty_output_has_an_address(output: GrowingOutput) -> None:
    assert ask(output, 0) != 0


def test_the_shape_is_of_the_last_run(output: GrowingOutput) -> None:
    output.begin()
    output.native.notify_shape("y", [2, 3])
    assert output.shape == (2, 3)
    output.begin()
    assert output.shape is None


def test_no_memory_is_no_exception_inside_tensorrt_and_one_after(
    output: GrowingOutput, memory: HostMemory
) -> None:
    memory.gpu.fail_at = memory.gpu.calls + 1
    assert output.native.reallocate_output("y", 0, 10, 256) == 0
    with pytest.raises(EngineError, match="CUDA failed"):
        output.settle()
    output.settle()
    assert ask(output, 10) != 0


def test_what_was_taken_is_the_callers(output: GrowingOutput, memory: HostMemory) -> None:
    with pytest.raises(EngineError, match="asked for no memory"):
        output.take()
    first = ask(output, 10)
    taken = output.take()
    assert taken.address == first
    output.free()
    assert memory.gpu.open["buffers"] == 1
    memory.free(taken)


def test_the_real_base_class_takes_it(memory: HostMemory) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    output = GrowingOutput(make_allocator_class(trt), memory)
    assert isinstance(output.native, trt.IOutputAllocator)
    assert ask(output, 10) != 0
    output.native.notify_shape("y", trt.Dims([4, 5]))
    assert output.shape == (4, 5)
    output.free()
