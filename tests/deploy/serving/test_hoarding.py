"""What one client could make the server hold or wait for without end, and what bounds it."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from servers import SILENCE_S, Server, serving, wait_until

pytestmark = pytest.mark.long
ECHO = "/v2/models/echo/infer"
SMALL = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}
MIB = 2**20


@pytest.fixture(scope="module")
def echo(identity_bundle: Path) -> Iterator[Server]:
    """A server that gives up after two seconds, of a model whose answers are as large as wished."""
    with serving(identity_bundle, "--receive-timeout", "2", "--max-inflight-mb", "80") as running:
        yield running


@pytest.fixture(autouse=True)
def _still_right(echo: Server) -> Iterator[None]:
    """After every test the server answers as before, and holds nothing."""
    yield
    status, answered = echo.infer("echo", SMALL)
    assert (status, answered["outputs"][0]["data"]) == (200, [1.0, 2.0])
    wait_until(lambda: held(echo) == 0)


def held(server: Server) -> float:
    return server.metrics()["deploy_inflight_bytes"]


def is_alone(server: Server) -> bool:
    """Nobody is connected but the one who asks."""
    return server.metrics()["deploy_connections"] == 1


def resident_mib(server: Server) -> float:
    return float(psutil.Process(server.process.pid).memory_info().rss / MIB)


def spent_s(server: Server) -> float:
    """Seconds of a CPU that it has taken, whoever else took some meanwhile."""
    return float(sum(psutil.Process(server.process.pid).cpu_times()[:2]))


def make_raw(values: int) -> bytes:
    """A whole request whose answer is as long as itself."""
    entry = {"name": "x", "datatype": "FP32", "shape": [1, values]}
    entry |= {"parameters": {"binary_data_size": 4 * values}}  # type: ignore[dict-item]
    output = {"name": "y", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [entry], "outputs": [output]}).encode()
    body = head + np.ones(values, np.float32).tobytes()
    lines = [
        f"POST {ECHO} HTTP/1.1",
        "Host: a",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def connect(server: Server, count: int = 1) -> Iterator[list[socket.socket]]:
    """Connections with a receive buffer of a few KiB, as slow readers have them."""
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(SILENCE_S)
            connection.connect(("127.0.0.1", server.port))
            opened.append(connection)
        yield opened
    wait_until(lambda: is_alone(server))


def send_until_cut_off(server: Server, beginning: bytes, more: bytes) -> int:
    """Bytes that could be sent before the server ended the connection; 64 MiB are the end."""
    with socket.create_connection(("127.0.0.1", server.port), SILENCE_S) as connection:
        connection.sendall(beginning)
        sent = 0
        try:
            while sent < 64 * MIB:
                connection.sendall(more)
                sent += len(more)
        except (ConnectionResetError, BrokenPipeError):
            pass
        return sent


CHUNKED = f"POST {ECHO} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("beginning", "more"),
    [
        (b"GET /v2 HTTP/1.1\r\n", b"X-Header: aaaaaaaaaaaaaaaa\r\n" * 1000),
        (b"GET /v2 HTTP/1.1\r\nX: ", b"a" * 65536),
        (b"GET /v2/models/", b"a" * 65536),
        (b"", b"\r\n" * 32768),
        (CHUNKED + b"1\r\n{\r\n0\r\n", b"X-Trailer: aaaaaaaaaaaaaaa\r\n" * 1000),
        (CHUNKED + b"1;", b"a" * 65536),
    ],
    ids=["headers", "one-header", "path", "blank-lines", "trailers", "chunk-extension"],
)
def test_a_head_without_end_is_cut_off(echo: Server, beginning: bytes, more: bytes) -> None:
    before = resident_mib(echo)
    assert send_until_cut_off(echo, beginning, more) < 32 * MIB  # what sockets hold, not the server
    assert resident_mib(echo) - before < 24


def test_a_head_that_is_too_long_is_told_so_and_counted(echo: Server) -> None:
    before = echo.metrics()['deploy_refused_total{status="431"}']
    with socket.create_connection(("127.0.0.1", echo.port), SILENCE_S) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 60_000)
        echo.take_turns()  # a first read is not counted
        connection.sendall(b"a" * 70_000)
        answered = connection.recv(4096)
    assert answered.startswith(b"HTTP/1.1 431 ")
    assert answered.endswith(b'{"error":"the head is too long"}')
    assert echo.metrics()['deploy_refused_total{status="431"}'] == before + 1


def test_a_long_head_within_the_limit_and_a_long_body_behind_it_are_read(echo: Server) -> None:
    padding = {"X-Padding": "a" * 50_000}
    assert echo.request("POST", ECHO, json.dumps(SMALL), padding)[0] == 200
    pieces = (bytes([byte]) for byte in json.dumps(SMALL).encode() + b" " * 20_000)
    assert echo.request("POST", ECHO, pieces, padding)[0] == 200


@pytest.mark.parametrize(
    "part",
    [b"[],", b"{},", b"1,", b'"ab",', b'{"":'],
    ids=["lists", "objects", "numbers", "texts", "keys"],
)
def test_json_of_many_small_parts_stops_nobody(echo: Server, part: bytes) -> None:
    """Thirty MiB of the smallest values would take seconds and a GiB."""
    before, spent = resident_mib(echo), spent_s(echo)
    body = b'{"inputs":[' + part * (30 * MIB // len(part))
    status, answered = echo.infer("echo", body)
    assert status == 400
    assert "too many parts" in answered["error"]
    assert spent_s(echo) - spent < 2
    assert resident_mib(echo) - before < 300


def test_an_object_of_countless_keys_is_not_read(echo: Server) -> None:
    """A million would hold the event loop for most of a second."""
    keys = ",".join(f'"{number:x}":0' for number in range(100_000)).encode()
    status, answered = echo.infer("echo", b"{" + keys + b"}")
    assert status == 400
    assert "too many parts" in answered["error"]


def test_a_large_tensor_as_json_is_still_read(echo: Server) -> None:
    numbers = ",".join(["0.123456789"] * 1_000_000).encode()
    head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1000,1000],"data":['
    status, answered = echo.infer("echo", head + numbers + b"]}]}")
    assert status == 400
    assert "may have 8 rows and has 1000" in answered["error"]


def describe_raw(given: np.ndarray) -> bytes:
    """The JSON of a request whose tensor is raw and whose answer is JSON."""
    entry = {"name": "x", "datatype": "FP32", "shape": [1, given.size]}
    entry |= {"parameters": {"binary_data_size": given.nbytes}}  # type: ignore[dict-item]
    outputs = [{"name": name, "parameters": {"binary_data": False}} for name in ("y", "log")]
    return json.dumps({"inputs": [entry], "outputs": outputs}).encode()


@pytest.mark.parametrize("after", [0.0, 0.05, 0.15, 0.3])
def test_who_leaves_while_a_large_answer_is_written_leaves_nothing_behind(
    echo: Server, after: float
) -> None:
    given = np.ones(2 * MIB, np.float32) / 3
    head = describe_raw(given)
    lines = f"Inference-Header-Content-Length: {len(head)}\r\n"
    lines += f"Content-Length: {len(head) + given.nbytes}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", echo.port), SILENCE_S) as connection:
        connection.sendall(f"POST {ECHO} HTTP/1.1\r\nHost: a\r\n{lines}".encode() + head)
        connection.sendall(given.tobytes())
        time.sleep(after)
    wait_until(lambda: held(echo) == 0 and is_alone(echo))


@pytest.mark.thorough
def test_a_large_answer_as_json_keeps_nobody_waiting(echo: Server) -> None:
    """Writing millions of numbers takes most of a second; health is told many times meanwhile."""
    given = np.random.default_rng(0).uniform(1, 2, 3 * MIB).astype(np.float32)
    head = describe_raw(given)
    answers: list[bytes] = []

    def ask() -> None:
        headers = {"Inference-Header-Content-Length": str(len(head))}
        answers.append(echo.request("POST", ECHO, head + given.tobytes(), headers)[2])

    asking = threading.Thread(target=ask)
    asking.start()
    told = 0
    while asking.is_alive():
        assert echo.ask("/v2/health/live") == {"live": True}
        told += 1
        time.sleep(0.005)
    assert told > 10
    first, second = json.loads(answers[0])["outputs"]
    np.testing.assert_array_equal(np.array(first["data"], np.float32), given)
    np.testing.assert_allclose(second["data"], np.log(given), rtol=1e-5, atol=1e-6)


def test_bodies_that_are_announced_and_do_not_come_count_as_held(echo: Server) -> None:
    """Their memory is taken when they are announced, so that is when it is counted."""
    before = resident_mib(echo)
    head = f"POST {ECHO} HTTP/1.1\r\nHost: a\r\nContent-Length: {60 * MIB}\r\n\r\n".encode()
    with connect(echo, 10) as opened:
        for connection in opened:
            connection.sendall(head + b"{")
        answers = [connection.recv(12) for connection in opened[1:]]
        assert held(echo) == 60 * MIB
        assert resident_mib(echo) - before < 100
    assert answers == [b"HTTP/1.1 503"] * 9


def test_answers_that_nobody_takes_are_thrown_away_in_time(echo: Server) -> None:
    request = make_raw(4 * MIB)
    with connect(echo, 2) as opened:
        for connection in opened:
            connection.sendall(request)
        wait_until(lambda: held(echo) >= 24 * MIB)
        wait_until(lambda: is_alone(echo) and held(echo) == 0)


def test_answers_that_nobody_takes_count_as_held(echo: Server) -> None:
    """Else as many of them could lie in buffers as there are connections."""
    request = make_raw(4 * MIB)
    answers = []
    with connect(echo, 12) as opened:  # more than are needed where each takes a tenth of a second
        for connection in opened:
            connection.sendall(request)
            answers.append(connection.recv(12))
            if answers[-1] == b"HTTP/1.1 503":
                break
    *held_back, last = answers
    assert set(held_back) == {b"HTTP/1.1 200"}
    assert last == b"HTTP/1.1 503"


@pytest.mark.parametrize("last", [b"Connection: close\r\n", b""])
def test_small_answers_that_nobody_takes_hold_no_connection(echo: Server, last: bytes) -> None:
    """What is left in a buffer below its high-water mark must not keep a closing one open."""
    one = b"GET /metrics HTTP/1.1\r\nHost: a\r\n%s\r\n"
    with connect(echo) as [connection]:
        connection.sendall(one % b"" * 400 + one % last + b"GARBAGE\r\n\r\n")
        wait_until(lambda: is_alone(echo))


def test_a_slow_reader_who_reads_gets_everything(echo: Server) -> None:
    with connect(echo) as [connection]:
        connection.sendall(make_raw(MIB))
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body = answer.read()
    assert answer.status == 200
    assert body.endswith(np.ones(MIB, np.float32).tobytes())
    assert len(body) == int(answer.headers["content-length"])


@pytest.mark.parametrize("path", [ECHO, f"{ECHO}/"])
def test_the_text_of_a_large_answer_counts_as_held_while_it_is_written(
    echo: Server, path: str
) -> None:
    """32 MiB of numbers are three times as many bytes of text, more than may be held."""
    x = np.random.default_rng(0).random((1, 8 * MIB), np.float32)
    entry = {"name": "x", "datatype": "FP32", "shape": list(x.shape)}
    entry |= {"parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [entry], "outputs": [{"name": "y"}]}).encode()
    lengths = {"Inference-Header-Content-Length": str(len(head))}
    status, headers, body = echo.request("POST", path, head + x.tobytes(), lengths)
    assert (status, headers["retry-after"]) == (503, "1")
    assert b"holds as many bytes" in body


@pytest.mark.thorough
def test_requests_that_wait_behind_another_are_few(echo: Server) -> None:
    """Thousands sent at once are all answered, and no more than a read of the socket is held."""
    body = json.dumps(SMALL).encode()
    one = f"POST {ECHO} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    count = 20_000
    before = peak = resident_mib(echo)
    answered, rest = 0, b""
    with socket.create_connection(("127.0.0.1", echo.port), SILENCE_S) as connection:
        sender = threading.Thread(target=connection.sendall, args=(one * count,))
        sender.start()
        while answered < count:
            data = rest + connection.recv(1 << 20)
            lines = data.split(b"HTTP/1.1 200")
            answered, rest = answered + len(lines) - 1, lines[-1][-11:]
            peak = max(peak, resident_mib(echo))
        sender.join()
    assert peak - before < 24


def test_messages_over_grpc_count_as_held(echo: Server) -> None:
    """A message is not taken while HTTP holds all that may be held, and the other way round."""
    head = f"POST {ECHO} HTTP/1.1\r\nHost: a\r\nContent-Length: {61 * MIB}\r\n\r\n".encode()
    with (
        connect(echo) as [connection],
        grpc.insecure_channel(f"127.0.0.1:{echo.grpc_port}") as channel,
    ):
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        connection.sendall(head + b"{")
        wait_until(lambda: held(echo) == 61 * MIB)
        with pytest.raises(grpc.RpcError, match="holds as many bytes") as caught:
            infer(bytes(20 * MIB), timeout=SILENCE_S)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_watchers_of_health_leave_room_for_others(echo: Server) -> None:
    """They need no token and would hold every call that may be open."""
    with grpc.insecure_channel(f"127.0.0.1:{echo.grpc_port}") as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        watching = [watch(b"") for _ in range(64)]
        assert [next(stream) for stream in watching] == [b"\x08\x01"] * 64
        with pytest.raises(grpc.RpcError, match="as many as may"):
            next(watch(b""))
        with pytest.raises(grpc.RpcError, match="no such message"):
            next(watch(b"\xff" * 50))
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert live(b"", timeout=SILENCE_S) == b"\x08\x01"
        for stream in watching:
            stream.cancel()

        def is_watched() -> bool:
            stream = watch(b"")
            try:
                return next(stream) == b"\x08\x01"
            except grpc.RpcError:  # the others are not gone yet
                return False
            finally:
                stream.cancel()

        wait_until(is_watched)


def test_calls_without_a_message_end_in_time(echo: Server) -> None:
    """Each holds one of the calls that may be open, before any token is looked at."""
    silent = threading.Event()

    def never() -> Iterator[bytes]:
        silent.wait(SILENCE_S)
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{echo.grpc_port}") as channel:
        infer = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        begun = time.monotonic()
        call = infer.future(never())
        error = call.exception(timeout=SILENCE_S)
        silent.set()
        assert error is not None
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - begun > 1.9
        with pytest.raises(grpc.RpcError, match="has no message"):
            infer(iter(()), timeout=SILENCE_S)


def test_what_is_encoded_in_transfer_is_refused(echo: Server) -> None:
    body = b"0\r\n\r\n"
    for encoding in (b"gzip, chunked", b"deflate, chunked"):
        head = (
            f"POST {ECHO} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: ".encode()
        )
        answered = echo.raw(head + encoding + b"\r\n\r\n" + body)
        assert answered.startswith(b"HTTP/1.1 415"), answered


@pytest.mark.parametrize("identity", [b"a\tb", b"\xff\xfe", b"a" * 129, b"", b"'\"<script>{}%00"])
def test_odd_request_ids_are_no_failure(echo: Server, identity: bytes) -> None:
    body = json.dumps(SMALL).encode()
    head = (
        f"POST {ECHO} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    )
    answered = echo.raw(head.encode() + b"X-Request-Id: " + identity + b"\r\n\r\n" + body)
    assert answered.startswith(b"HTTP/1.1 200"), answered
