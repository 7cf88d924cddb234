"""Answers are told from their bytes, however these come in; nothing of a wrong one is believed."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.client.connection import CLOSED, UNREADABLE, Connection, write_request
from deploy.client.tensors import WireRequest
from deploy.client.wire import Address


class Transport:
    """Takes what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


def connect() -> tuple[Connection, Transport, list[tuple[int, int]]]:
    outcomes: list[tuple[int, int]] = []
    connection = Connection(lambda _, index, outcome: outcomes.append((index, outcome)))
    transport: Any = Transport()
    connection.connection_made(transport)
    return connection, transport, outcomes


OK = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 5\r\n\r\nhello"


@given(st.lists(st.integers(0, len(OK)), max_size=8))
def test_an_answer_in_any_pieces_is_one_answer(cuts: list[int]) -> None:
    connection, _, outcomes = connect()
    ends = [0, *sorted(cuts), len(OK)]
    for index in (3, 4):  # the second uses the connection again
        connection.send(b"request", index)
        for start, end in itertools.pairwise(ends):
            if start < end:
                connection.data_received(OK[start:end])
    assert outcomes == [(3, 200), (4, 200)]
    assert connection.usable


@pytest.mark.parametrize(
    ("answer", "outcome", "usable"),
    [
        (b"HTTP/1.1 503 Full\r\ncontent-length: 0\r\n\r\n", 503, True),
        (b"HTTP/1.0 404 No\r\nCONTENT-LENGTH:  2 \r\n\r\nno", 404, True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", 200, False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab", UNREADABLE, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", UNREADABLE, False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", UNREADABLE, False),
        (b"HTTP/2 200\r\nContent-Length: 0\r\n\r\n", UNREADABLE, False),
        (b"\r\n\r\n", UNREADABLE, False),
        (b"x" * 70000, UNREADABLE, False),
    ],
)
def test_the_status_and_the_length_decide(answer: bytes, outcome: int, usable: bool) -> None:
    connection, transport, outcomes = connect()
    connection.send(b"request", 1)
    connection.data_received(answer)
    assert outcomes == [(1, outcome)]
    assert connection.usable == usable
    assert transport.aborted == (not usable)


def test_an_end_in_the_middle_of_an_answer_is_a_fault_of_the_server() -> None:
    connection, _, outcomes = connect()
    connection.send(b"request", 1)
    connection.data_received(OK)
    connection.send(b"request", 2)
    connection.data_received(OK[:30])
    assert not connection.reused
    connection.connection_lost(None)
    assert outcomes == [(1, 200), (2, CLOSED)]


def test_an_end_before_a_second_answer_is_told_from_one_before_the_first() -> None:
    for before in (0, 1):
        connection, _, outcomes = connect()
        for index in range(before):
            connection.send(b"request", index)
            connection.data_received(OK)
        connection.send(b"request", 9)
        assert connection.reused == bool(before)
        connection.connection_lost(None)
        assert outcomes[-1] == (9, CLOSED)


def test_an_end_between_requests_is_none_of_anybodys_business() -> None:
    connection, _, outcomes = connect()
    connection.connection_lost(None)
    assert (outcomes, connection.usable) == ([], False)


def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    connection, transport, outcomes = connect()
    connection.data_received(OK)
    assert (outcomes, connection.usable, transport.aborted) == ([], False, True)


def test_a_request_is_http_and_names_host_and_model() -> None:
    address = Address("::1", 8000, "/gate", token="t")
    written = write_request(address, "a b/c", WireRequest({"Content-Type": "x/y"}, b"body"))
    assert written == (
        b"POST /gate/v2/models/a%20b%2Fc/infer HTTP/1.1\r\nHost: [::1]:8000\r\n"
        b"Content-Type: x/y\r\nAuthorization: Bearer t\r\nContent-Length: 4\r\n\r\nbody"
    )
