"""Requests that would rather speak another protocol, as Java's client and curl send them.

This server speaks no other, so an upgrade is ignored, and what follows the head is the request's
body. The parser takes it for the other protocol instead: a body would be read as the next request.
Such a head is therefore read again, by another parser, without the wish.
"""

from collections.abc import Iterable
from typing import Any

import httptools

from deploy.serving.http.intake import make_parser

Header = tuple[bytes, bytes]
_WISHES = (b"upgrade", b"http2-settings")


def feed_parser(connection: Any, data: bytes) -> None:
    """Hand what came to the parser, past the heads that ask for another protocol.

    Args:
        connection: a `deploy.serving.http.connections.LimitedProtocol`, which has the parser.
        data: as it came.

    Raises:
        HttpParserError: it is no HTTP, or a request that cannot do without the other protocol.
    """
    rest = memoryview(data)
    while rest:
        try:
            connection.parser.feed_data(rest)
            return
        except httptools.HttpParserUpgrade as upgrade:
            rest = rest[upgrade.args[0] :]
            _read_head_again(connection)


def _read_head_again(connection: Any) -> None:
    """Begin the request whose head was read, without its wish for another protocol."""
    parser, method = connection.parser, connection.parser.get_method()
    if method == b"CONNECT":
        raise httptools.HttpParserInvalidMethodError("CONNECT")
    version = parser.get_http_version()
    head = render_plain_head(method, connection.url, version, connection.headers)
    connection.parser = make_parser(connection)
    connection.parser.feed_data(head)


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
