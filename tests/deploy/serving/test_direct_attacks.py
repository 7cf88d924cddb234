"""What a client could do to others, or to itself, around the direct way, and what is answered."""

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from servers import (
    SILENCE_S,
    Server,
    holding,
    read_to_end,
    serving,
    wait_until,
    write_slow_script,
)
from socketless import Service

from deploy.serving.http.connections import DIRECT_IN_A_READ
from deploy.serving.http.heads import HeadMemory
from deploy.serving.models.model import ServedModel

pytestmark = pytest.mark.long
PATH = "/v2/models/echo/infer"
GOOD = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
).encode()
SLOW_S = 1.0
WAYS = {"direct": (), "ordinary": ("Connection: close",)}
SUCCESS = 'nv_inference_request_success{model="echo",version="1"}'


def render(body: bytes, *lines: str, version: str = "1.1") -> bytes:
    """An infer request as it goes over the wire."""
    head = [f"POST {PATH} HTTP/{version}", "Host: a", *lines, f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, "", ""]).encode() + body


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), SILENCE_S)


def read_statuses(answered: bytes) -> list[bytes]:
    return [part[:3] for part in answered.split(b"HTTP/1.1 ")[1:]]


@pytest.fixture(scope="module")
def echo(identity_bundle: Path) -> Iterator[Server]:
    with serving(identity_bundle) as running:
        yield running


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slow_script(tmp_path_factory.mktemp("slow"), SLOW_S)


@pytest.fixture(scope="module")
def slow(identity_bundle: Path, script: Path) -> Iterator[Server]:
    """Runs take longer than a connection may be idle, and than a request may take to arrive."""
    limits = ("--keep-alive", "0.4", "--receive-timeout", "0.7")
    running = Server(identity_bundle, *limits, script=script).wait_until_ready()
    yield running
    running.stop()


def test_a_connection_is_not_idle_while_the_second_of_two_requests_runs(slow: Server) -> None:
    """The first is answered within the read that brings the second."""
    with connect(slow) as connection:
        connection.sendall(render(b"{") + render(GOOD))
        answered = read_to_end(connection)
    assert answered.startswith(b"HTTP/1.1 400 ")
    assert answered.count(b"HTTP/1.1 200 ") == 1


FIRST = {"infer": render(GOOD), "other": b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n"}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
def test_half_a_request_behind_another_has_to_arrive_in_time_too(
    slow: Server, first: bytes
) -> None:
    with connect(slow) as connection:
        connection.sendall(first + render(GOOD)[:-5])
        assert read_to_end(connection).count(b"HTTP/1.1 200 ") == 1


@contextlib.contextmanager
def flood(connection: socket.socket, requests: bytes) -> Iterator[None]:
    """Send without end, and read what is answered, until the caller goes on."""
    ended = threading.Event()

    def send() -> None:
        try:
            while not ended.is_set():
                connection.sendall(requests)
        except OSError:
            pass

    def receive() -> None:
        try:
            while connection.recv(2**20):
                pass
        except OSError:
            pass

    threads = [threading.Thread(target=work) for work in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("body", [b"{", GOOD], ids=["refused", "answered"])
def test_one_who_sends_without_pause_does_not_keep_others_waiting(
    echo: Server, body: bytes
) -> None:
    client = http.client.HTTPConnection("127.0.0.1", echo.port, timeout=SILENCE_S)
    with (
        connect(echo) as connection,
        contextlib.closing(client),
        flood(connection, render(body) * 2000),
    ):
        for _ in range(20):
            client.request("GET", "/v2/health/live")
            assert client.getresponse().read() == b'{"live":true}'
            time.sleep(0.02)


@pytest.mark.parametrize("body", [b"{", GOOD], ids=["refused", "answered"])
def test_of_many_requests_in_one_read_a_few_are_answered_before_others_have_a_turn(
    service: Service, body: bytes
) -> None:
    """Counted, since seconds say more of the machine than of the server."""
    service.answer([render(GOOD)] * 64, HeadMemory())  # runs happen on the event loop from now on
    answered = service.count_answers(render(body) * 500, least=200)
    assert max(answered) <= DIRECT_IN_A_READ


@pytest.mark.thorough
@pytest.mark.parametrize("lines", WAYS.values(), ids=WAYS)
def test_a_server_that_ends_waits_no_longer_than_it_may(
    identity_bundle: Path, script: Path, lines: tuple[str, ...]
) -> None:
    """What has not run by then is told so; it could run elsewhere."""
    limits = ("--stop-timeout", "2", "--max-batch", "1")
    server = Server(identity_bundle, *limits, script=script).wait_until_ready()
    with contextlib.ExitStack() as stack:
        asking = [stack.enter_context(connect(server)) for _ in range(8)]
        with holding(script):
            for connection in asking:
                connection.sendall(render(GOOD, *lines))
            wait_until(lambda: server.pending("echo") == len(asking))
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining")
        assert server.stop() == 0
        answers = [read_to_end(connection).split(b"\r\n")[0] for connection in asking]
    assert set(answers) == {b"HTTP/1.1 200 OK", b"HTTP/1.1 503 Service Unavailable"}


@pytest.mark.parametrize("lines", WAYS.values(), ids=WAYS)
def test_for_one_who_left_no_answer_is_written(echo: Server, lines: tuple[str, ...]) -> None:
    """Its request does not count as held any more, so any number could be left so."""
    given = np.ones(6 * 2**20, np.float32) / 3
    entry = {"name": "x", "datatype": "FP32", "shape": [1, given.size]}
    entry |= {"parameters": {"binary_data_size": given.nbytes}}  # type: ignore[dict-item]
    head = json.dumps({"inputs": [entry]}).encode()
    process = psutil.Process(echo.process.pid)
    done = echo.metrics()[SUCCESS]
    with connect(echo) as connection:
        length = f"Inference-Header-Content-Length: {len(head)}"
        connection.sendall(render(head + given.tobytes(), length, *lines))
        wait_until(lambda: echo.metrics()[SUCCESS] > done)
    wait_until(lambda: echo.metrics()["deploy_connections"] == 1)
    before = sum(process.cpu_times()[:2])
    time.sleep(1)
    assert sum(process.cpu_times()[:2]) - before < 0.1


def test_one_who_leaves_with_requests_behind_the_one_that_runs_is_no_error(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ServedModel, "submit", lambda *_: service.loop.create_future())

    async def leave() -> None:
        protocol, _ = service.connect()
        protocol.data_received(render(GOOD, "Expect: 100-continue") + render(GOOD))
        for _ in range(10):
            await asyncio.sleep(0)
        assert protocol.withdraw is not None  # the first runs
        protocol.connection_lost(None)
        for _ in range(10):
            await asyncio.sleep(0)

    service.loop.run_until_complete(leave())
    assert [record.message for record in caplog.records] == []


def test_an_old_client_is_told_that_its_connection_ends(echo: Server) -> None:
    """It knows no connection that stays unless it is told of it."""
    with connect(echo) as connection:
        connection.sendall(render(GOOD, "Connection: keep-alive", version="1.0"))
        answered = read_to_end(connection)
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in answered


UPGRADE = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAMAAABkAAQAoAAA",
)
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "apart"])
def test_the_body_of_one_who_asks_for_another_protocol_is_his_body(
    echo: Server, apart: bool
) -> None:
    """Java's client asks so by default; read as another request, it would be smuggled in."""
    whole = render(LIVE, *UPGRADE) + render(GOOD, *UPGRADE) + render(GOOD)
    whole += render(GOOD, "Connection: close")
    end = whole.index(b"\r\n\r\n") + 4
    with connect(echo) as connection:
        for part in (whole[:end], whole[end:]) if apart else (whole,):
            connection.sendall(part)
            echo.take_turns()
        answered = read_to_end(connection)
    assert read_statuses(answered) == [b"400", b"200", b"200", b"200"]
    assert b"live" not in answered


def test_ever_so_many_wishes_for_another_protocol_are_answered(echo: Server) -> None:
    one = b"GET /v2/health/live HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    last = b"GET /v2/health/live HTTP/1.1\r\nConnection: upgrade, close\r\nUpgrade: h2c\r\n\r\n"
    with connect(echo) as connection:
        connection.sendall(one * 3000 + last)
        assert read_to_end(connection).count(b'{"live":true}') == 3001


def test_a_tunnel_is_refused(echo: Server) -> None:
    with connect(echo) as connection:
        connection.sendall(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n" + LIVE)
        answered = read_to_end(connection)
    assert answered.startswith(b"HTTP/1.1 400 ")
    assert answered.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "behind",
    [b"GARBAGE\r\n\r\n", b"POST /v2/models", LIVE[:-2] + b"X: " + b"a" * 90_000],
    ids=["garbage", "a part", "a long head"],
)
def test_what_follows_a_request_does_not_take_its_answer(
    slow: Server, behind: bytes, count: int
) -> None:
    with connect(slow) as connection:
        connection.sendall(render(GOOD) * count)
        slow.take_turns()
        connection.sendall(behind)
        answered = read_to_end(connection)
    assert read_statuses(answered) == [b"200"] * count
    assert b"\r\nconnection: close\r\n" in answered


BROKEN = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
BREAKS = {"no size": b"ZZ\r\n", "more than its size": b"1\r\n{{\r\n"}


@pytest.mark.parametrize("ahead", [("infer",), ("other",), ("infer", "other")], ids="+".join)
@pytest.mark.parametrize("chunk", BREAKS.values(), ids=BREAKS)
def test_a_request_that_breaks_off_is_refused_in_its_turn(
    slow: Server, chunk: bytes, ahead: tuple[str, ...]
) -> None:
    with connect(slow) as connection:
        connection.sendall(b"".join(FIRST[name] for name in ahead) + BROKEN + chunk + LIVE)
        answered = read_to_end(connection)
    assert read_statuses(answered) == [b"200"] * len(ahead) + [b"400"]
    assert answered.count(b"\r\nconnection: close\r\n") == 1


def test_a_request_that_is_answered_before_it_breaks_off_gets_no_second_answer(
    echo: Server,
) -> None:
    with connect(echo) as connection:
        connection.sendall(LIVE[:-2] + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        answered = connection.recv(65536)
        connection.sendall(b"ZZ\r\n")
        answered += read_to_end(connection)
    assert read_statuses(answered) == [b"200"]


def test_the_time_of_a_request_that_waits_behind_another_is_not_counted(
    slow: Server, script: Path
) -> None:
    """It is not read meanwhile, and the other has its answer to come."""
    whole = render(GOOD)
    with connect(slow) as connection:
        with holding(script):
            for part in (whole, whole[:20], whole[20:-5]):
                connection.sendall(part)
                slow.take_turns()
            time.sleep(SLOW_S)
            connection.sendall(whole[-5:])
        answered = b""
        while read_statuses(answered) != [b"200"] * 2 and (came := connection.recv(65536)):
            answered += came
    assert read_statuses(answered) == [b"200"] * 2
