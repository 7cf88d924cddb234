"""Every call of the protocol over HTTP, by a real client and by hand, against a real server."""

import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from servers import Server, rows, serving, wait_until
from tiny import CLASSES, answer, draw
from tritonclient.utils import InferenceServerException


@pytest.fixture
def client(server: Server) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(server.address)


def make_input(x: np.ndarray, *, binary: bool) -> triton.InferInput:
    given = triton.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    return given


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("size", [1, 5])
def test_tritonclient_gets_the_models_answers(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool, size: int
) -> None:
    x = draw(size, seed=size)
    wanted = [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    result = client.infer("tiny", [make_input(x, binary=binary_in)], outputs=wanted, request_id="7")
    np.testing.assert_allclose(result.as_numpy("logits"), answer(x), rtol=1e-5, atol=1e-5)
    assert result.get_response()["id"] == "7"
    assert result.get_response()["model_version"] == "1"


def test_tritonclient_with_nothing_said_of_outputs(client: triton.InferenceServerClient) -> None:
    x = draw(3)
    result = client.infer("tiny", [make_input(x, binary=True)], model_version="1", priority=1)
    np.testing.assert_allclose(result.as_numpy("logits"), answer(x), rtol=1e-5, atol=1e-5)


def test_tritonclient_asks_for_health_metadata_and_index(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "deploykit"
    metadata = client.get_model_metadata("tiny", "1")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, CLASSES]}]
    assert metadata["parameters"]["engine"] == "onnxruntime-int8"
    assert metadata["parameters"]["degraded"] is None
    index = [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
    assert client.get_model_repository_index() == index


def test_tritonclient_reads_our_refusals(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="there is no model 'other'"):
        client.infer("other", [make_input(draw(1), binary=True)])
    with pytest.raises(InferenceServerException, match="has shape"):
        client.infer("tiny", [make_input(np.zeros((1, 5), np.float32), binary=True)])
    with pytest.raises(InferenceServerException, match="over the network"):
        client.load_model("tiny")


def test_a_path_is_answered_with_and_without_a_slash(server: Server) -> None:
    for path in ("/v2", "/v2/health/ready", "/v2/models/tiny", "/v2/models/tiny/versions/1/ready"):
        assert server.ask(path) == server.ask(f"{path}/")
    body = json.dumps(rows([1, 2, 3, 4]))
    assert server.request("POST", "/v2/models/tiny/infer/", body)[0] == 200


def test_json_needs_no_content_type_and_any_is_taken(server: Server) -> None:
    body = json.dumps(rows([1, 2, 3, 4])).encode()
    head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    plain = server.raw(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert plain.startswith(b"HTTP/1.1 200 OK")
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert server.infer("tiny", body, Content_Type=kind)[0] == 200


@pytest.mark.parametrize("by", ["length", "chunks"])
def test_a_body_may_come_with_a_length_or_in_chunks(server: Server, by: str) -> None:
    x = draw(8, seed=3)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [8, 4],
                    "parameters": {"binary_data_size": x.nbytes},
                }
            ]
        }
    ).encode()
    body = head + x.tobytes()
    pieces = (body[i : i + 7] for i in range(0, len(body), 7)) if by == "chunks" else body
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, _, answered = server.request("POST", "/v2/models/tiny/infer", pieces, headers)
    assert status == 200
    got = np.array(json.loads(answered)["outputs"][0]["data"]).reshape(8, CLASSES)
    np.testing.assert_allclose(got, answer(x), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def echo(identity_bundle: Path) -> Iterator[Server]:
    with serving(identity_bundle) as running:
        yield running


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_large_body_in_pieces_arrives_whole(echo: Server, pause: float) -> None:
    x = np.random.default_rng(0).random((4, 100_000), dtype=np.float32) + 1
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": list(x.shape),
                    "parameters": {"binary_data_size": x.nbytes},
                }
            ],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }
    ).encode()
    body = head + x.tobytes()
    request = (
        b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
        % (len(head), len(body))
    ) + body
    with socket.create_connection(("127.0.0.1", echo.port), 20) as connection:
        for start in range(0, len(request), 300_000):
            connection.sendall(request[start : start + 300_000])
            time.sleep(pause)
        answer = b""
        while chunk := connection.recv(1 << 20):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(x.tobytes())
    for cut in (0, 1, 400_000):  # who leaves before the end leaves nothing behind
        with socket.create_connection(("127.0.0.1", echo.port), 20) as connection:
            connection.sendall(request[: len(request) - len(body) + cut])
    wait_until(lambda: echo.metrics()["deploy_connections"] == 1)
    assert echo.metrics()["deploy_inflight_bytes"] == 0


def test_raw_answers_say_where_they_begin(server: Server) -> None:
    content = rows([1, 2, 3, 4]) | {"parameters": {"binary_data_output": True}}
    body = json.dumps(content)
    status, headers, answered = server.request("POST", "/v2/models/tiny/infer", body)
    assert status == 200
    assert headers["content-type"] == "application/octet-stream"
    begin = int(headers["inference-header-content-length"])
    assert len(answered) - begin == 4 * CLASSES
    got = struct.unpack("<3f", answered[begin:])
    np.testing.assert_allclose(got, answer(np.array([[1, 2, 3, 4]]))[0], rtol=1e-5)


def test_requests_have_ids(server: Server) -> None:
    body = json.dumps(rows([1, 2, 3, 4]))
    path = "/v2/models/tiny/infer"
    assert server.request("POST", path, body, {"X-Request-Id": "abc"})[1]["x-request-id"] == "abc"
    ids = {server.request("POST", path, body)[1]["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    server.request("POST", path, "{", {"X-Request-Id": "broken-one"})
    assert server.wait_for("", request_id="broken-one")["status"] == 400


def test_methods_and_paths_that_there_are_not(server: Server) -> None:
    for method, path, expected in [
        ("GET", "/v2/models/tiny/infer", 405),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/models/tiny", 405),
        ("GET", "/v3", 404),
        ("GET", "/v2/models", 404),
        ("POST", "/v2/models/tiny/generate", 404),
        ("POST", "/v2/models/tiny/versions/2/infer", 404),
        ("POST", "/v2/repository/models/tiny/unload", 501),
        ("POST", "/v2/systemsharedmemory/region/a/register", 501),
    ]:
        status, _, body = server.request(method, path)
        assert status == expected, path
        assert list(json.loads(body)) == ["error"]


def test_every_answer_is_in_the_openapi_document(server: Server) -> None:
    document = server.ask("/openapi.json")
    assert document["openapi"] == "3.1.0"
    assert "401" not in document["paths"]["/v2/health/live"]["get"]["responses"]
    assert not [path for path in document["paths"] if "$" in path]
    infer = document["paths"]["/v2/models/{model}/infer"]["post"]["responses"]
    assert {"200", "400", "404", "413", "415", "500", "503", "504"} <= set(infer)
    datatype = document["components"]["schemas"]["InferResponse"]["properties"]["outputs"]
    assert "BF16" in datatype["items"]["properties"]["datatype"]["enum"]


def test_pages_name_the_model_and_need_nothing_from_elsewhere(server: Server) -> None:
    for path, words in [
        ("/", [b"tiny", b"onnxruntime-int8", b"when built", b"ready"]),
        ("/docs", [b"/v2/models/{model}/infer", b"Retry-After"]),
    ]:
        status, headers, page = server.request("GET", path)
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert all(word in page for word in words)
        assert b"http://" not in page
        assert b"https://" not in page


def test_the_status_as_data_has_live_figures(server: Server) -> None:
    server.infer("tiny", rows([1, 2, 3, 4]))
    model = server.ask("/status.json")["models"][0]
    assert model["shown"]["guards"].endswith("with inputs beyond calibration")
    assert model["shown"]["notes"] == "none"
    assert model["name"] == "tiny"
    assert model["success"] >= 1
    assert model["reported_ms"] > 0
    assert model["shown"]["engine"] == "onnxruntime-int8"


def test_metrics_have_tritons_names_and_count(server: Server) -> None:
    before = server.metrics()
    for _ in range(5):
        assert server.infer("tiny", rows([1, 2, 3, 4], [4, 3, 2, 1]))[0] == 200
    server.infer("tiny", {"inputs": 3})
    after = server.metrics()

    def grown(name: str, labels: str = 'model="tiny",version="1"') -> float:
        return after[f"{name}{{{labels}}}"] - before[f"{name}{{{labels}}}"]

    assert grown("nv_inference_request_success") == 5
    assert grown("nv_inference_count") == 10
    assert grown("nv_inference_exec_count") == 5
    failures = 'model="tiny",version="1",reason="MALFORMED"'
    assert grown("nv_inference_request_failure", failures) == 1
    for part in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert grown(f"nv_inference_{part}_duration_us") > 0
    assert after['nv_inference_pending_request_count{model="tiny",version="1"}'] == 0
    assert grown("deploy_request_duration_seconds_count") == 6
    assert after["deploy_ready"] == 1
    assert after['deploy_model_degraded{model="tiny",version="1"}'] == 0
    assert 0 < after["deploy_ready_after_seconds"] < 60


def test_the_time_until_ready_is_known(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = server.wait_for("ready")["seconds"]
    with capsys.disabled():
        print(f"\nstart to ready: {seconds} s")
    assert seconds > 0
