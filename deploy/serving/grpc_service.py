"""The gRPC side: ``inference.GRPCInferenceService`` and the standard health service."""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from deploy.serving.errors import (
    MalformedRequestError,
    QueueFullError,
    RequestError,
    UnauthorizedError,
)
from deploy.serving.grpc_codec import decode_message, encode_message
from deploy.serving.grpc_messages import (
    HEALTH,
    INFERENCE,
    NOT_SERVING,
    SERVICE_UNKNOWN,
    SERVING,
    UNKNOWN,
)
from deploy.serving.metrics import ServerStatistics
from deploy.serving.options import ServeOptions
from deploy.serving.protocol import InferResponse
from deploy.serving.repository import ModelRepository
from deploy.serving.rest import describe_server
from deploy.serving.spans import SpanSender
from deploy.serving.traced import note_code, trace_call
from deploy.serving.tracing import note_model
from export.errors import ConfigError, EngineError

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
        self._receive_s = options.receive_timeout
        self._inflight_limit = options.max_inflight_mb * 2**20

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
            "Watch": grpc.unary_stream_rpc_method_handler(
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

    async def watch(self, data: bytes, context: Any) -> AsyncIterator[Any]:
        """The health whenever it changes, until the caller leaves or the server ends."""
        try:
            request = _parse(HEALTH["HealthCheckRequest"], data)
        except MalformedRequestError as error:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
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
        """The handler of a call with one message, which must come in time.

        It is a handler of streams, since that of single messages waits for one without end.
        """
        guarded = self._guard(method, asked, open_to_all=name in _OPEN)

        async def call(messages: AsyncIterator[bytes], context: Any) -> Any:
            try:
                data = await asyncio.wait_for(anext(messages), self._receive_s)
            except TimeoutError:
                await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "no message came in time")
            except StopAsyncIteration:
                await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
            return await guarded(data, context)

        if self._sender is not None and name not in _PROBES:
            call = trace_call(call, SERVICE, name, self._sender)
        return grpc.stream_unary_rpc_method_handler(call, response_serializer=_serialize)

    def _guard(self, method: Method, asked: Any, *, open_to_all: bool) -> Method:
        """`method` for bytes that should be a message `asked`, with refusals as gRPC has them."""

        async def call(data: bytes, context: Any) -> Any:
            try:
                if self._token is not None and not open_to_all:
                    self._check_token(context)
                with self._hold(len(data)):
                    return await method(_parse(asked, data), context)
            except RequestError as error:
                if error.status in (401, 404):
                    self._statistics.refuse(error.status)
                await _abort(context, getattr(grpc.StatusCode, error.code), str(error))
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception:  # noqa: BLE001  a bug is INTERNAL, without its insides
                _LOG.exception("a call failed")
                await _abort(context, grpc.StatusCode.INTERNAL, "the server failed")

        return call

    @contextlib.contextmanager
    def _hold(self, size: int) -> Iterator[None]:
        """Count a message as held while it is answered, as HTTP does with bodies."""
        if self._statistics.inflight_bytes + size > self._inflight_limit:
            raise QueueFullError("the server holds as many bytes of requests as it may")
        self._statistics.inflight_bytes += size
        try:
            yield
        finally:
            self._statistics.inflight_bytes -= size

    def _check_token(self, context: Any) -> None:
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not hmac.compare_digest(given.encode(), (self._token or "").encode()):
            raise UnauthorizedError("a bearer token is asked for, and none or another came")


async def start_grpc(service: GrpcService, options: ServeOptions) -> tuple[Any, int]:
    """A grpc.aio server that listens, and its port.

    Raises:
        ConfigError: a TLS file cannot be read.
        EngineError: the port is taken.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", options.max_body_mb * 2**20),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", int(options.workers > 1)),
        ],
        maximum_concurrent_rpcs=options.max_connections,
    )
    server.add_generic_rpc_handlers(service.handlers())
    address = f"{options.host}:{options.grpc_port}"
    try:
        if options.tls_cert:
            port = server.add_secure_port(address, _credentials(options))
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise EngineError(
            f"gRPC cannot listen on {address}: {error}. Choose another --grpc-port."
        ) from error
    await server.start()
    return server, port


def _credentials(options: ServeOptions) -> Any:
    try:
        key, certificate = (Path(f).read_bytes() for f in (options.tls_key, options.tls_cert))
    except OSError as error:
        raise ConfigError(f"A TLS file cannot be read: {error}.") from error
    return grpc.ssl_server_credentials([(key, certificate)])


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
