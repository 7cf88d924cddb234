"""What calls over gRPC may hold: messages on their way, messages that came, answers not yet taken.

The length of a message is not known here before it has come whole, so for each that is on its way
as much is set aside as one may have. Until a message is asked for, gRPC itself takes no more of it
than a window of 64 KiB.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from deploy.serving.errors import DeadlineError, MalformedRequestError, QueueFullError
from deploy.serving.metrics import ServerStatistics
from deploy.serving.options import ServeOptions

PROBE_SLOTS = 8
"""Messages of other calls than infer that may be on their way; so probes pass large tensors."""

PROBE_S = 5.0
"""Seconds that such a message may take: it is a few bytes."""


class Arrivals:
    """Lets messages come in, so many at a time.

    Args:
        slots: messages that may be on their way.
        seconds: that one may wait for its turn, and that it then may take.
    """

    def __init__(self, slots: int, seconds: float) -> None:
        self._slots = asyncio.Semaphore(slots)
        self._seconds = seconds

    async def receive(self, messages: AsyncIterator[bytes]) -> bytes:
        """The one message of a call.

        Raises:
            QueueFullError: others were on their way for all the time that it could wait.
            DeadlineError: it did not come in time.
            MalformedRequestError: the call has none.
        """
        try:
            async with asyncio.timeout(self._seconds):
                await self._slots.acquire()
        except TimeoutError:
            raise QueueFullError("as many messages are on their way as may be") from None
        try:
            async with asyncio.timeout(self._seconds):
                return await anext(messages)
        except TimeoutError:
            raise DeadlineError("no message came in time") from None
        except StopAsyncIteration:
            raise MalformedRequestError("the call has no message") from None
        finally:
            self._slots.release()


class HeldBytes:
    """What one call holds, counted among all that the server holds until the call is over.

    gRPC keeps the message for as long as the call, which is over when most of its answer was taken.

    Args:
        statistics: has the count.
        limit: bytes that the server may hold.
        context: of the call.
    """

    def __init__(self, statistics: ServerStatistics, limit: int, context: Any) -> None:
        self._statistics = statistics
        self._limit = limit
        self._size = 0
        context.add_done_callback(self._release)

    def take(self, size: int) -> None:
        """A message of so many bytes came.

        Raises:
            QueueFullError: it would be more than the server may hold.
        """
        if self._statistics.inflight_bytes + size > self._limit:
            raise QueueFullError("the server holds as many bytes of requests as it may")
        self.add(size)

    def add(self, size: int) -> None:
        """An answer of so many bytes is to be taken."""
        self._size += size
        self._statistics.inflight_bytes += size

    def _release(self, context: Any) -> None:
        self._statistics.inflight_bytes -= self._size
        self._size = 0


def count_slots(options: ServeOptions) -> int:
    """Messages that may be on their way: all of the largest size would be what may be held."""
    return max(1, options.max_inflight_mb // options.max_body_mb)
