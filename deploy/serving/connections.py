"""HTTP connections with an end: a request must arrive in time, and only so many may be open.

uvicorn bounds how long a connection may be idle between requests. It does not bound how long one
may take to send a request, or to begin with one, which is what a slow client holds a server by.
And it writes the head of an answer before it has the body, which costs one more call of the system
and wakes the client for nothing; here the two go out together.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deploy.serving.body import DisconnectedError
from deploy.serving.encoding import JOIN_BELOW, encode_error
from deploy.serving.errors import RequestError
from deploy.serving.inference import CONNECTION
from deploy.serving.metrics import ServerStatistics

_CONTINUE = b"HTTP/1.1 100"
"""What uvicorn writes before an answer, where the client waits for it."""


@dataclass(frozen=True)
class ConnectionLimits:
    """What a connection may take.

    Attributes:
        receive_s: seconds within which a request must have arrived whole.
        connections: open at a time.
    """

    receive_s: float
    connections: int


class AnswerWriter:
    """Stands for the transport while answers are written: a head goes out with what follows it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None
        self._begun = False

    def write(self, data: bytes | memoryview) -> None:
        """Keep the head of an answer, and write what follows."""
        if not self._begun and not bytes(data[:12]).startswith(_CONTINUE):
            self._begun, self._head = True, bytes(data)
            return
        head, self._head = self._head, None
        if head is None:
            self._transport.write(data)
        elif len(data) <= JOIN_BELOW:
            self._transport.write(head + data)
        else:
            self._transport.writelines((head, data))

    def end_answer(self) -> None:
        """Write a head that nothing followed; the next write begins another answer."""
        head, self._head, self._begun = self._head, None, False
        if head is not None:
            self._transport.write(head)

    def close(self) -> None:
        """Write what is kept, and close."""
        self.end_answer()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the transport is."""
        return self._transport.is_closing()


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        limits: what it may take.
        counts: of the server.
        withdraw: called when the connection is lost while its request runs.
        lost: it is.
    """

    limits: ConnectionLimits
    counts: ServerStatistics
    withdraw: Callable[[], Any] | None = None
    lost = False
    _taker: Callable[[bytes], None] | None = None
    _arrived: asyncio.Future[None] | None = None
    _arrival: asyncio.TimerHandle | None = None
    _coming = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._writer = AnswerWriter(transport)
        self.counts.connections += 1
        if self.counts.connections > self.limits.connections:
            self.counts.turned_away += 1
            transport.close()
            return
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self.counts.connections -= 1
        self.lost = True
        self._stop_waiting()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self.withdraw is not None:
            self.withdraw()
        self._end_arrival(DisconnectedError())

    async def hand_over(self, taker: Callable[[bytes], None]) -> None:
        """Give every further chunk of the body that comes in to `taker`; return at its end.

        Raises:
            DisconnectedError: the connection ended before.
            RequestError: what `taker` refused a chunk with.
        """
        if self.lost:
            raise DisconnectedError
        self._arrived = self.loop.create_future()
        self._taker = taker
        self.flow.resume_reading()  # paused where much came before it was asked for
        await self._arrived

    def on_body(self, body: bytes) -> None:
        if self._taker is None:
            super().on_body(body)
            return
        try:
            self._taker(body)
        except RequestError as error:
            self._end_arrival(error)

    def _end_arrival(self, error: Exception | None) -> None:
        self._taker = None
        if self._arrived is not None and not self._arrived.done():
            if error is None:
                self._arrived.set_result(None)
            else:
                self._arrived.set_exception(error)
        self._arrived = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        idle = self.cycle is None or self.cycle.response_complete
        # blank lines come before a request and do not begin one
        waits = self._coming or (idle and self.timeout_keep_alive_task is None)
        if waits and not self.transport.is_closing():
            self._expect_request()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[CONNECTION] = self
        self._coming = True  # most are here whole when all that has come is read: no timer for them

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.cycle.transport = cast("asyncio.Transport", self._writer)

    def on_response_complete(self) -> None:
        self._writer.end_answer()
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._coming = False
        self._stop_waiting()
        super().on_message_complete()
        self._end_arrival(None)

    def send_400_response(self, msg: str) -> None:
        body = encode_error(msg)
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body)
        )
        self.transport.close()

    def _expect_request(self) -> None:
        if self._arrival is None:
            self._arrival = self.loop.call_later(self.limits.receive_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _give_up(self) -> None:
        self._arrival = None
        self.counts.timed_out += 1
        self.transport.close()


def limit_connections(
    limits: ConnectionLimits, statistics: ServerStatistics
) -> type[LimitedProtocol]:
    """uvicorn's HTTP protocol, held to `limits`."""
    return type("Protocol", (LimitedProtocol,), {"limits": limits, "counts": statistics})
