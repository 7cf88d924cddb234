"""HTTP connections with bounds: on time, on number, and on what is held for them.

uvicorn bounds how long a connection may be idle between requests. It does not bound how long one
may take to send a request, to begin with one, or to take its answer, how long a head may be, or how
many requests may wait behind the one that runs; each of them is what a client holds a server by.
"""

import asyncio
from collections.abc import Callable, Sized
from http import HTTPStatus
from typing import Any, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from deploy.serving.errors import RequestError
from deploy.serving.http.answer_writer import AnswerWriter
from deploy.serving.http.body import DisconnectedError
from deploy.serving.http.direct import DirectRequest, DirectWay
from deploy.serving.http.endings import ConnectionLimits, EndingProtocol
from deploy.serving.http.heads import HeadMemory
from deploy.serving.http.infer_endpoint import CONNECTION
from deploy.serving.http.intake import WORTH_IT, Intake
from deploy.serving.http.upgrades import feed_parser
from deploy.serving.metrics import ServerStatistics

HEAD_LIMIT = 64 * 2**10
"""Bytes that may come without a byte of a body among them: heads, trailers, extensions of chunks.

A little more passes where it comes at once: it is looked at after each read of the socket.
"""

DIRECT_IN_A_READ = 8
"""Requests of one read of the socket that may go the direct way, on which each can be answered
before the next is looked at. The rest take turns with other connections."""


class LimitedProtocol(EndingProtocol):
    """One connection.

    Attributes:
        direct: the way of infer requests that need nothing else; None: there is none.
        withdraw: called when the connection is lost while its request runs.
        lost: it is.
        intake: what reads for it, once a large body came.
    """

    direct: DirectWay | None = None
    withdraw: Callable[[], Any] | None = None
    lost = False
    intake: Intake | None = None
    _running: RequestResponseCycle | None = None
    _taker: Callable[[bytes], None] | None = None
    _arrived: asyncio.Future[None] | None = None
    _arrival: asyncio.TimerHandle | None = None
    _without_body = 0
    _directly = 0
    _coming = False
    _held_back = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _PatientFlow(transport, self.pipeline)
        self._writer = AnswerWriter(transport)
        self._heads = HeadMemory()
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
        self._stop_departure()
        super().connection_lost(exc)
        if self._running is not None:  # uvicorn tells the one that came last, which may wait
            self._running.disconnected = True
        self._stop_idling()
        if self.withdraw is not None:
            self.withdraw()
        if isinstance(self.cycle, DirectRequest):
            self.cycle.abandon()
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
        self._without_body = 0
        if isinstance(self.cycle, DirectRequest):
            self._give_directly(self.cycle, body)
            return
        if self._taker is None:
            super().on_body(body)
            return
        try:
            self._taker(body)
        except RequestError as error:
            self._end_arrival(error)

    def _give_directly(self, request: DirectRequest, body: bytes) -> None:
        if request.take(body):
            return
        self.cycle = cast("Any", None)  # there is no room for it: the ordinary way says so
        self._begin_cycle()
        super().on_body(body)

    def _end_arrival(self, error: Exception | None) -> None:
        self._taker = None
        if self._arrived is not None and not self._arrived.done():
            if error is None:
                self._arrived.set_result(None)
            else:
                self._arrived.set_exception(error)
        self._arrived = None

    def data_received(self, data: bytes) -> None:
        alone = self._is_idle() and not (self._coming or self.transport.is_closing())
        if alone and self._repeat(data):
            return
        self._without_body += len(data)
        self._directly = 0
        self._unset_keepalive_if_required()
        try:
            feed_parser(self, data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._without_body > HEAD_LIMIT:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._refuse(status, "the head is too long")
            return
        if alone and self._directly == 1 and isinstance(self.cycle, DirectRequest):
            self._heads.keep(data, self.cycle.head)
        # blank lines come before a request and do not begin one
        waits = self._coming or (self._is_idle() and self._idle_since is None)
        if waits and not self._held_back and not self.transport.is_closing():
            self._expect_request()

    def _repeat(self, data: bytes) -> bool:
        """Take a request whose head came before; False: nothing is done, for it is another one.

        Its body is whole, or so long that an intake reads the rest of it: the parser of this
        connection, which does not see the head, would take the rest for the next request.
        """
        if self.direct is None:
            return False
        recalled = self._heads.recall(data, WORTH_IT if self.scheme == "http" else 0)
        if recalled is None:
            return False
        head, size = recalled
        request = self.direct.repeat(self, head)
        if request is None:
            return False
        self.cycle = cast("Any", request)  # which lets go of what it holds, whatever fails here
        if not request.take(memoryview(data)[size:]):
            self.cycle = cast("Any", None)
            return False
        self._without_body = 0
        self._stop_waiting()
        self._unset_keepalive_if_required()
        if size + head.length == len(data):
            request.run()
        else:
            self._coming = self._within = True
            self._expect_request()
        return True

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()  # one before it in the same read was answered already
        self._without_body = 0
        cast("dict[str, Any]", self.scope)[CONNECTION] = self
        self._coming = True  # most are here whole when all that has come is read: no timer for them

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._within = True
        if self.direct is not None and self._is_idle() and self._directly < DIRECT_IN_A_READ:
            request = self.direct.begin(self)
            if request is not None:
                self._directly += 1
                self.cycle = cast("Any", request)
                return
        self._begin_cycle()

    def _begin_cycle(self) -> None:
        super().on_headers_complete()
        self.cycle.transport = cast("asyncio.Transport", self._writer)
        self._held_back = bool(self.pipeline)  # nothing is read until those before it are answered
        if self._held_back:
            self._stop_waiting()
        else:
            self._running = self.cycle

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._coming = self._within = False
        self._stop_waiting()
        if isinstance(self.cycle, DirectRequest):
            self.cycle.run()
            return
        super().on_message_complete()
        self._end_arrival(None)

    def on_response_complete(self) -> None:
        self._writer.end_answer()
        if self.pipeline or self.transport.is_closing():
            self._running = self.pipeline[-1][0] if self.pipeline else None
            super().on_response_complete()
        else:
            self.server_state.total_requests += 1
            self.flow.resume_reading()
            self._begin_idling()
        if self.transport.is_closing():
            self._end()
        elif self._held_back and not self.pipeline:  # the last that came may be there in part
            self._held_back = False
            if self._coming:
                self._expect_request()

    def _end_after_answers(self) -> None:
        super()._end_after_answers()
        self._coming = False
        self._stop_waiting()

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
        if self._owes_answers():
            self._end_after_answers()
        else:
            self._end()


class _PatientFlow(FlowControl):
    """Reads on only when no request waits behind another, so that few are held."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


def limit_connections(
    limits: ConnectionLimits, statistics: ServerStatistics, direct: DirectWay | None = None
) -> type[LimitedProtocol]:
    """uvicorn's HTTP protocol, held to `limits`; infer requests go the `direct` way."""
    members = {"limits": limits, "counts": statistics, "direct": direct}
    return type("Protocol", (LimitedProtocol,), members)
