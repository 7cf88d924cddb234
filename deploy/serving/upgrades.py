"""Requests that would rather speak another protocol, as Java's client and curl send them.

This server speaks no other, so an upgrade is ignored, and what follows the head is the request's
body. The parser takes it for the other protocol instead: a body would be read as the next request.
Such a head is therefore read again, by another parser, without the wish.
"""

from collections.abc import Iterable

Header = tuple[bytes, bytes]
_WISHES = (b"upgrade", b"http2-settings")


def render_plain_head(method: bytes, url: bytes, version: str, headers: Iterable[Header]) -> bytes:
    """The head of a request without what asks for another protocol.

    Args:
        method, url, version: of the request line, as they came.
        headers: by lower-case name, as they came.
    """
    lines = [b"%s %s HTTP/%s\r\n" % (method, url, version.encode())]
    for name, value in headers:
        if name in _WISHES:
            continue
        if name == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            value = b", ".join(token for token in tokens if token.lower() not in _WISHES)
        lines.append(b"%s: %s\r\n" % (name, value))
    return b"".join((*lines, b"\r\n"))
