"""One CUDA graph for one set of shapes: run plainly at first, then captured, then replayed.

TensorRT settles its internal state in the first run after shapes have changed, so that run cannot
be captured. What cannot be captured at all goes on plainly, and says why.
"""

from collections.abc import Callable

from deploy.engines.device_memory import DeviceGraph, DeviceMemory
from export.errors import EngineError


class GraphReplay:
    """Puts the same work into a stream again and again, as cheaply as it can.

    Args:
        memory: whose stream it is.
        work: puts it there; the same addresses and shapes every time.
        can_capture: asked once, after the first run.

    Attributes:
        refusal: why the work is not captured; None where it is, or was not tried yet.
    """

    def __init__(
        self, memory: DeviceMemory, work: Callable[[], None], can_capture: Callable[[], bool]
    ) -> None:
        self._memory, self._work, self._can_capture = memory, work, can_capture
        self._graph: DeviceGraph | None = None
        self._warm = False
        self.refusal: str | None = None
        if not memory.captures:
            self.refusal = f"{memory.name} captures no CUDA graphs"

    @property
    def captured(self) -> bool:
        """Whether the next run is a replay."""
        return self._graph is not None

    def __call__(self) -> None:
        """Put the work into the stream.

        Raises:
            EngineError: it fails, in whichever way it is run.
        """
        if self._graph is None and self._warm and self.refusal is None:
            self._capture()
        if self._graph is not None:
            self._graph.launch()
            return
        self._work()
        self._warm = True

    def free(self) -> None:
        """Give back what the graph holds; the stream was waited for."""
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.free()

    def _capture(self) -> None:
        if not self._can_capture():
            self.refusal = "TensorRT cannot be captured with these shapes"
            return
        try:
            self._graph = self._memory.capture(self._work)
        except EngineError as error:
            self.refusal = str(error)
