"""Outputs whose shape is known only when the engine has run: TensorRT asks for their memory."""

from collections.abc import Callable
from typing import Any

from deploy.engines.device_memory import DeviceBuffer, DeviceMemory
from export.errors import EngineError


class GrowingOutput:
    """The memory of one such output; it grows as it must and is used again.

    Args:
        allocator: the class that `make_allocator_class` has made.
        memory: where it lies.

    Attributes:
        native: what TensorRT's context is given as the output's allocator; None once freed.
        shape: of the last run; None before TensorRT has told it.
        buffer: where the last run put it; None before TensorRT has asked.
        error: why memory was refused in the last run.
    """

    def __init__(self, allocator: Callable[..., Any], memory: DeviceMemory) -> None:
        self._memory = memory
        self._outgrown: list[DeviceBuffer] = []
        self.buffer: DeviceBuffer | None = None
        self.shape: tuple[int, ...] | None = None
        self.error: EngineError | None = None
        self.native: Any = allocator(self)

    def begin(self) -> None:
        """Before every run: what the last one told counts no more."""
        self.shape = self.error = None

    def reserve(self, size: int) -> int:
        """Address of at least `size` bytes; 0, TensorRT's word for none, where there are none.

        What is outgrown is kept until the stream was waited for: work before may still read it.
        """
        if self.buffer is not None and self.buffer.size >= size:
            return self.buffer.address
        try:
            fresh = self._memory.allocate(max(size, 1))
        except EngineError as error:  # an exception would not get through TensorRT
            self.error = EngineError(str(error))
            return 0
        if self.buffer is not None:
            self._outgrown.append(self.buffer)
        self.buffer = fresh
        return fresh.address

    def settle(self) -> None:
        """After the stream was waited for: free what was outgrown, raise what went wrong."""
        while self._outgrown:
            self._memory.free(self._outgrown.pop())
        error, self.error = self.error, None
        if error is not None:
            raise error

    def take(self) -> DeviceBuffer:
        """The buffer of the last run, which is the caller's from now on."""
        if self.buffer is None:
            raise EngineError("TensorRT asked for no memory of an output that it was to allocate.")
        taken, self.buffer = self.buffer, None
        return taken

    def free(self) -> None:
        """Give all memory back; the stream was waited for."""
        held = [*self._outgrown, *([self.buffer] if self.buffer else [])]
        self._outgrown, self.buffer, self.native = [], None, None
        for buffer in held:
            self._memory.free(buffer)


def make_allocator_class(trt: Any) -> Callable[..., Any]:
    """The class that TensorRT calls for memory; one object of it serves one `GrowingOutput`."""

    class Allocator(trt.IOutputAllocator):  # type: ignore[misc]  # known only at run time
        def __init__(self, output: GrowingOutput) -> None:
            trt.IOutputAllocator.__init__(self)
            self._output = output

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            return self._output.reserve(size)

        def reallocate_output_async(
            self, name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self._output.reserve(size)

        def notify_shape(self, name: str, shape: Any) -> None:
            self._output.shape = tuple(int(length) for length in shape)

    return Allocator
