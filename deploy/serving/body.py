"""Takes in the body of a request, within bounds, laid out so that its raw tensors are aligned."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from deploy.serving.decoding import HEADER_LENGTH
from deploy.serving.errors import (
    MalformedRequestError,
    QueueFullError,
    TooLargeError,
    UnsupportedEncodingError,
)
from deploy.serving.metrics import ServerStatistics

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_ALIGNMENT = 64
"""Bytes; raw tensors begin on a cache line."""


class DisconnectedError(Exception):
    """Whoever asked is gone; there is nobody to answer."""


class BodyReader:
    """Reads bodies for a server that holds so many bytes of them at a time.

    Args:
        limit: bytes of one body.
        inflight_limit: bytes of all that are held.
        statistics: has the count of what is held.
    """

    def __init__(self, limit: int, inflight_limit: int, statistics: ServerStatistics) -> None:
        self._limit = limit
        self._inflight_limit = inflight_limit
        self._statistics = statistics

    async def read(self, receive: Receive, headers: Mapping[bytes, bytes]) -> "Body":
        """The whole body of a request; `Body.release` when its memory may be counted off.

        Raises:
            TooLargeError: it is over the limit, announced or found so.
            UnsupportedEncodingError: it is compressed.
            QueueFullError: as much is held as may be.
            DisconnectedError: the connection ended before it.
        """
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"", b"identity"):
            raise UnsupportedEncodingError("compressed bodies are not taken; send it as it is")
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > self._limit):
            raise self._too_large()
        body = Body(self._statistics)
        try:
            await self._fill(body, receive, _padding(headers))
        except BaseException:
            body.release()
            raise
        return body

    async def _fill(self, body: "Body", receive: Receive, padding: int) -> None:
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            chunk = message.get("body", b"")
            self._hold(body, len(chunk))
            body.data = memoryview(bytearray(padding) + chunk)[padding:]
            return
        buffer = bytearray(padding)
        while message["type"] == "http.request":
            chunk = message.get("body", b"")
            self._hold(body, len(chunk))
            buffer += chunk
            if not message.get("more_body", False):
                body.data = memoryview(buffer)[padding:]
                return
            message = await receive()
        raise DisconnectedError

    def _hold(self, body: "Body", size: int) -> None:
        if body.held + size > self._limit:
            raise self._too_large()
        if self._statistics.inflight_bytes + size > self._inflight_limit:
            raise QueueFullError("the server holds as many bytes of requests as it may")
        body.held += size
        self._statistics.inflight_bytes += size

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"a body may have {self._limit} bytes")


class Body:
    """The bytes of a request, counted for as long as they are held."""

    def __init__(self, statistics: ServerStatistics) -> None:
        self.data = memoryview(b"")
        self.held = 0
        self._statistics = statistics

    def release(self) -> None:
        """Count its bytes off, once."""
        self._statistics.inflight_bytes -= self.held
        self.held = 0


def _padding(headers: Mapping[bytes, bytes]) -> int:
    """Bytes before the body that put what follows its JSON header on a cache line."""
    text = headers.get(HEADER_LENGTH.encode())
    known = text is not None and text.isdigit() and len(text) < 19
    return -int(text or 0) % _ALIGNMENT if known else 0


def read_header_length(headers: Mapping[bytes, bytes]) -> str | None:
    """The header that says where raw tensors begin; None where it is not there.

    Raises:
        MalformedRequestError: it is not ASCII.
    """
    value = headers.get(HEADER_LENGTH.encode())
    if value is None:
        return None
    try:
        return value.decode("ascii")
    except UnicodeDecodeError as error:
        raise MalformedRequestError("Inference-Header-Content-Length must be a number") from error
