"""A GPU's memory through torch. The caller's tensors are used where they lie."""

import contextlib
from collections.abc import Callable
from typing import Any

from deploy.engines.base import Array
from deploy.engines.device_memory.base import DeviceBuffer, map_errors
from export.optional import require

_ERRORS = RuntimeError
"""torch's errors of CUDA, out of memory included, are all of this kind."""
_LEGACY_STREAM = 1
"""CUDA's handle of the default stream, by which others name it. torch takes every odd handle for a
number of its own, and refuses this one."""


class TorchMemory:
    """See `DeviceMemory`."""

    name = "torch"
    captures = True

    def __init__(self) -> None:
        self._torch = require("torch", extra="build")
        with map_errors(_ERRORS, "open a stream"):
            self._stream = self._torch.cuda.Stream()

    @property
    def stream(self) -> int:
        """The handle of the stream."""
        return int(self._stream.cuda_stream)

    def allocate(self, size: int) -> DeviceBuffer:
        """Memory of `size` bytes."""
        # memory of torch is safe in the stream that it was asked for in, and in no other
        with map_errors(_ERRORS, f"allocate {size} bytes"), self._current():
            owner = self._torch.empty(max(size, 1), dtype=self._torch.uint8, device="cuda")
        return DeviceBuffer(owner.data_ptr(), size, owner)

    def free(self, buffer: DeviceBuffer) -> None:
        """Give memory back to torch, which keeps it for the next who asks.

        What the caller's own stream was given to do with it comes first: an output is read there,
        and nobody waits for that before the output is let go.
        """
        owner, buffer.owner = buffer.owner, None
        if owner is not None:
            with map_errors(_ERRORS, "free memory"):
                owner.record_stream(self._torch.cuda.current_stream())

    def pin(self, size: int) -> Array:
        """Host memory of `size` bytes that is copied from and to while the host goes on."""
        with map_errors(_ERRORS, f"pin {size} bytes"):
            pinned = self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True)
        array: Array = pinned.numpy()
        return array

    def unpin(self, array: Array) -> None:
        """Nothing to do: it is given back with the array."""

    def copy_in(self, host: Array, buffer: DeviceBuffer) -> None:
        """Copy pinned memory to the beginning of `buffer`, in the stream."""
        with map_errors(_ERRORS, "copy to the GPU"), self._current():
            buffer.owner[: host.size].copy_(self._torch.from_numpy(host), non_blocking=True)

    def copy_out(self, buffer: DeviceBuffer, host: Array) -> None:
        """Fill pinned memory from the beginning of `buffer`, in the stream."""
        with map_errors(_ERRORS, "copy from the GPU"), self._current():
            self._torch.from_numpy(host).copy_(buffer.owner[: host.size], non_blocking=True)

    def wait_for(self, stream: int | None) -> None:
        """Let this stream wait for what another holds by now."""
        cuda = self._torch.cuda
        with map_errors(_ERRORS, "wait for another stream"):
            if stream is None:
                other = cuda.current_stream()
            elif stream == _LEGACY_STREAM:
                other = cuda.default_stream()
            else:
                other = cuda.ExternalStream(stream)
            self._stream.wait_stream(other)

    def record_event(self) -> Any:
        """A mark in the stream, with its time once it is reached."""
        with map_errors(_ERRORS, "record an event"):
            event = self._torch.cuda.Event(enable_timing=True)
            event.record(self._stream)
        return event

    def elapsed(self, start: Any, end: Any) -> float:
        """Seconds between two marks."""
        with map_errors(_ERRORS, "read an event"):
            return float(start.elapsed_time(end)) / 1e3

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        with map_errors(_ERRORS, "run what it was given"):
            self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> "TorchGraph":
        """Record what `work` puts into the stream; it is not run."""
        torch = self._torch
        with map_errors(_ERRORS, "capture a graph"), self._current():
            graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
            # other threads go on allocating meanwhile, which would else spoil the capture
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                work()
            finally:
                try:
                    graph.capture_end()
                except _ERRORS:
                    self._end_allocations(pool)
                    raise
        return TorchGraph(graph, self._current)

    def close(self) -> None:
        """Wait for the stream; torch keeps it for the next who asks."""
        self.synchronize()

    def _end_allocations(self, pool: Any) -> None:
        """After a capture that failed: torch believes that it goes on, and reuses less memory."""
        with contextlib.suppress(_ERRORS):  # it may have come to that by itself
            self._torch._C._cuda_endAllocateToPool(self._torch.cuda.current_device(), pool)

    def _current(self) -> Any:
        return self._torch.cuda.stream(self._stream)


class TorchGraph:
    """See `DeviceGraph`."""

    def __init__(self, graph: Any, current: Callable[[], Any]) -> None:
        self._graph, self._current = graph, current

    def launch(self) -> None:
        """Put the work into the stream that it was captured in."""
        with map_errors(_ERRORS, "launch a graph"), self._current():
            self._graph.replay()

    def free(self) -> None:
        """Give back what the graph holds."""
        with map_errors(_ERRORS, "free a graph"):
            self._graph.reset()
