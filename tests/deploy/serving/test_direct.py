"""The direct way answers what the ordinary way answers, and leaves alone what it should."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httptools
import numpy as np
import pytest
from servers import SILENCE_S, Server, serving, wait_until

from deploy.serving.http.body import BodyReader
from deploy.serving.http.direct import DirectRequest, DirectWay, render_head
from deploy.serving.http.inference import Answer, InferService
from deploy.serving.metrics import ServerStatistics
from deploy.serving.models.finding import find_bundles, make_models
from deploy.serving.models.repository import ModelRepository
from deploy.serving.options import ServeOptions

PATH = "/v2/models/echo/infer"


@pytest.fixture(scope="module")
def echo(identity_bundle: Path) -> Iterator[Server]:
    """y = x and log = ln x, with a token and bodies of at most a MiB."""
    with serving(
        identity_bundle,
        "--max-body-mb",
        "1",
        "--receive-timeout",
        "2",
        env={"DEPLOY_SERVE_TOKEN": "key"},
    ) as running:
        yield running


def asking(**changes: Any) -> dict[str, Any]:
    """A JSON request of two values, changed."""
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
    entry |= changes.pop("input", {})
    return {"inputs": [entry], **changes}


def raw(tensor: np.ndarray, **changes: Any) -> tuple[bytes, dict[str, str]]:
    """A request with its tensor raw behind it, and the header for it."""
    entry = {"name": "x", "datatype": "FP32", "shape": list(tensor.shape)}
    entry["parameters"] = {"binary_data_size": tensor.nbytes}
    head = json.dumps({"inputs": [entry], **changes}).encode()
    return head + tensor.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


X = np.random.default_rng(0).uniform(0.5, 2, (3, 1001)).astype(np.float32)
BINARY = {"parameters": {"binary_data_output": True}}
CASES: dict[str, tuple[int, tuple[bytes, dict[str, str]]]] = {
    "JSON": (200, (json.dumps(asking()).encode(), {})),
    "with an id": (200, (json.dumps(asking(id="7")).encode(), {})),
    "one output": (200, (json.dumps(asking(outputs=[{"name": "log"}])).encode(), {})),
    "raw in, JSON out": (200, raw(X)),
    "raw in and out": (200, raw(X, **BINARY)),
    "raw, in many chunks": (200, raw(np.tile(X, (1, 60)), **BINARY)),
    "JSON in, raw out": (200, (json.dumps(asking(**BINARY)).encode(), {})),
    "not JSON": (400, (b"{", {})),
    "nothing": (400, (b"", {"Content-Length": "0"})),
    "not an object": (400, (b"[]", {})),
    "another name": (400, (json.dumps(asking(input={"name": "z"})).encode(), {})),
    "another shape": (400, (json.dumps(asking(input={"shape": [1, 3]})).encode(), {})),
    "no such output": (400, (json.dumps(asking(outputs=[{"name": "no"}])).encode(), {})),
    "NaN in the answer": (500, (json.dumps(asking(input={"data": [-1.0, 1.0]})).encode(), {})),
    "a header length beyond": (400, (b"{}", {"Inference-Header-Content-Length": "99"})),
    "a header length of no number": (400, (b"{}", {"Inference-Header-Content-Length": "abc"})),
    "too large": (413, (b" " * (2**20 + 1), {})),
}


def post(server: Server, body: bytes, headers: dict[str, str], path: str = PATH) -> Any:
    given = {"authorization": "Bearer key", "x-request-id": "same", **headers}
    return server.request("POST", path, body, given)


@pytest.mark.parametrize("case", CASES)
def test_both_ways_give_the_same_answer(echo: Server, case: str) -> None:
    status, (body, headers) = CASES[case]
    direct = post(echo, body, headers)
    ordinary = post(echo, body, headers, path=f"{PATH}/")
    versioned = post(echo, body, headers, path="/v2/models/echo/versions/1/infer")
    assert direct == ordinary == versioned
    assert direct[0] == status


def test_the_answer_is_right(echo: Server) -> None:
    _, (body, headers) = CASES["raw, in many chunks"]
    status, answered, data = post(echo, body, headers)
    assert status == 200
    tensors = np.frombuffer(data[int(answered["inference-header-content-length"]) :], np.float32)
    expected = np.tile(X, (1, 60))
    np.testing.assert_array_equal(tensors[: expected.size], expected.ravel())
    np.testing.assert_allclose(tensors[expected.size :], np.log(expected).ravel(), rtol=1e-5)


class Head:
    """As much of uvicorn's connection as is looked at, with a head that was read."""

    def __init__(self, method: str = "POST", url: str = PATH, *lines: str) -> None:
        self.url, self.cycle, self.client = b"", None, ("127.0.0.1", 1)
        self.headers: list[tuple[bytes, bytes]] = []
        self.flow = SimpleNamespace(write_paused=False)
        self.parser = httptools.HttpRequestParser(self)
        given = lines or ("Content-Length: 2", "Authorization: Bearer key")
        data = "\r\n".join([f"{method} {url} HTTP/1.1", *given, "", ""]).encode()
        with contextlib.suppress(httptools.HttpParserUpgrade):
            self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


@pytest.fixture(scope="module")
def way(identity_bundle: Path) -> DirectWay:
    options, statistics = ServeOptions(), ServerStatistics()
    repository = ModelRepository()
    for model in make_models(find_bundles([identity_bundle]), options):
        repository.add(model)
    service = InferService(repository, statistics)
    return DirectWay(service, BodyReader(100, 200, statistics), b"Bearer key")


@pytest.mark.parametrize("url", [PATH, "/v2/models/echo/versions/1/infer"])
def test_an_ordinary_request_goes_the_direct_way(way: DirectWay, url: str) -> None:
    request = way.begin(Head("POST", url))
    assert isinstance(request, DirectRequest)
    assert request.take(b"{}")
    request.abandon()


@pytest.mark.parametrize(
    "head",
    [
        Head("GET"),
        Head("POST", f"{PATH}/"),
        Head("POST", f"{PATH}?a=b"),
        Head("POST", "/v2/models/ech%6f/infer"),
        Head("POST", "/v2/models/other/infer"),
        Head("POST", "/v2/models/echo/versions/2/infer"),
        Head("POST", "/v2/models/echo"),
        Head("POST", PATH, "Content-Length: 2"),
        Head("POST", PATH, "Content-Length: 2", "Authorization: Bearer kez"),
        *(
            Head("POST", PATH, "Authorization: Bearer key", *lines)
            for lines in (
                ["Transfer-Encoding: chunked"],
                ["Content-Length: 101"],
                ["Content-Length: 2", "Connection: close"],
                ["Content-Length: 2", "Content-Encoding: gzip"],
                ["Content-Length: 2", "Expect: 100-continue"],
                ["Content-Length: 2", "Connection: upgrade", "Upgrade: h2c"],
            )
        ),
    ],
)
def test_whatever_is_out_of_the_ordinary_does_not(way: DirectWay, head: Head) -> None:
    assert way.begin(head) is None


def test_without_room_it_takes_nothing(way: DirectWay) -> None:
    head = Head("POST", PATH, "Content-Length: 90", "Authorization: Bearer key")
    requests = [request for _ in range(3) if (request := way.begin(head)) is not None]
    assert [request.take(b" ") for request in requests] == [True, True, False]
    requests[0].abandon()
    assert requests[2].take(b" ")
    for request in requests:
        request.abandon()
    assert way.service.statistics.inflight_bytes == 0


@pytest.mark.parametrize("token", [{}, {"authorization": "Bearer other"}])
def test_without_the_token_there_is_no_way(echo: Server, token: dict[str, str]) -> None:
    status, headers, _ = echo.request("POST", PATH, json.dumps(asking()).encode(), token)
    assert (status, headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_another_method_is_refused(echo: Server, method: str) -> None:
    status, headers, _ = echo.request(method, PATH, b"{}", {"authorization": "Bearer key"})
    assert (status, headers["allow"]) == (405, "POST")


def counts(server: Server) -> dict[str, float]:
    """The metrics, which ask for the token as well."""
    _, _, text = server.request("GET", "/metrics", headers={"authorization": "Bearer key"})
    pairs = [line.rpartition(" ") for line in text.decode().splitlines() if line[:1] != "#"]
    return {name: float(value) for name, _, value in pairs}


def render(body: bytes, *lines: str) -> bytes:
    head = [f"POST {PATH} HTTP/1.1", "Host: a", "Authorization: Bearer key", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def test_requests_behind_one_another_are_answered_in_order(echo: Server) -> None:
    bodies = [json.dumps(asking(id=str(number))).encode() for number in range(20)]
    large = [raw(np.tile(X, (1, 20)), id=f"r{number}", **BINARY) for number in range(3)]
    data = b"".join(render(body) for body in bodies)
    data += b"".join(
        render(body, *(f"{name}: {value}" for name, value in headers.items()))
        for body, headers in large
    )
    data += render(b"{") + render(bodies[0], "Connection: close")
    answered = echo.raw(data)
    assert answered.count(b"HTTP/1.1 200 OK\r\n") == 24
    assert answered.count(b"HTTP/1.1 400 Bad Request\r\n") == 1
    wanted = [str(number) for number in range(20)] + ["r0", "r1", "r2"]
    places = [answered.find(b'"id":"%s"' % identity.encode()) for identity in wanted]
    assert -1 not in places
    assert places == sorted(places)


def test_after_a_large_body_all_else_comes_through_too(echo: Server) -> None:
    large, lengths = raw(np.tile(X, (1, 40)), **BINARY)
    small = json.dumps(asking()).encode()
    given = {"authorization": "Bearer key"}
    connection = http.client.HTTPConnection("127.0.0.1", echo.port, timeout=SILENCE_S)
    answers = []
    for body, headers, chunked in (
        (large, lengths, False),
        (small, {}, False),
        (large, lengths, True),
        (large, lengths, False),
        (small, {}, True),
    ):
        sent = iter([body[:100_000], body[100_000:]]) if chunked else body
        connection.request("POST", PATH, sent, {**given, **headers}, encode_chunked=chunked)
        answers.append(connection.getresponse().read())
    connection.close()
    assert answers[0] == answers[2] == answers[3] == post(echo, large, lengths)[2]
    assert answers[1] == answers[4] == post(echo, small, {})[2]


def test_a_body_that_comes_byte_by_byte(echo: Server) -> None:
    with socket.create_connection(("127.0.0.1", echo.port), SILENCE_S) as connection:
        for byte in render(json.dumps(asking()).encode()):
            connection.sendall(bytes([byte]))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("known", [False, True], ids=["new head", "known head"])
@pytest.mark.parametrize("sent", [0, 1, 70_000])
def test_a_body_that_never_ends_is_given_up_and_let_go(
    echo: Server, sent: int, known: bool
) -> None:
    before = counts(echo)["deploy_connections_timed_out_total"]
    whole = render(b" " * 100_000)
    end = whole.index(b"\r\n\r\n") + 4 + sent
    with socket.create_connection(("127.0.0.1", echo.port), SILENCE_S) as connection:
        for _ in range(2 * known):
            connection.sendall(whole)
            assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
        begun = time.monotonic()
        connection.sendall(whole[:end])
        assert connection.recv(100) == b""
    assert time.monotonic() - begun > 1.9
    after = counts(echo)
    assert after["deploy_connections_timed_out_total"] == before + 1
    assert after["deploy_inflight_bytes"] == 0


@pytest.mark.parametrize("known", [False, True], ids=["new head", "known head"])
def test_a_connection_that_ends_within_a_body_leaves_nothing_held(
    echo: Server, known: bool
) -> None:
    whole = render(b" " * 100_000)
    with socket.create_connection(("127.0.0.1", echo.port), SILENCE_S) as connection:
        for _ in range(2 * known):
            connection.sendall(whole)
            assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
        connection.sendall(whole[:1000])
        wait_until(lambda: counts(echo)["deploy_inflight_bytes"] > 0)
        connection.sendall(whole[1000:-1000])
        wait_until(lambda: counts(echo)["deploy_inflight_bytes"] > 0)
    wait_until(lambda: counts(echo)["deploy_inflight_bytes"] == 0)


@pytest.mark.parametrize("status", [200, 400, 413, 500, 503, 504])
def test_a_head_is_what_a_client_reads(status: int) -> None:
    answer = Answer(status, [(b"content-length", b"2"), (b"a", b"b")], [b"{}"])
    first, *lines = render_head(answer).split(b"\r\n")
    assert first == f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()
    assert lines == [b"content-length: 2", b"a: b", b"", b""]
