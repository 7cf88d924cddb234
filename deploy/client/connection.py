"""One kept HTTP/1.1 connection of the load generator: one request at a time, and little work.

Of an answer only the status and the length are looked at; what is in it is for `deploy verify`.
"""

import asyncio
import re
from collections.abc import Callable
from typing import cast

from deploy.client.tensors import WireRequest
from deploy.client.wire import Address, infer_path

TIMEOUT, CLOSED, REFUSED, UNREADABLE = -1, -2, -3, -4
FAILURES = {
    TIMEOUT: "timeout",
    CLOSED: "connection closed",
    REFUSED: "connection refused",
    UNREADABLE: "unreadable answer",
}
"""What became of a request that has no status of HTTP."""

_MAX_HEAD = 65536
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")


def write_request(address: Address, model: str, request: WireRequest) -> bytes:
    """All bytes of an inference request, made once and sent as often as needed."""
    headers = {**request.headers, **address.credentials}
    lines = [
        f"POST {address.path(infer_path(model))} HTTP/1.1",
        f"Host: {address.authority}",
        *(f"{name}: {value}" for name, value in headers.items()),
        f"Content-Length: {len(request.body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + request.body


class Connection(asyncio.Protocol):
    """Sends bytes and calls `finished` with itself, the request's number and what became of it.

    `usable` says whether it can carry another request. One that the server closed just while the
    next request went out is `CLOSED`, and `reused` tells that from a fault of the server.
    """

    def __init__(self, finished: Callable[["Connection", int, int], None]) -> None:
        self._finished = finished
        self._transport: asyncio.Transport | None = None
        self._head = bytearray()
        self._missing: int | None = None
        self._status = 0
        self._keep = True
        self._sent = 0
        self.index: int | None = None
        self.usable = False

    @property
    def reused(self) -> bool:
        """Whether the request under way is not its first, and nothing of its answer has come."""
        return self._sent > 1 and not self._head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)
        self.usable = True

    def send(self, request: bytes, index: int) -> None:
        """Begin request number `index`."""
        assert self._transport is not None
        self._head.clear()
        self._missing = None
        self.index = index
        self._sent += 1
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio: count until the answer is whole."""
        if self._missing is None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                if len(self._head) > _MAX_HEAD:
                    self.fail(UNREADABLE)
                return
            if not self._read_head(bytes(self._head[: end + 2])):
                self.fail(UNREADABLE)
                return
            data = bytes(self._head[end + 4 :])
        assert self._missing is not None
        self._missing -= len(data)
        if self._missing < 0 or self.index is None:
            self.fail(UNREADABLE)
        elif self._missing == 0:
            if not self._keep:
                self._drop()
            self._finish(self._status)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio."""
        self.usable = False
        self._finish(CLOSED)

    def fail(self, outcome: int) -> None:
        """Give up on the request under way, and on the connection."""
        self._drop()
        self._finish(outcome)

    def _read_head(self, head: bytes) -> bool:
        status, length = _STATUS.match(head), _LENGTH.search(head)
        if status is None or length is None:
            return False
        self._status, self._missing = int(status[1]), int(length[1])
        self._keep = _CLOSE.search(head) is None
        return True

    def _drop(self) -> None:
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, outcome: int) -> None:
        index, self.index = self.index, None
        if index is not None:
            self._finished(self, index, outcome)
