"""The endpoint that all the others are there for: POST v2/models/{m}[/versions/{v}]/infer.

An ASGI application of its own, beside the framework's routes: between the socket and the batcher
lies nothing that a request does not need.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from deploy.serving.body import Body, BodyReader, DisconnectedError, Receive, read_header_length
from deploy.serving.decoding import decode_request, parse_header_length
from deploy.serving.encoding import encode_error, encode_response
from deploy.serving.errors import EngineFailedError, MalformedRequestError, RequestError
from deploy.serving.metrics import ServerStatistics
from deploy.serving.model import Outputs, ServedModel
from deploy.serving.protocol import InferRequest, InferResponse
from deploy.serving.repository import ModelRepository

_LOG = logging.getLogger("deploy.serving.requests")
CONNECTION = "deploy.connection"
"""Key of the scope under which `deploy.serving.connections` puts the connection."""

_JSON = (b"content-type", b"application/json")
_RAW = (b"content-type", b"application/octet-stream")
_CLOSE = (b"connection", b"close")
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def parse_infer_path(path: str) -> tuple[str, str] | None:
    """Name and version (empty: none given) of a path that ends in ``/infer``; None: another one."""
    parts = path.split("/")
    if parts[:3] != ["", "v2", "models"] or parts[-1] != "infer":
        return None
    if len(parts) == 5:
        return parts[3], ""
    if len(parts) == 7 and parts[4] == "versions" and parts[5]:
        return parts[3], parts[5]
    return None


class InferEndpoint:
    """Answers infer requests over HTTP.

    Args:
        repository: the models.
        reader: takes in bodies.
        statistics: counts what meets no model.
    """

    def __init__(
        self, repository: ModelRepository, reader: BodyReader, statistics: ServerStatistics
    ) -> None:
        self._repository = repository
        self._reader = reader
        self._statistics = statistics
        self._numbers = itertools.count(1)

    async def __call__(
        self, target: tuple[str, str], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer one request to the model and version of `target`."""
        started = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        identity = given if 0 < len(given) <= 128 else b"%x" % next(self._numbers)
        model: ServedModel | None = None
        status = 200
        try:
            if scope["method"] != "POST":
                raise _WrongMethodError("infer requests are POST")
            model = self._repository.get(*target)
            connection = scope.get(CONNECTION)
            if connection is not None and connection.scope is not scope:
                connection = None  # another request of a pipeline is coming in already
            body = await self._reader.read(receive, headers, connection)
            try:
                model = self._repository.get(*target)  # a new version may have taken over
                parts, header = await self._answer(model, body, headers, scope)
            finally:
                body.release()
            await self._send_counted(send, parts, header, identity, scope)
        except RequestError as error:
            status = error.status
            self._count(model, error, time.monotonic() - started)
            await send_refusal(send, error, identity, close=self._repository.draining)
        except DisconnectedError:
            status = 499
        if status != 200 or _LOG.isEnabledFor(logging.DEBUG):
            self._log(scope, status, identity, started)

    async def _answer(
        self, model: ServedModel, body: Body, headers: dict[bytes, bytes], scope: Scope
    ) -> tuple[list[bytes | memoryview], int | None]:
        """The parts of the answer, and the length of its JSON where raw tensors follow.

        Nothing is awaited before the request is handed to the model, so none is lost when another
        version takes over.
        """
        try:
            length = read_header_length(headers)
            header = None if length is None else parse_header_length(length, len(body.data))
            request = decode_request(body.data, header, model.signature)
            outputs = await self._run(model, request, scope)
            response = InferResponse(model.name, model.version, request.id, outputs)
            return encode_response(response, request)
        except (RequestError, DisconnectedError):
            raise
        except Exception as error:  # a bug of ours is a 500 in the words of the protocol
            _LOG.exception("a request failed")
            raise EngineFailedError("the server failed; its log says how") from error

    async def _run(self, model: ServedModel, request: InferRequest, scope: Scope) -> Outputs:
        """The engine's outputs; the request is withdrawn when its connection is lost."""
        future = model.submit(request)
        connection = scope.get(CONNECTION)
        if connection is None:
            return await future
        connection.withdraw = future.cancel
        try:
            return await future
        except asyncio.CancelledError:
            if connection.lost:
                raise DisconnectedError from None
            raise
        finally:
            connection.withdraw = None

    async def _send_counted(
        self,
        send: Send,
        parts: list[bytes | memoryview],
        header: int | None,
        identity: bytes,
        scope: Scope,
    ) -> None:
        """Send an answer, which counts as held until the other side took most of it."""
        size = sum(map(len, parts))
        self._statistics.inflight_bytes += size
        try:
            await self._send(send, parts, header, identity)
            connection = scope.get(CONNECTION)
            if connection is not None:
                await connection.flow.drain()
        finally:
            self._statistics.inflight_bytes -= size

    async def _send(
        self, send: Send, parts: list[bytes | memoryview], header: int | None, identity: bytes
    ) -> None:
        size = sum(map(len, parts))
        headers = [
            _JSON if header is None else _RAW,
            (b"content-length", b"%d" % size),
            (b"x-request-id", identity),
        ]
        if header is not None:
            headers.append((b"inference-header-content-length", b"%d" % header))
        if self._repository.draining:
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        last = len(parts) - 1
        for number, part in enumerate(parts):
            more = number < last
            await send({"type": "http.response.body", "body": part, "more_body": more})

    def _count(self, model: ServedModel | None, error: RequestError, seconds: float) -> None:
        """Count what did not come as far as the model's own count."""
        if model is None:
            self._statistics.refuse(error.status)
        elif error.status in (400, 413, 415) or error.reason == "UNAVAILABLE":
            model.statistics.fail(error, seconds)

    def _log(self, scope: Scope, status: int, identity: bytes, started: float) -> None:
        client = scope.get("client")
        _LOG.log(
            logging.WARNING if status >= 500 else logging.INFO,
            "%s %d",
            scope["path"][:200],
            status,
            extra={
                "request_id": identity.decode("latin-1"),
                "status": status,
                "duration_ms": round((time.monotonic() - started) * 1e3, 3),
                "client": client[0] if client else None,
            },
        )


class _WrongMethodError(MalformedRequestError):
    status = 405


async def send_refusal(
    send: Send, error: RequestError, identity: bytes = b"", *, close: bool = False
) -> None:
    """Answer with an error: its status, its message, and when to come back."""
    body = encode_error(str(error))
    headers = [_JSON, (b"content-length", b"%d" % len(body))]
    if identity:
        headers.append((b"x-request-id", identity))
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after))
    if error.status == 405:
        headers.append((b"allow", b"POST"))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if close:
        headers.append(_CLOSE)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
