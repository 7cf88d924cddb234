"""Large bodies, read by the system straight to where they will lie.

As a connection's protocol is called, what comes in was copied before: out of the loop's own buffer,
and by the parser once more. From the first large body of known length on, an intake stands between
the loop and the connection. It offers the body's own memory to read into, and between two bodies a
small buffer, so that little of the next body comes with its head. The parser of the head has not
seen the body, so the connection gets a new one after it.
"""

import asyncio
from typing import Any

import httptools

from deploy.serving.http.body import Reservation

WORTH_IT = 64 * 2**10
"""Bytes still to come from which this costs less than copying them twice."""

_HEAD = 16 * 2**10
"""Bytes that are read at a time while no body is expected."""


def take_over(connection: Any, room: Reservation) -> None:
    """Let the rest of a body come straight to `room`, where it is long and not encrypted.

    Args:
        connection: a `deploy.serving.http.connections.LimitedProtocol`, in the middle of a body.
        room: where the body goes.
    """
    if room.missing < WORTH_IT or connection.transport.get_extra_info("ssl_object") is not None:
        return
    if connection.intake is None:
        connection.intake = Intake(connection)
    connection.intake.expect(room)


class Intake(asyncio.BaseProtocol):
    """Reads for `connection`, in whose place it is the protocol of the transport from now on."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._head = memoryview(bytearray(_HEAD))
        self._room: Reservation | None = None
        transport = connection.transport
        transport.pause_reading()  # the loop looks at the kind of a protocol when it begins to read
        transport.set_protocol(self)
        transport.resume_reading()

    def expect(self, room: Reservation) -> None:
        """What comes next is the rest of this body."""
        self._room = room

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self._head if self._room is None else self._room.rest()

    def buffer_updated(self, nbytes: int) -> None:
        """So many have come."""
        connection, room = self._connection, self._room
        if room is None:
            connection.data_received(bytes(self._head[:nbytes]))
            return
        room.advance(nbytes)
        if not room.missing:
            self._room = None
            connection.parser = make_parser(connection)
            connection.on_message_complete()

    def eof_received(self) -> None:
        """The other side sends no more; uvloop closes the connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Passed on."""
        self._room = None
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
