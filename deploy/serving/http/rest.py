"""The HTTP side: the routes of the Open Inference Protocol v2, metrics, documents, status page."""

import hmac
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from deploy.measuring.machine import installed_versions
from deploy.serving.errors import (
    MalformedRequestError,
    NotOfferedError,
    RequestError,
    UnauthorizedError,
    UnavailableError,
    UnknownModelError,
)
from deploy.serving.http.body import BodyReader, Receive
from deploy.serving.http.direct import DirectWay
from deploy.serving.http.encoding import encode_error
from deploy.serving.http.infer_endpoint import InferEndpoint, Scope, Send, send_answer
from deploy.serving.http.inference import InferService, make_refusal, parse_infer_path
from deploy.serving.http.openapi import make_document
from deploy.serving.http.pages import describe_status, render_docs, render_status
from deploy.serving.metrics import CONTENT_TYPE, ServerStatistics, render_metrics
from deploy.serving.models.repository import ModelRepository
from deploy.serving.options import ServeOptions
from deploy.serving.peers import ask_metrics
from deploy.serving.summing import sum_metrics

_LOG = logging.getLogger("deploy.serving")
SERVER_NAME = "deploykit"
EXTENSIONS = ("binary_tensor_data", "model_repository(index)")
_OPEN = ("/v2/health/live", "/v2/health/ready")
"""Paths that ask for no token, since probes have none."""

_INDEX_LIMIT = 4096
"""Bytes of a repository index request."""


class _Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content)


class RestApplication:
    """The ASGI application of a server; also what Ray Serve wraps.

    Args:
        repository: the models.
        options: limits and the token.
        statistics: of the server.

    Attributes:
        direct: the way of infer requests around this application.
    """

    def __init__(
        self, repository: ModelRepository, options: ServeOptions, statistics: ServerStatistics
    ) -> None:
        self._statistics = statistics
        self._token = f"Bearer {options.token}".encode() if options.token else None
        mib = 2**20
        reader = BodyReader(options.max_body_mb * mib, options.max_inflight_mb * mib, statistics)
        service = InferService(repository, statistics)
        self._infer = InferEndpoint(service, reader)
        self.direct = DirectWay(service, reader, self._token)
        peers = Path(options.control) if options.workers > 1 else None
        self._others = _Routes(repository, statistics, peers).application()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if len(path) > 1 and path[-1] == "/":  # tritonclient asks for /v2/, others for /v2
            path = scope["path"] = path.rstrip("/") or "/"
        if self._token is not None and path not in _OPEN and not self._is_known(scope):
            error = UnauthorizedError("a bearer token is asked for, and none or another came")
            self._statistics.refuse(error.status)
            await send_answer(send, make_refusal(error))
            return
        if b"%2f" in scope.get("raw_path", b"").lower():  # a proxy would see another path than we
            await send_answer(
                send, make_refusal(UnknownModelError("no such path; see /openapi.json"))
            )
            self._statistics.refuse(404)
            return
        target = parse_infer_path(path)
        if target is not None:
            await self._infer(target, scope, receive, send)
            return
        await self._others(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._token or b"")


class _Routes:
    """Everything but infer."""

    def __init__(
        self,
        repository: ModelRepository,
        statistics: ServerStatistics,
        peers: Path | None = None,
    ) -> None:
        self._repository = repository
        self._statistics = statistics
        self._peers = peers
        self._document = make_document()

    def application(self) -> Starlette:
        model = "/v2/models/{name}"
        version = f"{model}/versions/{{version}}"
        get: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
            ("/", self.status_page),
            ("/status.json", self.status),
            ("/metrics", self.metrics),
            ("/openapi.json", self.openapi),
            ("/docs", self.docs),
            ("/v2", self.server_metadata),
            ("/v2/health/live", self.live),
            ("/v2/health/ready", self.ready),
            (model, self.model_metadata),
            (version, self.model_metadata),
            (f"{model}/ready", self.model_ready),
            (f"{version}/ready", self.model_ready),
        ]
        post = [
            ("/v2/repository/index", self.index),
            ("/v2/repository/models/{name}/{action:path}", self.not_offered),
            ("/v2/systemsharedmemory/{rest:path}", self.not_offered),
            ("/v2/cudasharedmemory/{rest:path}", self.not_offered),
        ]
        return Starlette(
            routes=[
                *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get),
                *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post),
            ],
            exception_handlers={
                HTTPException: self._refuse_http,
                RequestError: self._refuse,
                Exception: self._fail,
            },
        )

    async def server_metadata(self, request: Request) -> Response:
        return _Json(describe_server())

    async def live(self, request: Request) -> Response:
        return _Json({"live": True})

    async def ready(self, request: Request) -> Response:
        if self._repository.draining:
            raise UnavailableError("the server is shutting down")
        waiting = [model.name for model in self._repository.models() if not model.ready]
        if waiting:
            raise UnavailableError(f"not ready: {', '.join(waiting)[:200]}")
        return _Json({"ready": True})

    async def model_metadata(self, request: Request) -> Response:
        name = request.path_params["name"]
        model = self._repository.get(name, request.path_params.get("version", ""))
        versions = self._repository.versions(name)
        return _Json({**model.describe(), "versions": versions})

    async def model_ready(self, request: Request) -> Response:
        params = request.path_params
        model = self._repository.get(params["name"], params.get("version", ""))
        if not model.ready or self._repository.draining:
            raise UnavailableError(f"model {model.name!r} is not ready")
        return _Json({"name": model.name, "ready": True})

    async def index(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _INDEX_LIMIT:
                raise MalformedRequestError("the body of an index request is small")
        try:
            asked = orjson.loads(body) if body else {}
        except orjson.JSONDecodeError as error:
            raise MalformedRequestError(f"the body is not valid JSON: {error}"[:300]) from error
        if not isinstance(asked, dict) or type(asked.get("ready", False)) is not bool:
            raise MalformedRequestError('the body must be an object such as {"ready": true}')
        return _Json(self._repository.index(ready_only=asked.get("ready", False)))

    async def not_offered(self, request: Request) -> Response:
        raise NotOfferedError("nothing is loaded, unloaded or shared over the network here")

    async def metrics(self, request: Request) -> Response:
        content = render_metrics(self._repository, self._statistics)
        if self._peers is not None:
            texts = [content.decode(), *await ask_metrics(self._peers)]
            content = sum_metrics(texts).encode()
        return Response(content, headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        return _Json(self._document)

    async def docs(self, request: Request) -> Response:
        return HTMLResponse(render_docs(self._document))

    async def status(self, request: Request) -> Response:
        return _Json(describe_status(self._repository, self._statistics))

    async def status_page(self, request: Request) -> Response:
        return HTMLResponse(render_status(self._repository, self._statistics))

    async def _refuse_http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        self._statistics.refuse(error.status_code)
        text = "no such path; see /openapi.json" if error.status_code == 404 else error.detail
        headers = dict(error.headers or {})
        return Response(
            encode_error(text), error.status_code, headers, media_type="application/json"
        )

    async def _refuse(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        self._statistics.refuse(error.status)
        after = error.retry_after
        headers = {} if after is None else {"retry-after": str(after)}
        return Response(
            encode_error(str(error)), error.status, headers, media_type="application/json"
        )

    async def _fail(self, request: Request, error: Exception) -> Response:
        self._statistics.refuse(500)
        return Response(encode_error("the server failed"), 500, media_type="application/json")


def describe_server() -> dict[str, Any]:
    """Server metadata, as the protocol has it."""
    version = installed_versions().get("deploykit", "unknown")
    return {"name": SERVER_NAME, "version": version, "extensions": list(EXTENSIONS)}


def make_metrics_application(
    repository: ModelRepository, statistics: ServerStatistics
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """Metrics and health alone, for a port of their own."""
    routes = _Routes(repository, statistics)
    paths = (
        ("/metrics", routes.metrics),
        ("/v2/health/live", routes.live),
        ("/v2/health/ready", routes.ready),
    )
    handlers: Any = {HTTPException: routes._refuse_http, RequestError: routes._refuse}
    return Starlette(
        routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in paths],
        exception_handlers=handlers,
    )
