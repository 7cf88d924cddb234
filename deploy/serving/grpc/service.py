"""The gRPC side: ``inference.GRPCInferenceService`` and the standard health service."""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from deploy.serving.errors import (
    MalformedRequestError,
    RequestError,
    UnauthorizedError,
)
from deploy.serving.grpc.bounds import (
    PROBE_S,
    PROBE_SLOTS,
    Arrivals,
    HeldBytes,
    count_slots,
)
from deploy.serving.grpc.codec import decode_message, encode_message
from deploy.serving.grpc.messages import (
    HEALTH,
    INFERENCE,
    NOT_SERVING,
    SERVICE_UNKNOWN,
    SERVING,
    UNKNOWN,
)
from deploy.serving.grpc.wire import check_parts
from deploy.serving.http.rest import describe_server
from deploy.serving.metrics import ServerStatistics
from deploy.serving.models.repository import ModelRepository
from deploy.serving.options import ServeOptions
from deploy.serving.protocol import InferResponse
from deploy.serving.tracing.notes import note_model
from deploy.serving.tracing.spans import SpanSender
from deploy.serving.tracing.traced import Call, note_code, trace_call

_LOG = logging.getLogger("deploy.serving")
_OPEN = ("ServerLive", "ServerReady", "Check")
"""Calls that ask for no token, since probes have none."""

_PROBES = (*_OPEN, "ModelReady")
"""Calls that leave no traces."""

SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"
_WATCH_S = 0.5
"""Seconds between looks at the health that is watched."""

MAX_WATCHERS = 64
"""At a time: each holds one of the calls that may be open, asks for no token and never ends."""

Method = Callable[[Any, Any], Awaitable[Any]]


class GrpcService:
    """Answers the calls of both services.

    Args:
        repository: the models.
        options: limits and the token.
        statistics: counts what meets no model.
        sender: takes traces; None: there are none.
    """

    def __init__(
        self,
        repository: ModelRepository,
        options: ServeOptions,
        statistics: ServerStatistics,
        sender: SpanSender | None = None,
    ) -> None:
        self._repository = repository
        self._statistics = statistics
        self._sender = sender
        self._token = f"Bearer {options.token}" if options.token else None
        self._watchers = 0
        self._inflight_limit = options.max_inflight_mb * 2**20
        self._tensors = Arrivals(count_slots(options), options.receive_timeout)
        self._others = Arrivals(PROBE_SLOTS, min(options.receive_timeout, PROBE_S))

    def handlers(self) -> list[Any]:
        """What a grpc.aio server takes."""
        return [
            grpc.method_handlers_generic_handler(SERVICE, self._inference()),
            grpc.method_handlers_generic_handler(HEALTH_SERVICE, self._health_methods()),
        ]

    def _inference(self) -> dict[str, Any]:
        methods: dict[str, Method] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
            "RepositoryIndex": self.repository_index,
        }
        return {
            name: self._handle(name, method, INFERENCE[f"{name}Request"])
            for name, method in methods.items()
        }

    def _health_methods(self) -> dict[str, Any]:
        asked = HEALTH["HealthCheckRequest"]
        return {
            "Check": self._handle("Check", self.check, asked),
            "Watch": grpc.stream_stream_rpc_method_handler(
                self.watch, response_serializer=_serialize
            ),
        }

    async def server_live(self, request: Any, context: Any) -> Any:
        return INFERENCE["ServerLiveResponse"](live=True)

    async def server_ready(self, request: Any, context: Any) -> Any:
        return INFERENCE["ServerReadyResponse"](ready=self._repository.ready)

    async def model_ready(self, request: Any, context: Any) -> Any:
        model = self._repository.get(request.name, request.version)
        ready = model.ready and not self._repository.draining
        return INFERENCE["ModelReadyResponse"](ready=ready)

    async def server_metadata(self, request: Any, context: Any) -> Any:
        return INFERENCE["ServerMetadataResponse"](**describe_server())

    async def model_metadata(self, request: Any, context: Any) -> Any:
        model = self._repository.get(request.name, request.version)
        described = model.describe()
        described.pop("parameters")
        described["versions"] = self._repository.versions(request.name)
        return INFERENCE["ModelMetadataResponse"](**described)

    async def repository_index(self, request: Any, context: Any) -> Any:
        models = self._repository.index(ready_only=request.ready)
        return INFERENCE["RepositoryIndexResponse"](models=models)

    async def model_infer(self, request: Any, context: Any) -> Any:
        """Run a model; a call that is cancelled or runs out of time is withdrawn."""
        model = self._repository.get(request.model_name, request.model_version)
        note_model(model.name, model.version)
        try:
            wanted = decode_message(request, model.signature)
        except RequestError as error:
            model.statistics.fail(error, 0.0)
            raise
        outputs = await model.submit(wanted)
        response = InferResponse(model.name, model.version, wanted.id, outputs)
        return encode_message(response, wanted, model.signature)

    async def check(self, request: Any, context: Any) -> Any:
        return HEALTH["HealthCheckResponse"](status=self._health(request.service))

    async def watch(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        """The health whenever it changes, until the caller leaves or the server ends."""
        try:
            data = await self._others.receive(messages)
            request = _parse(HEALTH["HealthCheckRequest"], data)
        except RequestError as error:
            await _abort(context, getattr(grpc.StatusCode, error.code), str(error))
        if self._watchers >= MAX_WATCHERS:
            text = f"{MAX_WATCHERS} watch already, as many as may; Check asks once"
            await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        self._watchers += 1
        last = UNKNOWN
        try:
            while not self._repository.draining or last != NOT_SERVING:
                status = self._health(request.service)
                if status != last:
                    last = status
                    yield HEALTH["HealthCheckResponse"](status=status)
                await asyncio.sleep(_WATCH_S)
        finally:
            self._watchers -= 1

    def _health(self, service: str) -> int:
        if service not in ("", SERVICE):
            return SERVICE_UNKNOWN
        return SERVING if self._repository.ready else NOT_SERVING

    def _handle(self, name: str, method: Method, asked: Any) -> Any:
        """The handler of a call with one message `asked`, which must come in time.

        It is a handler of streams, since that of single messages waits for one without end. Who may
        not call is told so before a message is waited for.
        """
        arrivals = self._tensors if name == "ModelInfer" else self._others

        async def answer(messages: AsyncIterator[bytes], context: Any) -> bytes:
            if self._token is not None and name not in _OPEN:
                self._check_token(context)
            held = HeldBytes(self._statistics, self._inflight_limit, context)
            data = await arrivals.receive(messages)
            held.take(len(data))
            check_parts(data)
            answered = _serialize(await method(_parse(asked, data), context))
            held.add(len(answered))
            return answered

        call = self._guard(answer)
        if self._sender is not None and name not in _PROBES:
            call = trace_call(call, SERVICE, name, self._sender)
        return grpc.stream_unary_rpc_method_handler(call)

    def _guard(self, answer: Call) -> Call:
        """`answer`, with refusals as gRPC has them."""

        async def call(messages: AsyncIterator[bytes], context: Any) -> Any:
            try:
                return await answer(messages, context)
            except RequestError as error:
                if not error.counted:
                    self._statistics.refuse(error.status)
                await _abort(context, getattr(grpc.StatusCode, error.code), str(error))
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception:  # noqa: BLE001  a bug is INTERNAL, without its insides
                _LOG.exception("a call failed")
                await _abort(context, grpc.StatusCode.INTERNAL, "the server failed")

        return call

    def _check_token(self, context: Any) -> None:
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not hmac.compare_digest(given.encode(), (self._token or "").encode()):
            raise UnauthorizedError("a bearer token is asked for, and none or another came")


async def _abort(context: Any, code: grpc.StatusCode, message: str) -> None:
    note_code(code)
    await context.abort(code, message)


def _parse(asked: Any, data: bytes) -> Any:
    try:
        return asked.FromString(data)
    except DecodeError as error:
        raise MalformedRequestError("the bytes are no such message") from error


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
