"""A head goes out with what follows it; a server draws no reports."""

import asyncio
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from servers import ROOT, Server

from deploy.serving.http.answer_writer import AnswerWriter
from deploy.serving.http.encoding import JOIN_BELOW

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class Recorder(asyncio.Transport):
    """Notes what every call of the system would have been."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.closed = False

    def write(self, data: Any) -> None:
        self.calls.append(bytes(data))

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.calls.append(b"".join(map(bytes, list_of_data)))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.mark.parametrize("size", [0, 4, JOIN_BELOW, JOIN_BELOW + 1])
def test_head_and_body_are_one_call(recorder: Recorder, size: int) -> None:
    writer, body = AnswerWriter(recorder), bytes(size)
    for number in range(1, 3):
        writer.write(HEAD)
        assert len(recorder.calls) == number - 1
        writer.write(memoryview(body))
        writer.end_answer()
        assert recorder.calls == [HEAD + body] * number


def test_further_parts_go_out_as_they_come(recorder: Recorder) -> None:
    writer = AnswerWriter(recorder)
    for part in (HEAD, b"one", b"two", HEAD):
        writer.write(part)
    assert recorder.calls == [HEAD + b"one", b"two", HEAD]


def test_whoever_waits_for_100_gets_it_at_once(recorder: Recorder) -> None:
    writer = AnswerWriter(recorder)
    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert recorder.calls == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    writer.write(HEAD)
    writer.write(b"body")
    assert recorder.calls[1:] == [HEAD + b"body"]


@pytest.mark.parametrize("end", ["end_answer", "close"])
def test_a_head_alone_is_not_kept_for_ever(recorder: Recorder, end: str) -> None:
    writer = AnswerWriter(recorder)
    writer.write(HEAD)
    getattr(writer, end)()
    assert recorder.calls == [HEAD]
    assert writer.is_closing() == (end == "close")


def test_head_requests_are_answered_without_a_body(server: Server) -> None:
    status, headers, body = server.request("HEAD", "/v2")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    ask = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = server.raw(ask % b"/v2/health/live" + ask % b"/nowhere" + last)
    order = [answer.find(part) for part in (b'{"live":true}', b" 404 ", b'{"ready":true}')]
    assert -1 not in order
    assert order == sorted(order)


@pytest.mark.thorough
def test_a_server_imports_nothing_that_draws_reports() -> None:
    script = "import deploy.serving.lifecycle, sys; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
