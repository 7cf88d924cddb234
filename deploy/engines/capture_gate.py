"""While ONNX Runtime captures a CUDA graph, no other thread of the process may work on the GPU.

It captures in CUDA's global mode: an allocation by another thread fails meanwhile, and spoils the
graph. So captures run alone, and all else that its engines do side by side. What other libraries
do in the process is out of reach: where several engines of different libraries share one, captures
belong before the first request, as a server's warm-up has it.
"""

import contextlib
import threading
from collections.abc import Iterator


class CaptureGate:
    """Lets many through together, or one by itself; who is waiting for the latter goes first."""

    def __init__(self) -> None:
        self._inside = 0
        self._waiting = 0
        self._alone = False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Work that others may do at the same time, but for a capture."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._waiting)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A capture; it begins when all others are out. Not to be entered from within `together`,
        which would wait for itself.
        """
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: not self._alone and not self._inside)
                self._alone = True
            finally:
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


GATE = CaptureGate()
"""That of this process: its engines share one GPU."""
