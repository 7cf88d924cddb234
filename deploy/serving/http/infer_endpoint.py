"""Infer requests by way of ASGI: under Ray Serve, and for what the direct way leaves alone.

An ASGI application of its own, beside the framework's routes: between the socket and the batcher
lies nothing that a request does not need.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

from deploy.serving.errors import MalformedRequestError, RequestError, WithdrawnError
from deploy.serving.http.body import BodyReader, DisconnectedError, Receive
from deploy.serving.http.inference import Accepted, Answer, Caller, InferService, Target
from deploy.serving.http.slices import Hold

CONNECTION = "deploy.connection"
"""Key of the scope under which `deploy.serving.http.connections` puts the connection."""

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class InferEndpoint:
    """Answers infer requests over HTTP.

    Args:
        service: what requests are handed to.
        reader: takes in bodies.
    """

    def __init__(self, service: InferService, reader: BodyReader) -> None:
        self._service = service
        self._reader = reader

    async def __call__(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request to the model and version of `target`."""
        service = self._service
        headers = dict(scope["headers"])
        host = scope["client"][0] if scope.get("client") else None
        caller = Caller(service.identify(headers), scope["path"], host, time.monotonic())
        try:
            if scope["method"] != "POST":
                raise _WrongMethodError("infer requests are POST")
            service.repository.get(*target)  # before its body is taken in
            connection = scope.get(CONNECTION)
            if connection is not None and connection.scope is not scope:
                connection = None  # another request of a pipeline is coming in already
            body = await self._reader.read(receive, headers, connection)
            try:
                accepted = service.accept(target, body.data, headers)
                hold = partial(self._reader.extend, body)
                answer = await self._await_answer(accepted, caller, scope, hold)
            finally:
                body.release()
            await self._send_counted(send, answer, scope)
        except RequestError as error:
            await send_answer(send, service.refuse(error, target, caller))
        except DisconnectedError:
            service.log(499, caller)

    async def _await_answer(
        self, accepted: Accepted, caller: Caller, scope: Scope, hold: Hold
    ) -> Answer:
        """What the engine made of it, written; all is left when its connection is lost."""
        connection, task = scope.get(CONNECTION), asyncio.current_task()
        if connection is None or task is None:
            outputs = await accepted.outputs
            return await self._service.answer_in_turns(accepted, outputs, caller, hold)
        connection.withdraw = task.cancel
        try:
            outputs = await accepted.outputs
            return await self._service.answer_in_turns(accepted, outputs, caller, hold)
        except asyncio.CancelledError:
            if connection.lost:
                raise DisconnectedError from None
            raise WithdrawnError from None
        finally:
            connection.withdraw = None

    async def _send_counted(self, send: Send, answer: Answer, scope: Scope) -> None:
        """Send an answer, which counts as held until the other side took most of it."""
        statistics, size = self._service.statistics, answer.size
        statistics.inflight_bytes += size
        try:
            await send_answer(send, answer)
            connection = scope.get(CONNECTION)
            if connection is not None:
                await connection.flow.drain()
        finally:
            statistics.inflight_bytes -= size


class _WrongMethodError(MalformedRequestError):
    status = 405


async def send_answer(send: Send, answer: Answer) -> None:
    """Hand an answer to the ASGI server."""
    start = {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
    await send(start)
    last = len(answer.parts) - 1
    for number, part in enumerate(answer.parts):
        more = number < last
        await send({"type": "http.response.body", "body": part, "more_body": more})
