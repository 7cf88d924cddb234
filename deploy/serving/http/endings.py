"""How a connection ends where it does not end by itself: in order, and in time.

Answers go out in the order of their requests (RFC 9112, 9.3.2). Whatever is wrong with what comes
in, the whole requests before it are answered first, and nothing is written into an answer that has
begun or beside one that was given. What the other side does not take is thrown away after a while.
"""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deploy.serving.http.encoding import encode_error
from deploy.serving.metrics import ServerStatistics


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may take.

    Attributes:
        receive_s: seconds within which a request must have arrived whole, and within which what
            was answered must have been taken.
        connections: open at a time.
    """

    receive_s: float
    connections: int


class EndingProtocol(HttpToolsProtocol):
    """The end of a connection.

    Attributes:
        limits: what it may take.
        counts: of the server.
    """

    limits: ConnectionLimits
    counts: ServerStatistics
    _idle_since: float | None = None
    _idling: asyncio.TimerHandle | None = None
    _departure: asyncio.TimerHandle | None = None
    _within = False
    """What comes in belongs to the request of `cycle`, whose head is whole."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_departure()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_departure()

    def timeout_keep_alive_handler(self) -> None:
        """Close where nothing came for long enough; else come back when that may be."""
        self._idling = None
        if self._idle_since is None:
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idling = self.loop.call_later(left, self.timeout_keep_alive_handler)
        else:
            self._end()

    def _begin_idling(self) -> None:
        """One timer serves many short pauses; uvicorn would make and cancel one for each."""
        self._idle_since = self.loop.time()
        if self._idling is None:
            after = self.timeout_keep_alive
            self._idling = self.loop.call_later(after, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def _stop_idling(self) -> None:
        self._idle_since = None
        if self._idling is not None:
            self._idling.cancel()
            self._idling = None

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Say so in the turn of the request that came last, and close.

        What is not even a head is not answered behind others: they are, and that is the end.
        """
        if self.transport.is_closing():
            return
        self.counts.refuse(status)
        refusal = _Refusal(status, message)
        if self._waits_its_turn():
            self.pipeline[0] = (self.cycle, cast("Any", refusal))
            self._end_after_answers()
        elif self._owes_answers() or self._has_begun_to_answer():
            self._end_after_answers()
        else:
            if not self._within or not self.cycle.response_complete:
                self.transport.write(refusal.render())
            self._end()

    def _waits_its_turn(self) -> bool:
        """Whether what comes in is of a request that waits until others are answered."""
        return self._within and bool(self.pipeline)

    def _owes_answers(self) -> bool:
        """Whether what comes in is behind whole requests that are not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete and not self._within

    def _has_begun_to_answer(self) -> bool:
        """Whether the answer to the request that comes in is being written."""
        cycle = self.cycle
        return self._within and cycle.response_started and not cycle.response_complete

    def _end_after_answers(self) -> None:
        """Close when the requests that came are answered; nothing more is read."""
        self.cycle.keep_alive = False
        self.flow.pause_reading()

    def _end(self) -> None:
        """Close; what the other side does not take is thrown away after a while."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._expect_departure()

    def _expect_departure(self) -> None:
        if self._departure is None:
            self._departure = self.loop.call_later(self.limits.receive_s, self._cut_off)

    def _stop_departure(self) -> None:
        if self._departure is not None:
            self._departure.cancel()
            self._departure = None

    def _cut_off(self) -> None:
        self._departure = None
        self.counts.timed_out += 1
        self.transport.abort()


class _Refusal:
    """An answer that needs nothing of its request; as an ASGI application, in a request's place."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        self._status = status
        self._body = encode_error(message)
        self._headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self._body)),
            (b"connection", b"close"),
        ]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer the request of `scope`."""
        start = {"status": self._status.value, "headers": self._headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": self._body})

    def render(self) -> bytes:
        """As it goes over the wire."""
        lines = [b"HTTP/1.1 %d %s" % (self._status.value, self._status.phrase.encode())]
        lines += [b"%s: %s" % header for header in self._headers]
        return b"\r\n".join((*lines, b"", self._body))
