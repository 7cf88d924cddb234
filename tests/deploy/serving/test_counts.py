"""Every request is counted once, whatever becomes of it and however it came."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from servers import Server, rows, serving, spoil_golden
from test_grpc import call, make_request

from deploy.bundle.folder import read_bundle
from deploy.serving.errors import UnavailableError
from deploy.serving.models.model import ServedModel
from deploy.serving.options import ServeOptions
from deploy.serving.protocol import InferRequest

GOOD = rows([1, 2, 3, 4])
LONG = rows(*[[1, 2, 3, 4]] * 3)
FAILED = 'nv_inference_request_failure{{model="tiny",version="1",reason="{}"}}'


@pytest.fixture(scope="module")
def small(pristine: Path) -> Iterator[Server]:
    """Takes two rows, and a MiB."""
    server = Server(pristine, "--max-batch", "2", "--max-body-mb", "1", "--token", "x")
    yield server.wait_until_ready()
    server.stop()


def count(server: Server) -> dict[str, float]:
    """What says how a request ended, by series."""
    names = ("nv_inference_request_success", "nv_inference_request_failure", "deploy_refused_total")
    told = server.request("GET", "/metrics", None, {"authorization": "Bearer x"})[2].decode()
    pairs = [line.rpartition(" ") for line in told.splitlines() if line.startswith(names)]
    return {name: float(value) for name, _, value in pairs}


def grow(server: Server, before: dict[str, float]) -> dict[str, float]:
    """The series that grew since, and by how much."""
    after = count(server)
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def infer_grpc(server: Server, model: str, size: int, token: str) -> None:
    message = make_request(size)
    message.model_name = model
    call(server, message, metadata=(("authorization", f"Bearer {token}"),))


@pytest.mark.parametrize(
    ("content", "model", "headers", "expected"),
    [
        (GOOD, "tiny", {}, 'nv_inference_request_success{model="tiny",version="1"}'),
        (LONG, "tiny", {}, FAILED.format("MALFORMED")),
        ({"inputs": 3}, "tiny", {}, FAILED.format("MALFORMED")),
        (b"no json", "tiny", {}, FAILED.format("MALFORMED")),
        (b" " * (2**20 + 1), "tiny", {}, FAILED.format("TOO_LARGE")),
        (GOOD, "tiny", {"content-encoding": "gzip"}, FAILED.format("ENCODING")),
        (GOOD, "none", {}, 'deploy_refused_total{status="404"}'),
        (GOOD, "tiny", {"authorization": "Bearer y"}, 'deploy_refused_total{status="401"}'),
    ],
)
def test_over_http(
    small: Server, content: Any, model: str, headers: dict[str, str], expected: str
) -> None:
    before = count(small)
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    sent = {"authorization": "Bearer x", **headers}
    small.request("POST", f"/v2/models/{model}/infer", data, sent)
    assert grow(small, before) == {expected: 1}


@pytest.mark.parametrize(
    ("model", "size", "token", "expected"),
    [
        ("tiny", 1, "x", 'nv_inference_request_success{model="tiny",version="1"}'),
        ("tiny", 3, "x", FAILED.format("MALFORMED")),
        ("none", 1, "x", 'deploy_refused_total{status="404"}'),
        ("tiny", 1, "y", 'deploy_refused_total{status="401"}'),
        # by gRPC itself, which hands over a call without a message
        ("tiny", 2**17, "x", 'deploy_refused_total{status="400"}'),
    ],
)
def test_over_grpc(small: Server, model: str, size: int, token: str, expected: str) -> None:
    before = count(small)
    try:
        infer_grpc(small, model, size, token)
    except grpc.RpcError:
        assert "success" not in expected
    assert grow(small, before) == {expected: 1}


def test_where_the_model_is_not_ready(bundle_path: Path) -> None:
    spoil_golden(bundle_path, 2.0)
    server = Server(bundle_path)
    try:
        server.wait_for("not ready, and will not be")
        assert server.infer("tiny", GOOD)[0] == 503
        assert count(server)[FAILED.format("UNAVAILABLE")] == 1
        with pytest.raises(grpc.RpcError, match="not ready"):
            infer_grpc(server, "tiny", 1, "")
        assert {name: n for name, n in count(server).items() if n} == {
            FAILED.format("UNAVAILABLE"): 2
        }
    finally:
        server.stop()


@pytest.mark.parametrize("values", [1, 2**17])
def test_an_answer_that_json_cannot_hold_was_counted_by_its_model(
    identity_bundle: Path, values: int
) -> None:
    """A small one is written at once, a large one in slices."""
    with serving(identity_bundle, "--nonfinite", "report") as server:
        before = count(server)
        data = [1.0] * (values - 1) + [-1.0]  # the logarithm of the last is NaN
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, values], "data": data}
        assert server.infer("echo", {"inputs": [tensor]})[0] == 400
        grown = grow(server, before)
    assert grown == {'nv_inference_request_success{model="echo",version="1"}': 1}


def test_what_was_refused_while_a_model_was_loading_stays_counted(pristine: Path) -> None:
    async def ask_and_load() -> int:
        model = ServedModel("tiny", "1", read_bundle(pristine), ServeOptions())
        feeds = {"x": np.ones((1, 4), np.float32)}
        with pytest.raises(UnavailableError):
            model.submit(InferRequest("", feeds, 1, ()))
        assert await model.load()
        await model.unload()
        return model.statistics.failures["UNAVAILABLE"]

    assert asyncio.run(ask_and_load()) == 1
