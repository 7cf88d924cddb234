"""What strangers send. The server answers with a 4xx or closes; it never answers 500 or falls."""

import http.client
import json
import select
import socket
import time
import zlib
from typing import Any

import numpy as np
import pytest
from servers import SILENCE_S, Server, rows, serving, wait_until

INFER = "/v2/models/tiny/infer"
GOOD = rows([1, 2, 3, 4])


@pytest.fixture(autouse=True)
def _still_right(server: Server) -> Any:
    """After every test the server lives and answers as before."""
    expected = server.infer("tiny", GOOD)
    yield
    assert server.process.poll() is None
    assert server.infer("tiny", GOOD) == expected


def refused(server: Server, status: int, answer: tuple[int, Any]) -> None:
    assert answer[0] == status, answer
    assert list(answer[1]) == ["error"]
    assert "Traceback" not in answer[1]["error"]
    assert "/work" not in answer[1]["error"]
    assert ".py" not in answer[1]["error"]


@pytest.mark.parametrize(
    "name",
    ["..%2fx", "%2e%2e", "..", "../x", "tiny%00", "a" * 300, "%ff%fe", "tiny%20", "TINY", "%"],
)
def test_names_that_are_no_models(server: Server, name: str) -> None:
    for path, method in ((f"/v2/models/{name}/infer", "POST"), (f"/v2/models/{name}", "GET")):
        request = f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n"
        answer = server.raw(f"{request}Connection: close\r\n\r\n".encode())
        status = int(answer.split()[1])
        assert status in (400, 404), answer
        body = answer.partition(b"\r\n\r\n")[2]
        assert list(json.loads(body)) == ["error"]
        assert len(body) < 400


@pytest.mark.parametrize("length", ["-5", "abc", "999999999999999999999", "1000", "", "1" * 5000])
def test_false_lengths_of_the_json_header(server: Server, length: str) -> None:
    refused(server, 400, server.infer("tiny", GOOD, Inference_Header_Content_Length=length))


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 250_000,
        b'{"inputs": ' + b"[" * 250_000,
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1e400]}]}',
        b"\x00" * 1000,
        b"",
        json.dumps({"inputs": GOOD["inputs"] * 2}).encode(),
    ],
)
def test_json_that_is_deep_infinite_doubled_or_none(server: Server, body: bytes) -> None:
    refused(server, 400, server.infer("tiny", body))


@pytest.fixture(scope="module")
def strict(pristine: Any) -> Any:
    """A server with small limits."""
    with serving(
        pristine, "--max-body-mb", "1", "--receive-timeout", "1", "--max-connections", "1500"
    ) as running:
        yield running


def test_a_body_over_the_limit_by_its_length_is_not_read(strict: Server) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    for size in (2**20 + 1, 10**12, 10**17):
        answer = strict.raw(head % (INFER.encode(), size))
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'{"error":"a body may have 1048576 bytes"}' in answer


def test_a_body_over_the_limit_in_chunks_is_cut_off(strict: Server) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % INFER.encode()
    answer = strict.raw(head + chunk * 17)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert strict.metrics()["deploy_inflight_bytes"] == 0


def test_a_body_at_the_limit_is_read(strict: Server) -> None:
    body = json.dumps(GOOD).encode()
    assert strict.infer("tiny", body + b" " * (2**20 - len(body)))[0] == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "GZIP"])
def test_a_compressed_body_is_not_unpacked(server: Server, encoding: str) -> None:
    bomb = zlib.compress(b" " * 10**7)
    refused(server, 415, server.infer("tiny", bomb, Content_Encoding=encoding))
    assert server.infer("tiny", GOOD, Content_Encoding="identity")[0] == 200


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"\r\n",
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost",
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{",
        b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\nGET /v2 HT",
    ],
)
def test_a_connection_that_sends_no_request_in_time_is_closed(
    strict: Server, beginning: bytes
) -> None:
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", strict.port), SILENCE_S) as connection:
        connection.sendall(beginning)
        while connection.recv(65536):
            pass
    assert time.monotonic() - begun > 0.9


def test_a_request_a_byte_at_a_time_is_cut_off(strict: Server) -> None:
    with (  # noqa: PT012
        socket.create_connection(("127.0.0.1", strict.port), SILENCE_S) as connection,
        pytest.raises((ConnectionResetError, BrokenPipeError)),
    ):
        for byte in b"POST /v2/models/tiny/infer HTTP/1.1\r\nX: " + b"a" * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)  # 20 s in all


def test_a_thousand_idle_connections_stop_nobody(strict: Server) -> None:
    idle = [socket.create_connection(("127.0.0.1", strict.port), 10) for _ in range(1000)]
    try:
        assert strict.infer("tiny", GOOD)[0] == 200
    finally:
        for connection in idle:
            connection.close()


def test_connections_beyond_those_allowed_are_closed(pristine: Any) -> None:
    with serving(pristine, "--max-connections", "20") as small:
        held = [socket.create_connection(("127.0.0.1", small.port), SILENCE_S) for _ in range(30)]
        for connection in held[20:]:
            assert connection.recv(1) == b""
        assert select.select(held[:20], [], [], 0)[0] == []
        for connection in held:
            connection.close()

        def is_answered() -> bool:
            try:
                return small.infer("tiny", GOOD)[0] == 200
            except (OSError, http.client.HTTPException):  # the others are not gone yet
                return False

        wait_until(is_answered)
        assert small.metrics()["deploy_connections_turned_away_total"] >= 10


def test_ten_thousand_names_leave_the_metrics_as_they_are(server: Server) -> None:
    before = set(server.metrics())
    pipelined = b"".join(
        b"POST /v2/models/m%d/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % number
        for number in range(100)
    )
    for _ in range(100):
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            connection.sendall(pipelined)
            connection.settimeout(10)
            data = b""
            while data.count(b"HTTP/1.1 404") < 100:
                data += connection.recv(65536)
    after = server.metrics()
    assert set(after) == before
    assert after['deploy_refused_total{status="404"}'] >= 10_000


def test_what_is_not_http_is_refused_and_counted(server: Server) -> None:
    before = server.metrics()['deploy_refused_total{status="400"}']
    for data in (b"\x16\x03\x01\x02\x00" * 20, b"GET\r\n\r\n", b"A" * 100_000 + b"\r\n\r\n"):
        assert server.raw(data)[:12] in (b"HTTP/1.1 400", b"")
    two = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\n{}"
    assert server.raw(two % INFER.encode()).startswith(b"HTTP/1.1 400")
    both = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert server.raw(both % INFER.encode()).startswith(b"HTTP/1.1 400")
    assert server.metrics()['deploy_refused_total{status="400"}'] == before + 5


def test_random_bytes_where_a_body_should_be(server: Server) -> None:
    generator = np.random.default_rng(0)
    for _ in range(100):
        body = generator.bytes(int(generator.integers(0, 200)))
        length = str(generator.integers(0, 250))
        status, _ = server.infer("tiny", body, Inference_Header_Content_Length=length)
        assert status == 400
