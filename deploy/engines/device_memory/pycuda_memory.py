"""A GPU's memory through pycuda: serving without torch.

pycuda has no calls to capture a stream (looked for in 2026.1), so engines run here without CUDA
graphs of their own; TensorRT for RTX captures them itself and has them here too.
"""

import atexit
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import numpy as np

from deploy.engines.base import Array
from deploy.engines.device_memory.base import DeviceBuffer, map_errors
from export.errors import EngineError
from export.optional import require

_EVENT_DEFAULT = 0
"""With times, and waited for by spinning: the host is back at once."""

_FIRST = threading.Lock()
"""Two threads that come first together would hold the context in two objects of pycuda's, of which
neither frees what was made in the other."""


class PycudaMemory:
    """See `DeviceMemory`."""

    name = "pycuda"
    captures = False

    def __init__(self) -> None:
        self._cuda = require("pycuda.driver", extra="trt")
        self._errors: type[Exception] = self._cuda.Error
        with self._current("open a stream"):
            self._stream = self._cuda.Stream()

    @property
    def stream(self) -> int:
        """The handle of the stream."""
        return int(self._stream.handle)

    def allocate(self, size: int) -> DeviceBuffer:
        """Memory of `size` bytes."""
        with self._current(f"allocate {size} bytes"):
            owner = self._cuda.mem_alloc(max(size, 1))
        return DeviceBuffer(int(owner), size, owner)

    def free(self, buffer: DeviceBuffer) -> None:
        """Give memory back."""
        owner, buffer.owner = buffer.owner, None
        if owner is not None:
            with self._current("free memory"):
                owner.free()

    def pin(self, size: int) -> Array:
        """Host memory of `size` bytes that is copied from and to while the host goes on."""
        if size == 0:  # nothing to lock in place, and CUDA refuses it
            return np.empty(0, np.uint8)
        with self._current(f"pin {size} bytes"):
            array: Array = self._cuda.pagelocked_empty(size, np.uint8)
        return array

    def unpin(self, array: Array) -> None:
        """Give pinned memory back; a destructor that runs in another thread could not."""
        if array.size:
            with self._current("free pinned memory"):
                array.base.free()  # type: ignore[union-attr]  # pycuda's own allocation

    def copy_in(self, host: Array, buffer: DeviceBuffer) -> None:
        """Copy pinned memory to the beginning of `buffer`, in the stream."""
        if host.size:
            with self._current("copy to the GPU"):
                self._cuda.memcpy_htod_async(buffer.address, host, self._stream)

    def copy_out(self, buffer: DeviceBuffer, host: Array) -> None:
        """Fill pinned memory from the beginning of `buffer`, in the stream."""
        if host.size:
            with self._current("copy from the GPU"):
                self._cuda.memcpy_dtoh_async(host, buffer.address, self._stream)

    def wait_for(self, stream: int | None) -> None:
        """Wait for all that the GPU does: pycuda cannot name a stream that it did not open."""
        with self._current("wait for other streams"):
            self._cuda.Context.synchronize()

    def record_event(self) -> Any:
        """A mark in the stream, with its time once it is reached."""
        with self._current("record an event"):
            return self._cuda.Event(_EVENT_DEFAULT).record(self._stream)

    def elapsed(self, start: Any, end: Any) -> float:
        """Seconds between two marks."""
        with self._current("read an event"):
            return float(start.time_till(end)) / 1e3

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        with self._current("run what it was given"):
            self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> NoReturn:
        """Not to be had here.

        Raises:
            EngineError: always.
        """
        raise EngineError("pycuda captures no CUDA graphs; with torch installed they are used.")

    def close(self) -> None:
        """Wait for the stream and give it back."""
        self.synchronize()
        with self._current("close a stream"):
            del self._stream

    @contextlib.contextmanager
    def _current(self, doing: str) -> Iterator[None]:
        """The GPU's primary context in this thread for a moment.

        TensorRT works in that context too, and pycuda frees nothing outside of it.
        """
        with map_errors(self._errors, doing):
            with _FIRST:
                context = _primary_context(self._cuda)
            context.push()
            try:
                yield
            finally:
                context.pop()


@functools.cache
def _primary_context(cuda: Any) -> Any:
    """Kept for as long as the process lives: there is one for each GPU."""
    cuda.init()
    context = cuda.Device(0).retain_primary_context()
    # left to its destructor, it would be given back by a call that primary contexts refuse
    atexit.register(context.detach)
    return context
