"""Heads of the requests that go the direct way, and how one is known that came before.

Whoever keeps a connection sends the same head again and again, but for the length of the body.
Parsing it is a good part of what a small request costs. A head of the very bytes that the parser
took before says what it said then, so it is compared and not parsed.
"""

import contextlib
import re
from dataclasses import dataclass

import httptools

from deploy.serving.http.inference import Caller, Target

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*(?=\r\n)", re.IGNORECASE)
_END = b"\r\n\r\n"
_DIGITS = 18
"""Of a length, at most."""

_FIRST = 1
"""Requests of a connection after which its heads are remembered; many bring one request only."""

_VAIN = 8
"""Heads that were remembered and did not come again, after which none is any more."""


@dataclass(slots=True)
class Head:
    """What is known of a request before its body.

    Attributes:
        headers: by lower-case name.
        length: bytes of the body.
    """

    target: Target
    headers: dict[bytes, bytes]
    length: int
    caller: Caller


class HeadMemory:
    """The last head of one connection."""

    __slots__ = ("_after", "_before", "_head", "_vain")

    def __init__(self) -> None:
        self._head: Head | None = None
        self._before = self._after = b""
        self._vain = -_FIRST

    def recall(self, data: bytes, least: int = 0) -> tuple[Head, int] | None:
        """The head that `data` begins with and its bytes; None: it is another one.

        Args:
            data: of one read; it must be a whole request and nothing else, or the beginning of one.
            least: bytes of the body that may be still to come, if so many or more are; 0: none may.
        """
        head, before = self._head, self._before
        if head is None or not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r", start, start + _DIGITS + 1)
        digits = data[start:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self._after, end):
            return None
        size = end + len(self._after)
        length = int(digits)
        missing = size + length - len(data)
        if missing and not 0 < least <= missing:
            return None
        self._vain = 0
        if length != head.length:
            headers = {**head.headers, b"content-length": digits}
            self._head = head = Head(head.target, headers, length, head.caller)
        return head, size

    def keep(self, data: bytes, head: Head) -> None:
        """Remember the head of a request.

        Args:
            data: a read which began with the request, and had all of its head and nothing else
                behind its body.
            head: of it, as the parser found it.
        """
        if self._vain >= _VAIN:
            return
        self._vain += 1
        self._head = None
        text = data[: data.find(_END) + len(_END)]
        lengths = list(_LENGTH.finditer(text))
        if self._vain <= 0 or len(lengths) != 1 or not _is_whole(text):
            return
        start, end = lengths[0].span(1)
        self._head, self._before, self._after = head, text[:start], text[end:]


def _is_whole(text: bytes) -> bool:
    """Whether the parser finds that `text` is a head to its last byte.

    A blank line before the request is one that the parser passes over, and other ends of lines end
    a head as well. A wish for another protocol was passed over; the parser stops at it, behind the
    head.
    """
    probe = _Probe()
    parser = httptools.HttpRequestParser(probe)
    for part in (text[:-1], text[-1:]):
        if probe.ended:
            return False
        with contextlib.suppress(httptools.HttpParserUpgrade):
            parser.feed_data(part)
    return probe.ended


class _Probe:
    ended = False

    def on_headers_complete(self) -> None:
        self.ended = True
