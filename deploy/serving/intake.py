"""A large body, read by the system straight to where it will lie.

As a connection's protocol is called, what comes in was copied before: out of the loop's own buffer,
and by the parser once more. For as long as the rest of a body of known length is due, this stands
in the connection's place and offers the body's own memory to the loop to read into. The parser of
the head has not seen that body, so the connection gets a new one.
"""

import asyncio
from typing import Any

import httptools

from deploy.serving.body import Reservation

WORTH_IT = 64 * 2**10
"""Bytes still to come from which changing the protocol costs less than copying them twice."""


def can_take_over(connection: Any, room: Reservation) -> bool:
    """Whether the rest of a body should come by itself: it is long, and not encrypted."""
    return room.missing >= WORTH_IT and connection.transport.get_extra_info("ssl_object") is None


class BodyIntake(asyncio.BaseProtocol):
    """Takes the rest of a body in place of `connection`, and gives the transport back after it.

    Args:
        connection: a `deploy.serving.connections.LimitedProtocol`, in the middle of a body.
        room: where the body goes.
    """

    def __init__(self, connection: Any, room: Reservation) -> None:
        self._connection = connection
        self._room = room
        _change_protocol(connection.transport, self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._room.rest()

    def buffer_updated(self, nbytes: int) -> None:
        """So many have come."""
        self._room.advance(nbytes)
        if not self._room.missing:
            connection = self._connection
            connection.parser = make_parser(connection)
            _change_protocol(connection.transport, connection)
            connection.on_message_complete()

    def eof_received(self) -> None:
        """The other side sends no more; uvloop closes the connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Passed on."""
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """Passed on."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Passed on."""
        self._connection.resume_writing()


def make_parser(connection: Any) -> httptools.HttpRequestParser:
    """A parser such as uvicorn makes for each connection, which expects a head."""
    parser = httptools.HttpRequestParser(connection)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def _change_protocol(transport: Any, protocol: asyncio.BaseProtocol) -> None:
    """Let `protocol` have what comes next; a loop looks at its kind when it begins to read."""
    transport.pause_reading()
    transport.set_protocol(protocol)
    transport.resume_reading()
