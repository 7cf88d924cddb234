"""What an engine asks of a GPU: one stream, and memory that is used in its order."""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from deploy.engines.base import Array
from export.errors import EngineError


@dataclass
class DeviceBuffer:
    """Memory on the GPU.

    Attributes:
        address: where it is, as CUDA counts.
        size: in bytes.
        owner: the object of the library that holds it; None once it is freed.
    """

    address: int
    size: int
    owner: Any


class DeviceGraph(Protocol):
    """Work of a stream, recorded once, to be launched as one."""

    def launch(self) -> None:
        """Put the work into the stream that it was captured in."""

    def free(self) -> None:
        """Give back what the graph holds; it is not launched again."""


class DeviceMemory(Protocol):
    """One CUDA stream of its own and the memory that it works on.

    All that is put into the stream runs in order and later; `synchronize` waits for it. Whoever
    holds one uses it from one thread at a time, any thread. Every method raises EngineError where
    CUDA fails.

    Attributes:
        name: of the library behind it.
        captures: whether `capture` can be used.
    """

    name: str
    captures: bool

    def __init__(self) -> None: ...

    @property
    def stream(self) -> int:
        """The handle of the stream, as CUDA's own calls take it."""

    def allocate(self, size: int) -> DeviceBuffer:
        """Memory of `size` bytes, aligned to 256 at least."""

    def free(self, buffer: DeviceBuffer) -> None:
        """Give memory back; what the stream still does with it must be waited for before."""

    def pin(self, size: int) -> Array:
        """Host memory of `size` bytes (uint8) that is copied from and to while the host goes on."""

    def unpin(self, array: Array) -> None:
        """Give pinned memory back; the array and its views are not touched again."""

    def copy_in(self, host: Array, buffer: DeviceBuffer) -> None:
        """Copy all bytes of pinned memory to the beginning of `buffer`, in the stream."""

    def copy_out(self, buffer: DeviceBuffer, host: Array) -> None:
        """Fill all of pinned memory from the beginning of `buffer`, in the stream."""

    def wait_for(self, stream: int | None) -> None:
        """Let this stream wait for what another holds by now.

        Args:
            stream: its handle; None: the one that the library's own tensors are made in.
        """

    def record_event(self) -> Any:
        """A mark in the stream, with its time once it is reached."""

    def elapsed(self, start: Any, end: Any) -> float:
        """Seconds between two marks, of which the later was waited for."""

    def synchronize(self) -> None:
        """Wait until the stream is empty."""

    def capture(self, work: Callable[[], None]) -> DeviceGraph:
        """Record what `work` puts into the stream; it is not run.

        Raises:
            EngineError: the work cannot be captured, or the library captures nothing.
        """

    def close(self) -> None:
        """Wait for the stream and give it back. Memory is freed before."""


class DeviceTensor:
    """An output that stayed on the GPU: `torch.as_tensor` and `cupy.asarray` take it as it is.

    Its memory is given back when nothing refers to it any more.
    """

    def __init__(
        self, memory: DeviceMemory, buffer: DeviceBuffer, shape: tuple[int, ...], kind: str
    ) -> None:
        self.shape = shape
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": kind,
            "data": (buffer.address, False),
            "strides": None,
            "version": 3,
        }
        self._end = weakref.finalize(self, memory.free, buffer)
        self._end.atexit = False  # the library may be gone by then, and its memory with it

    def free(self) -> None:
        """Give the memory back now."""
        self._end()


@contextlib.contextmanager
def map_errors(kinds: type[Exception] | tuple[type[Exception], ...], doing: str) -> Iterator[None]:
    """Turn a library's own errors into ours; `doing` says what was tried."""
    try:
        yield
    except kinds as error:
        raise EngineError(f"CUDA failed to {doing}: {error}") from error
