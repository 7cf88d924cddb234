"""How many calls of one engine run side by side: a few lanes, opened when they are needed."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from export.errors import EngineError


class Closable(Protocol):
    """What a lane is to the pool."""

    def close(self) -> None:
        """Give back all that it holds."""


_Lane = TypeVar("_Lane", bound=Closable)


class LanePool(Generic[_Lane]):
    """At most `size` lanes; a call takes one for itself, and waits where all are taken.

    A lane in which a call failed is closed and never used again, since nobody knows what state
    the failure has left in it.

    Args:
        open_lane: opens one; it raises where that fails, and then leaves nothing behind.
        size: how many there may be at once.
    """

    def __init__(self, open_lane: Callable[[], _Lane], size: int) -> None:
        self._open, self._size = open_lane, size
        self._idle: list[_Lane] = []
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self) -> Iterator[_Lane]:
        """One lane for the length of a with block.

        Raises:
            EngineError: the pool was closed, or a lane cannot be opened.
        """
        lane = self._acquire()
        try:
            yield lane
        except BaseException:
            self._discard(lane)
            raise
        self._give_back(lane)

    def close(self) -> None:
        """Close every lane; calls that still run are waited for, and later ones refused."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self._count > len(self._idle):
                self._changed.wait()
            lanes, self._idle, self._count = self._idle, [], 0
        with contextlib.ExitStack() as stack:  # one that fails to close keeps no other open
            for lane in lanes:
                stack.callback(lane.close)

    def _acquire(self) -> _Lane:
        with self._changed:
            while not self._closed and not self._idle and self._count >= self._size:
                self._changed.wait()
            if self._closed:
                raise EngineError("The engine is closed; call it inside its with block.")
            if self._idle:
                return self._idle.pop()
            self._count += 1
        try:
            return self._open()
        except BaseException:
            self._forget()
            raise

    def _give_back(self, lane: _Lane) -> None:
        with self._changed:
            self._idle.append(lane)
            self._changed.notify_all()

    def _discard(self, lane: _Lane) -> None:
        try:
            with contextlib.suppress(EngineError):  # the failure of the call is what is raised
                lane.close()
        finally:
            self._forget()

    def _forget(self) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
