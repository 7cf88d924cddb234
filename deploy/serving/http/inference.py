"""What an infer request over HTTP means, however it came in and however its answer goes out.

Two ways lead here: `deploy.serving.http.direct`, straight from the connection, and
`deploy.serving.http.infer_endpoint`, an ASGI application.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from deploy.serving.errors import EngineFailedError, RequestError, UnknownModelError
from deploy.serving.http.body import read_header_length
from deploy.serving.http.decoding import decode_request, parse_header_length
from deploy.serving.http.encoding import encode_error, encode_response
from deploy.serving.http.slices import Hold, Parts, encode_in_slices
from deploy.serving.metrics import ServerStatistics
from deploy.serving.models.model import Outputs, ServedModel
from deploy.serving.models.repository import ModelRepository
from deploy.serving.protocol import InferRequest, InferResponse

_LOG = logging.getLogger("deploy.serving.requests")
_JSON = (b"content-type", b"application/json")
_RAW = (b"content-type", b"application/octet-stream")
_CLOSE = (b"connection", b"close")
Target = tuple[str, str]
"""Name and version of a model; the version is empty where none was given."""
Headers = list[tuple[bytes, bytes]]


def parse_infer_path(path: str) -> Target | None:
    """Name and version of a path that ends in ``/infer``; None: another one."""
    parts = path.split("/")
    if parts[:3] != ["", "v2", "models"] or parts[-1] != "infer":
        return None
    if len(parts) == 5:
        return parts[3], ""
    if len(parts) == 7 and parts[4] == "versions" and parts[5]:
        return parts[3], parts[5]
    return None


@dataclass(slots=True)
class Accepted:
    """A request that was handed to its model, and what will come of it."""

    model: ServedModel
    request: InferRequest
    outputs: "asyncio.Future[Outputs]"


@dataclass(slots=True)
class Answer:
    """The answer to a request, or the refusal of one."""

    status: int
    headers: Headers
    parts: list[bytes | memoryview]

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return sum(map(len, self.parts))


@dataclass(slots=True)
class Caller:
    """Whose request it is: what the log and the answer say of it.

    Attributes:
        identity: of the request, by its sender's wish or ours.
        path: that was asked for.
        host: where the request came from, where that is known.
        started: when, by the monotonic clock.
    """

    identity: bytes
    path: str
    host: str | None
    started: float


class InferService:
    """Takes requests to models and writes answers.

    Args:
        repository: the models.
        statistics: counts what meets no model.
    """

    def __init__(self, repository: ModelRepository, statistics: ServerStatistics) -> None:
        self.repository = repository
        self.statistics = statistics
        self._numbers = itertools.count(1)

    def identify(self, headers: Mapping[bytes, bytes]) -> bytes:
        """The id of a request: what its sender calls it, or a number."""
        given = headers.get(b"x-request-id", b"")
        return given if 0 < len(given) <= 128 else b"%x" % next(self._numbers)

    def accept(self, target: Target, body: memoryview, headers: Mapping[bytes, bytes]) -> Accepted:
        """Read a request and hand it to its model.

        Nothing is awaited from finding the model to handing over, so no request is lost when
        another version takes over.

        Raises:
            RequestError: there is no such model, the body is not for it, or it takes no more.
        """
        model = self.repository.get(*target)
        try:
            length = read_header_length(headers)
            header = None if length is None else parse_header_length(length, len(body))
            request = decode_request(body, header, model.signature)
            return Accepted(model, request, model.submit(request))
        except RequestError:
            raise
        except Exception as error:
            raise _blame_ourselves(error) from error

    def answer(self, accepted: Accepted, outputs: Outputs, caller: Caller) -> Answer:
        """The answer with the outputs that were asked for.

        Raises:
            RequestError: an output was asked for as JSON, which cannot hold it.
        """
        try:
            parts, header = encode_response(_respond(accepted, outputs), accepted.request)
        except RequestError as error:
            error.counted = True  # as answered, by its model
            raise
        except Exception as error:
            blamed = _blame_ourselves(error)
            blamed.counted = True
            raise blamed from error
        return self._make_answer(parts, header, caller)

    async def answer_in_turns(
        self, accepted: Accepted, outputs: Outputs, caller: Caller, hold: Hold
    ) -> Answer:
        """As `answer`; while a large one is written, others have their turn.

        Args:
            accepted: the request.
            outputs: of its model.
            caller: whose request it is.
            hold: counts the bytes of the answer as they come about, or refuses to hold more.

        Raises:
            RequestError: as there, and of `hold`.
        """
        try:
            response = _respond(accepted, outputs)
            parts, header = await encode_in_slices(response, accepted.request, hold)
        except RequestError as error:
            error.counted = True  # as answered, by its model
            raise
        except Exception as error:
            blamed = _blame_ourselves(error)
            blamed.counted = True
            raise blamed from error
        return self._make_answer(parts, header, caller)

    def _make_answer(self, parts: Parts, header: int | None, caller: Caller) -> Answer:
        answer = Answer(200, [_JSON if header is None else _RAW], parts)
        answer.headers.append((b"content-length", b"%d" % answer.size))
        answer.headers.append((b"x-request-id", caller.identity))
        if header is not None:
            answer.headers.append((b"inference-header-content-length", b"%d" % header))
        if self.repository.draining:
            answer.headers.append(_CLOSE)
        self.log(200, caller)
        return answer

    def refuse(self, error: RequestError, target: Target, caller: Caller) -> Answer:
        """The answer with an error, which is counted and logged."""
        if not error.counted:
            model = None if error.status in (404, 405) else self._find(target)
            if model is None:
                self.statistics.refuse(error.status)
            else:
                model.statistics.fail(error, time.monotonic() - caller.started)
        self.log(error.status, caller)
        return make_refusal(error, caller.identity, close=self.repository.draining)

    def log(self, status: int, caller: Caller) -> None:
        """Log a request: what went well only where all is logged."""
        level = logging.DEBUG if status == 200 else logging.INFO
        level = logging.WARNING if status >= 500 else level
        if not _LOG.isEnabledFor(level):
            return
        _LOG.log(
            max(level, logging.INFO),
            "%s %d",
            caller.path[:200],
            status,
            extra={
                "request_id": caller.identity.decode("latin-1"),
                "status": status,
                "duration_ms": round((time.monotonic() - caller.started) * 1e3, 3),
                "client": caller.host,
            },
        )

    def _find(self, target: Target) -> ServedModel | None:
        try:
            return self.repository.get(*target)
        except UnknownModelError:  # it was unloaded meanwhile
            return None


def _respond(accepted: Accepted, outputs: Outputs) -> InferResponse:
    model = accepted.model
    return InferResponse(model.name, model.version, accepted.request.id, outputs)


def make_refusal(error: RequestError, identity: bytes = b"", *, close: bool = False) -> Answer:
    """An error as an answer: its status, its message, and when to come back."""
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
    return Answer(error.status, headers, [body])


def _blame_ourselves(error: Exception) -> EngineFailedError:
    """A bug of ours is a 500 in the words of the protocol."""
    _LOG.exception("a request failed", exc_info=error)
    return EngineFailedError("the server failed; its log says how")
