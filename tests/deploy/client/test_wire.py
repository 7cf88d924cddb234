"""The client speaks to a server that shares no code with it, and says what is wrong otherwise."""

import socket
import threading
from typing import Any

import numpy as np
import pytest
from oip_server import Served, serve
from planted_server import run_planted

from deploy.client.wire import Address, Server, open_server, parse_url
from export.artifacts import TensorSpec
from export.errors import ConfigError, DeployError, ServerError


def double(feeds: dict[str, Any]) -> dict[str, Any]:
    return {"logits": 2 * feeds["x"]}


X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:8000", Address("127.0.0.1", 8000)),
        ("http://localhost", Address("localhost", 8000)),
        ("https://models.example.org", Address("models.example.org", 443, tls=True)),
        ("http://[::1]:9/", Address("::1", 9)),
        ("http://gate:80/team/a/", Address("gate", 80, "/team/a")),
        ("http://gate:80/team/v2", Address("gate", 80, "/team")),
    ],
)
def test_urls(url: str, address: Address) -> None:
    assert parse_url(url) == address


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:8000", "ftp://x", "http://", "http://x:many", "http://x:70000"),
        *("http://x/a b", "http://x/?q=1", "http://me@x", "http://x/é"),
    ],
)
def test_what_is_no_url_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigError, match=r"write http://HOST:PORT, such as http://127.0.0.1:8000"):
        parse_url(url)


@pytest.mark.parametrize("binary", [True, False])
def test_a_model_is_found_described_and_run(binary: bool) -> None:
    with serve(Served(double, binary=binary)) as url, open_server(f"{url}/v2/") as server:
        assert server.find_model(None) == "tiny"
        assert server.find_model("other") == "other"
        assert server.describe() == {"name": "stdlib", "version": "3"}
        inputs, outputs = server.signature("tiny")
        assert inputs == (TensorSpec("x", ("batch", 4), "float32"),)
        assert outputs == (TensorSpec("logits", ("batch", 3), "float32"),)
        assert server.config("tiny") == {}  # this server has no such extension
        np.testing.assert_array_equal(server.infer("tiny", {"x": X})["logits"], 2 * X)


@pytest.mark.parametrize(
    ("names", "index", "words", "code"),
    [
        (("a", "b"), True, "has the models: a, b. Name one: --model NAME", 2),
        ((), True, "has no model", 1),
        (("a",), False, "does not list its models. Name one: --model NAME", 2),
    ],
)
def test_which_model_is_asked_where_it_is_not_plain(
    names: tuple[str, ...], index: bool, words: str, code: int
) -> None:
    served = Served(double, names=names, index=index)
    with (
        serve(served) as url,
        open_server(url) as server,
        pytest.raises(DeployError, match=words) as refused,
    ):
        server.find_model(None)
    assert refused.value.exit_code == code


def test_an_error_of_the_server_is_told_with_its_status() -> None:
    with serve(Served(double, most=1)) as url, open_server(url) as server:
        with pytest.raises(ServerError, match="answers 404: no such model") as missing:
            server.infer("other", {"x": X})
        with pytest.raises(ServerError, match="answers 400: 2 rows are more than 1") as large:
            server.infer("tiny", {"x": X})
        assert (missing.value.status, large.value.status) == (404, 400)
        assert server.infer("tiny", {"x": X[:1]})  # the connection is as good as before


@pytest.mark.parametrize(("name", "path"), [("../../v2", "..%2F..%2Fv2"), ("a\udcff", "a%3F")])
def test_a_model_name_cannot_lead_to_another_path(name: str, path: str) -> None:
    served = Served(double)
    with serve(served) as url, open_server(url) as server, pytest.raises(ServerError):
        server.metadata(name)
    assert served.paths == [f"/v2/models/{path}"]


def test_a_server_that_is_not_there_is_said() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # and does not listen, so that nobody else does
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with (
            open_server(url) as server,
            pytest.raises(ServerError, match=r"cannot be reached.*running"),
        ):
            server.describe()


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again() -> None:
    with run_planted("--close", "abruptly") as url, open_server(url) as server:
        for _ in range(3):
            assert server.infer("planted", {"x": X[:1]})["y"].shape == (1, 1)


def test_a_server_that_takes_too_long_is_given_up() -> None:
    with (
        run_planted("--silent") as url,
        open_server(url, timeout=0.2) as server,
        pytest.raises(ServerError, match=r"cannot be reached: .*timed out"),
    ):
        server.infer("planted", {"x": X[:1]})


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", "what is no JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "no JSON object"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "cannot be reached"),
        (b"nonsense\r\n\r\n", "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", "bytes or more"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 10_000, "what is no JSON"),
        (b"HTTP/1.1 500 Bad\r\n\r\n" + b"[" * 10_000, r"answers 500: \[\[\["),
        (b'HTTP/1.1 500 Bad\r\n\r\n{"error": "%b"}' % (b"x" * 9000), "answers 500: x{1000}$"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 0\r\n\r\n", r"answers 502: \(no body\)"),
    ],
)
def test_nonsense_is_an_error_that_says_so(answer: bytes, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(ServerError, match=words):
            server.describe()
        server.close()
        thread.join()
