"""Takes in the body of a request, within bounds, laid out so that its raw tensors are aligned."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.serving.errors import (
    MalformedRequestError,
    QueueFullError,
    TooLargeError,
    UnsupportedEncodingError,
)
from deploy.serving.http.decoding import HEADER_LENGTH
from deploy.serving.metrics import ServerStatistics

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_ALIGNMENT = 64
"""Bytes; raw tensors begin on a cache line."""


_HEADER_LENGTH = HEADER_LENGTH.encode()


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

    async def read(
        self, receive: Receive, headers: Mapping[bytes, bytes], connection: Any = None
    ) -> "Body":
        """The whole body of a request; `Body.release` when its memory may be counted off.

        Args:
            receive: of the ASGI application.
            headers: by lower-case name.
            connection: of `connections`, which hands over chunks without a detour.

        Raises:
            TooLargeError: it is over the limit, announced or found so.
            UnsupportedEncodingError: it is compressed.
            QueueFullError: as much is held as may be.
            DisconnectedError: the connection ended before it.
        """
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"", b"identity"):
            raise UnsupportedEncodingError("compressed bodies are not taken; send it as it is")
        if headers.get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
            raise UnsupportedEncodingError("no transfer encoding but chunked is taken")
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > self._limit):
            raise self._too_large()
        body = Body(self._statistics)
        try:
            await self._fill(body, receive, _Layout.of(headers), connection)
        except BaseException:
            body.release()
            raise
        return body

    def find_length(self, headers: Mapping[bytes, bytes]) -> int | None:
        """The announced length of a plain body that may be taken; None: `read` says what is wrong.

        Args:
            headers: by lower-case name.
        """
        announced = headers.get(b"content-length", b"")
        if not announced.isdigit() or len(announced) > 18:
            return None
        if b"transfer-encoding" in headers or b"content-encoding" in headers:
            return None
        length = int(announced)
        return length if length <= self._limit else None

    def reserve(self, length: int, headers: Mapping[bytes, bytes]) -> "Reservation | None":
        """Room for a body of `length` bytes; None: as much is held as may be."""
        body = Body(self._statistics)
        try:
            self._hold(body, length)
        except QueueFullError:
            return None
        return Reservation(body, length, _find_padding(headers))

    def extend(self, body: "Body", size: int) -> None:
        """Count `size` bytes more as held with `body`, such as those of its answer.

        Raises:
            QueueFullError: as much is held as may be.
        """
        if self._statistics.inflight_bytes + size > self._inflight_limit:
            raise QueueFullError("the server holds as many bytes of requests as it may")
        body.held += size
        self._statistics.inflight_bytes += size

    async def _fill(
        self, body: "Body", receive: Receive, layout: "_Layout", connection: Any
    ) -> None:
        padding = layout.padding
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
            if connection is not None and layout.length is not None:
                await self._take_directly(body, buffer, layout, connection)
                return
            message = await receive()
        raise DisconnectedError

    async def _take_directly(
        self, body: "Body", begun: bytearray, layout: "_Layout", connection: Any
    ) -> None:
        """The rest of a body of known length, copied once from the socket's chunks to its place."""
        self._hold(body, (layout.length or 0) - body.held)  # its memory is taken before it comes
        room = Reservation(body, layout.length or 0, layout.padding)
        room.take(begun[layout.padding :])
        await connection.hand_over(room.take)

    def _hold(self, body: "Body", size: int) -> None:
        if body.held + size > self._limit:
            raise self._too_large()
        self.extend(body, size)

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


class Reservation:
    """Room for a body that comes in chunks, which are copied once, to their place.

    Args:
        body: what it becomes; counted as held.
        length: bytes of it.
        padding: bytes before it, for alignment.
    """

    def __init__(self, body: Body, length: int, padding: int) -> None:
        self.body = body
        self._length = length
        self._padding = padding
        self._position = 0
        self._data: memoryview | None = None

    @property
    def missing(self) -> int:
        """Bytes that are still to come."""
        return self._length - self._position

    def take(self, chunk: bytes | bytearray | memoryview) -> None:
        """The next bytes; the parser sees to it that no more come than were announced."""
        size = len(chunk)
        if size == self._length and not self._padding:
            self.body.data = memoryview(chunk)
            self._position = size
            return
        self.rest()[:size] = chunk
        self._position += size

    def rest(self) -> memoryview:
        """Where the next bytes belong, for whoever puts them there; `advance` says how many."""
        if self._data is None:
            room = np.empty(self._padding + self._length, np.uint8)
            self.body.data = self._data = room.data[self._padding :]
        return self._data[self._position :]

    def advance(self, size: int) -> None:
        """Bytes were put where they belong."""
        self._position += size


@dataclass(frozen=True)
class _Layout:
    """Where a body is to lie.

    Attributes:
        padding: bytes before it that put what follows its JSON header on a cache line.
        length: bytes of it, where they are announced.
    """

    padding: int
    length: int | None

    @classmethod
    def of(cls, headers: Mapping[bytes, bytes]) -> "_Layout":
        announced = headers.get(b"content-length", b"")
        return cls(_find_padding(headers), int(announced) if announced.isdigit() else None)


def _find_padding(headers: Mapping[bytes, bytes]) -> int:
    text = headers.get(_HEADER_LENGTH, b"0")
    return -int(text) % _ALIGNMENT if text.isdigit() and len(text) < 19 else 0


def read_header_length(headers: Mapping[bytes, bytes]) -> str | None:
    """The header that says where raw tensors begin; None where it is not there.

    Raises:
        MalformedRequestError: it is not ASCII.
    """
    value = headers.get(_HEADER_LENGTH)
    if value is None:
        return None
    try:
        return value.decode("ascii")
    except UnicodeDecodeError as error:
        raise MalformedRequestError("Inference-Header-Content-Length must be a number") from error
