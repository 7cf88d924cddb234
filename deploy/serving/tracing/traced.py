"""The edge of a server that leaves traces: where a request's note is begun and handed on.

Nothing that a stranger wrote becomes a name or, but for the id of a request, an attribute; the id
has a bound. Probes (health, readiness, metrics) leave no traces.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import grpc

from deploy.serving.errors import UnknownModelError
from deploy.serving.http.body import Receive
from deploy.serving.http.infer_endpoint import Scope, Send
from deploy.serving.http.inference import parse_infer_path
from deploy.serving.models.repository import ModelRepository
from deploy.serving.tracing.notes import CURRENT, RequestTrace
from deploy.serving.tracing.spans import SpanSender

INFER_ROUTE = "/v2/models/{name}/infer"
_METHODS = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
_PROBES = ("/metrics", "/status.json")
_PARENT_LIMIT = 128
"""Characters of a traceparent; one of today's version has 55."""

_STATE_LIMIT = 512
"""Characters of a tracestate that are to be kept, by the recommendation of the W3C."""

Call = Callable[[AsyncIterator[bytes], Any], Awaitable[Any]]


class TracedApplication:
    """An ASGI application whose requests leave traces.

    Args:
        application: answers them.
        repository: the models, whose names may be told.
        sender: takes the notes.
    """

    def __init__(self, application: Any, repository: ModelRepository, sender: SpanSender) -> None:
        self._application = application
        self._repository = repository
        self._sender = sender

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or _is_probe(scope["path"]):
            await self._application(scope, receive, send)
            return
        target = parse_infer_path(scope["path"].rstrip("/"))
        trace = _begin(scope, infer=target is not None)

        async def send_noted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                _note_head(trace, message)
            await send(message)

        token = CURRENT.set(trace)
        try:
            await self._application(scope, receive, send_noted)
        finally:
            CURRENT.reset(token)
            if target is not None:
                self._note_model(trace, target)
            self._sender.finish(trace)

    def _note_model(self, trace: RequestTrace, target: tuple[str, str]) -> None:
        """Of which model a request is that was refused before it reached one."""
        if "deploy.model" in trace.attributes:
            return
        try:
            model = self._repository.get(*target)
        except UnknownModelError:
            return
        trace.note_model(model.name, model.version)


def trace_call(call: Call, service: str, method: str, sender: SpanSender) -> Call:
    """A handler of gRPC whose calls leave traces."""

    async def traced(messages: AsyncIterator[bytes], context: Any) -> Any:
        trace = RequestTrace(
            f"{service}/{method}",
            read_parent(context.invocation_metadata() or ()),
            {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
        )
        context.add_done_callback(lambda _: sender.finish(trace))
        token = CURRENT.set(trace)
        try:
            answer = await call(messages, context)
            note_code(grpc.StatusCode.OK)
            trace.wrote = time.monotonic()
            return answer
        except asyncio.CancelledError:
            note_code(grpc.StatusCode.CANCELLED)
            raise
        finally:
            CURRENT.reset(token)

    return traced


def note_code(code: grpc.StatusCode) -> None:
    """The status that the running call of gRPC ends with, where traces are asked for."""
    trace = CURRENT.get()
    if trace is not None:
        trace.attributes["rpc.grpc.status_code"] = code.value[0]
        trace.failed = code in _SERVERS_OWN


_SERVERS_OWN = (
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
)
"""Codes for which a server is to blame, by OpenTelemetry's conventions."""


def read_parent(headers: Iterable[tuple[str | bytes, str | bytes]]) -> dict[str, str]:
    """The headers of the W3C among `headers`, where they are not longer than they may be.

    A traceparent that is there twice is none, by the recommendation; whether one is well formed is
    looked at when spans are made.
    """
    found: dict[str, str] = {}
    for key, value in headers:
        name = _text(key)
        if name == "traceparent":
            found[name] = "" if name in found else _text(value)
        elif name == "tracestate":
            found[name] = f"{found[name]},{_text(value)}" if name in found else _text(value)
    if not 0 < len(found.get("traceparent", "")) <= _PARENT_LIMIT:
        return {}
    if len(found.get("tracestate", "")) > _STATE_LIMIT:
        del found["tracestate"]
    return found


def _begin(scope: Scope, *, infer: bool) -> RequestTrace:
    method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
    trace = RequestTrace(method, read_parent(scope["headers"]), {"http.request.method": method})
    if infer:
        trace.name = f"{method} {INFER_ROUTE}"
        trace.attributes["http.route"] = INFER_ROUTE
    return trace


def _note_head(trace: RequestTrace, message: MutableMapping[str, Any]) -> None:
    trace.wrote = time.monotonic()
    trace.attributes["http.response.status_code"] = message["status"]
    trace.failed = message["status"] >= 500
    for name, value in message.get("headers", ()):
        if name == b"x-request-id":
            trace.attributes["deploy.request_id"] = value.decode("latin-1")


def _is_probe(path: str) -> bool:
    path = path.rstrip("/")
    return path in _PROBES or path.startswith("/v2/health/") or path.endswith("/ready")


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
