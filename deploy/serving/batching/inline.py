"""Which runs happen on the event loop itself: those that take less than handing them over does.

Handing over costs the more, the more bytes go from core to core.

A run in a thread seems longer than it is while the event loop keeps the interpreter busy, so the
faster quarter of such runs says how long they take; on the event loop nothing is in their way, and
the median does.
"""

import itertools
import statistics
from collections import deque

INLINE_S = 1.5e-4
"""Seconds of a run below which it happens on the event loop; a thread costs about as much."""

_FETCHED = 5e9
"""Bytes of input a second that another core is taken to fetch, which handing over costs besides: up
to `INLINE_S`, since the event loop is held meanwhile."""

_FAR_BEYOND = 10
"""Times `INLINE_S`, from which a run says of its size that it is not short."""

_LONGEST_S = 0.02
"""Seconds of one run after which the event loop is spared for a while."""

_RUNS = 16
_ENOUGH = 8
_EVERY = 4
"""Runs between two decisions."""

_SPARED = 256
"""Runs in threads after such a long one."""


class InlineRuns:
    """Decides for the next run, by those before it.

    Attributes:
        on: runs no larger than those that were short happen on the event loop.
    """

    def __init__(self) -> None:
        self.on = False
        self._seconds: deque[float] = deque(maxlen=_RUNS)
        self._spared = 0
        self._largest = 0
        self._numbers = itertools.count()

    def allow(self, size: int) -> bool:
        """Whether a run of `size` bytes of input may happen on the event loop."""
        return self.on and size <= self._largest

    def observe(self, seconds: float, size: int, *, inline: bool) -> None:
        """Count a run of `size` bytes of input, which happened there or in a thread."""
        seconds, whole = max(0.0, seconds - min(size / _FETCHED, INLINE_S)), seconds
        if seconds < INLINE_S:
            self._largest = max(self._largest, size)
        elif seconds > _FAR_BEYOND * INLINE_S:
            self._largest = min(self._largest, size - 1)
        if self.on and whole > _LONGEST_S:
            self._turn(on=False)
            self._spared = _SPARED
            return
        if inline != self.on:  # a larger one, or handed over before it was decided otherwise
            return
        self._seconds.append(seconds)
        if self._spared:
            self._spared -= 1
        elif len(self._seconds) >= _ENOUGH and next(self._numbers) % _EVERY == 0:
            self._decide()

    def _decide(self) -> None:
        if self.on:
            if statistics.median(self._seconds) > INLINE_S:
                self._turn(on=False)
        elif sorted(self._seconds)[len(self._seconds) // 4] < INLINE_S:
            self._turn(on=True)

    def _turn(self, *, on: bool) -> None:
        self.on = on
        self._seconds.clear()
