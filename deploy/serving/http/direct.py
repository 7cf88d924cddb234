"""The direct way of an infer request: from the connection to its model, and back.

ASGI costs each request a task, two coroutines and several messages, which for a small model is most
of what a server spends. What is an infer request without anything out of the ordinary (a known
model, a body of announced length, a connection that stays) goes around it here. All else, whatever
there is to refuse before the body is in, goes the ordinary way; what the two answer is the same,
for `deploy.serving.http.inference` decides it.
"""

import asyncio
import hmac
import time
from collections.abc import Coroutine
from functools import partial
from http import HTTPStatus
from typing import Any

from deploy.serving.errors import RequestError, UnknownModelError, WithdrawnError
from deploy.serving.http.body import BodyReader, Reservation
from deploy.serving.http.encoding import JOIN_BELOW
from deploy.serving.http.heads import Head
from deploy.serving.http.inference import (
    Accepted,
    Answer,
    Caller,
    InferService,
    Target,
    parse_infer_path,
)
from deploy.serving.http.intake import take_over
from deploy.serving.http.slices import is_large
from deploy.serving.models.model import Outputs

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class DirectWay:
    """Recognizes the requests that can go the direct way.

    Args:
        service: what they are handed to.
        reader: whose bounds their bodies keep.
        token: the value of the authorization header that is asked for; None: none.
    """

    def __init__(self, service: InferService, reader: BodyReader, token: bytes | None) -> None:
        self.service = service
        self.reader = reader
        self._token = token

    def begin(self, connection: Any) -> "DirectRequest | None":
        """The request whose head `connection` has read; None: it is to go the ordinary way.

        Args:
            connection: a `deploy.serving.http.connections.LimitedProtocol`.
        """
        parser, url = connection.parser, connection.url
        if parser.get_method() != b"POST" or b"%" in url or b"?" in url:
            return None
        path = url.decode("latin-1")
        target = parse_infer_path(path)
        headers = dict(connection.headers)
        length = self.reader.find_length(headers)
        if target is None or length is None or not self._knows(target):
            return None
        if b"expect" in headers or b"upgrade" in headers or not self._admits(headers):
            return None
        if parser.get_http_version() != "1.1" or not parser.should_keep_alive():
            return None
        if connection.flow.write_paused:
            return None
        host = connection.client[0] if connection.client else None
        caller = Caller(self.service.identify(headers), path, host, time.monotonic())
        return DirectRequest(self, connection, Head(target, headers, length, caller))

    def repeat(self, connection: Any, head: Head) -> "DirectRequest | None":
        """As `begin`, for a head that was begun with before on this connection."""
        if self.reader.find_length(head.headers) is None:  # another length than before
            return None
        if not self._knows(head.target) or connection.flow.write_paused:
            return None
        path, host = head.caller.path, head.caller.host
        caller = Caller(self.service.identify(head.headers), path, host, time.monotonic())
        return DirectRequest(self, connection, Head(head.target, head.headers, head.length, caller))

    def _knows(self, target: Target) -> bool:
        try:
            self.service.repository.get(*target)
        except UnknownModelError:
            return False
        return not self.service.repository.draining

    def _admits(self, headers: dict[bytes, bytes]) -> bool:
        if self._token is None:
            return True
        return hmac.compare_digest(headers.get(b"authorization", b""), self._token)


class DirectRequest:
    """One request on the direct way; to uvicorn, the cycle of a request and its answer.

    Attributes:
        head: of it.
        response_complete: it is answered.
        response_started: only a part of its answer is written; it never is.
        keep_alive: the connection stays when it is; uvicorn clears this when the server ends.
        disconnected: the connection is lost; set by uvicorn.
        message_event: stands for the one that uvicorn sets, which nobody waits for.
    """

    __slots__ = (
        "_connection",
        "_reader",
        "_room",
        "_service",
        "disconnected",
        "head",
        "keep_alive",
        "message_event",
        "response_complete",
    )

    response_started = False

    def __init__(self, way: DirectWay, connection: Any, head: Head) -> None:
        self._service = way.service
        self._reader = way.reader
        self._connection = connection
        self.head = head
        self._room: Reservation | None = None
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self.message_event = _UNHEARD

    def take(self, chunk: bytes | memoryview) -> bool:
        """The next bytes of its body; False: there is no room for it, nothing was taken."""
        if self._room is None:
            self._room = self._reader.reserve(self.head.length, self.head.headers)
            if self._room is None:
                return False
        self._room.take(chunk)
        take_over(self._connection, self._room)
        return True

    def run(self) -> None:
        """Hand it to its model; its body is whole."""
        body = self._room.body.data if self._room is not None else memoryview(b"")
        try:
            accepted = self._service.accept(self.head.target, body, self.head.headers)
        except RequestError as error:
            self._refuse(error)
            return
        if accepted.outputs.done():  # it ran on the event loop
            self._settle(accepted, accepted.outputs)
            return
        self._connection.withdraw = accepted.outputs.cancel
        accepted.outputs.add_done_callback(lambda done: self._settle(accepted, done))

    def abandon(self) -> None:
        """Let go of its body; the connection is lost."""
        self._release()

    def _settle(self, accepted: Accepted, done: "asyncio.Future[Outputs]") -> None:
        """Answer with what became of it."""
        self._connection.withdraw = None
        error = None if done.cancelled() else done.exception()
        if self._connection.lost or done.cancelled():
            self._end_unanswered()
            return
        if isinstance(error, RequestError):
            self._refuse(error)
            return
        if is_large(accepted.request, done.result()):
            writing = self._start(self._answer_in_turns(accepted, done.result()))
            self._connection.withdraw = writing.cancel
            return
        try:
            answer = self._service.answer(accepted, done.result(), self.head.caller)
        except RequestError as refusal:
            self._refuse(refusal)
            return
        self._write(answer)

    async def _answer_in_turns(self, accepted: Accepted, outputs: Outputs) -> None:
        """Answer with what takes long to write."""
        caller = self.head.caller
        assert self._room is not None  # a request without a body asks for no large answer
        hold = partial(self._reader.extend, self._room.body)
        try:
            answer = await self._service.answer_in_turns(accepted, outputs, caller, hold)
        except RequestError as error:
            answer = self._service.refuse(error, self.head.target, caller)
        except asyncio.CancelledError:
            self._end_unanswered()
            return
        self._connection.withdraw = None
        self._write(answer)

    def _end_unanswered(self) -> None:
        """The connection is lost, or the server ends without waiting for the request."""
        self._connection.withdraw = None
        if self._connection.lost:
            self._release()
            self._service.log(499, self.head.caller)
        else:
            self._refuse(WithdrawnError())

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run what the server must not end before."""
        tasks = self._connection.tasks
        task: asyncio.Task[None] = self._connection.loop.create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    def _refuse(self, error: RequestError) -> None:
        self._write(self._service.refuse(error, self.head.target, self.head.caller))

    def _write(self, answer: Answer) -> None:
        """Send an answer, which counts as held until the other side took most of it."""
        self._release()
        connection = self._connection
        transport, flow = connection.transport, connection.flow
        if self._service.repository.draining:
            self.keep_alive = False  # and the answer says so
        elif not self.keep_alive:
            answer.headers.append((b"connection", b"close"))
        head = render_head(answer)
        size = answer.size
        if size <= JOIN_BELOW:
            transport.write(b"".join((head, *answer.parts)))
        else:
            transport.writelines((head, *answer.parts))
        if flow.write_paused:
            self._start(self._hold(size))
        self.response_complete = True
        if not self.keep_alive:
            transport.close()
        connection.on_response_complete()

    async def _hold(self, size: int) -> None:
        statistics = self._service.statistics
        statistics.inflight_bytes += size
        try:
            await self._connection.flow.drain()
        finally:
            statistics.inflight_bytes -= size

    def _release(self) -> None:
        if self._room is not None:
            self._room.body.release()
            self._room = None


def render_head(answer: Answer) -> bytes:
    """Status line and headers as they go over the wire."""
    lines = [_STATUS_LINES[answer.status]]
    lines += [b"%s: %s\r\n" % header for header in answer.headers]
    return b"".join((*lines, b"\r\n"))


class _Unheard:
    """An event that nobody waits for."""

    def set(self) -> None:
        """Nothing."""


_UNHEARD = _Unheard()
