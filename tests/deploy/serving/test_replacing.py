"""A version is replaced while requests of a head that is known, and their large bodies, come in."""

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from servers import SILENCE_S, Server, serving, wait_until
from tiny import OneFile, write_bundle_of

from deploy.engines.base import Array
from deploy.serving.control import send_command
from deploy.serving.http.intake import WORTH_IT
from export.artifacts import TensorSpec

FACTORS = (2.0, 3.0)
"""By which the versions multiply: those of odd numbers by the first, the others by the second."""

WIDTHS = (1, 64, 3_000, WORTH_IT)
JSON_LENGTH = 250
HEAD = b"POST /v2/models/scale/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n"
RAW = b"Inference-Header-Content-Length: %d\r\n"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """One that multiplies by each of `FACTORS`."""
    folder = tmp_path_factory.mktemp("scales")
    return tuple(write_scale(folder / f"by{factor:.0f}.deploy", factor) for factor in FACTORS)


def write_scale(target: Path, factor: float) -> Path:
    """y = factor x, [batch, n] float32."""
    described = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "n"]) for name in "xy"
    ]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scale",
        described[:1],
        described[1:],
        [helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])],
    )
    x = np.linspace(0.5, 2.0, 12, dtype=np.float32).reshape(2, 6)
    inputs, outputs = ((TensorSpec(name, ("batch", "axis_1"), "float32"),) for name in ("x", "y"))
    file = OneFile(graph, inputs, outputs, {"x": x}, {"y": x * np.float32(factor)})
    return write_bundle_of(target, file, structure="tuple")


class Talker(threading.Thread):
    """Sends requests on one connection, some at a time, and compares their answers.

    All have the same head but for the length of the body, raw or as JSON.
    """

    def __init__(self, server: Server, seed: int, raw: bool) -> None:
        super().__init__()
        self.server, self.random, self.raw = server, np.random.default_rng(seed), raw
        self.ended = threading.Event()
        self.versions = [0]
        self.asked = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        address = ("127.0.0.1", self.server.port)
        with (
            socket.create_connection(address, SILENCE_S) as connection,
            connection.makefile("rb") as answers,
            ThreadPoolExecutor(1) as sender,
        ):
            while not (self.ended.is_set() or self.wrong):
                given = [self.draw() for _ in range(int(self.random.integers(1, 5)))]
                requests = [self.render(self.asked + n, x) for n, x in enumerate(given)]
                sending = sender.submit(connection.sendall, b"".join(requests))
                for x in given:
                    self.compare(x, answers)
                sending.result()

    def draw(self) -> Array:
        widths = WIDTHS if self.raw else WIDTHS[:3]
        shape = int(self.random.integers(1, 4)), int(self.random.choice(widths))
        return self.random.standard_normal(shape).astype(np.float32)

    def render(self, number: int, x: Array) -> bytes:
        entry: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": x.shape}
        content = {"id": str(number), "inputs": [entry]}
        if not self.raw:
            entry["data"] = x.ravel().tolist()
            body = json.dumps(content).encode()
            return HEAD % len(body) + b"\r\n" + body
        entry["parameters"] = {"binary_data_size": x.nbytes}
        body = json.dumps(content | {"parameters": {"binary_data_output": True}}).encode()
        body = body.ljust(JSON_LENGTH) + x.tobytes()
        return HEAD % len(body) + RAW % JSON_LENGTH + b"\r\n" + body

    def compare(self, x: Array, answers: IO[bytes]) -> None:
        status, content, rest = read_answer(answers)
        version = int(content.get("model_version", 0))
        y = x * np.float32(FACTORS[(version + 1) % 2])
        if status != 200 or content["id"] != str(self.asked) or version < self.versions[-1]:
            self.wrong.append(f"{self.asked}: {status}, {str(content)[:200]}")
        elif self.raw:
            if rest != y.tobytes():
                self.wrong.append(f"{self.asked}: other bytes, of version {version}")
        elif content["outputs"][0]["data"] != pytest.approx(y.ravel().tolist()):
            self.wrong.append(f"{self.asked}: other values, of version {version}")
        self.versions.append(version)
        self.asked += 1


def read_answer(answers: IO[bytes]) -> tuple[int, Any, bytes]:
    """Status, JSON, and what is behind it."""
    status = int(answers.readline().split()[1])
    headers = {}
    while (line := answers.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        headers[name.lower()] = int(value) if value.strip().isdigit() else 0
    body = answers.read(headers[b"content-length"])
    length = headers.get(b"inference-header-content-length", len(body))
    return status, json.loads(body[:length]), body[length:]


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "ctl.sock"


@pytest.fixture
def server(bundles: tuple[Path, ...], control: Path, tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "scale").symlink_to(bundles[0])
    with serving(tmp_path / "models", "--control", control) as running:
        yield running


def test_every_request_is_answered_in_its_turn_by_the_version_of_its_time(
    server: Server, bundles: tuple[Path, ...], control: Path
) -> None:
    talkers = [Talker(server, seed, raw=seed > 0) for seed in range(3)]
    for talker in talkers:
        talker.start()
    try:
        for number in range(2, 8):
            command = {"command": "load", "path": str(bundles[(number + 1) % 2]), "name": "scale"}
            assert send_command(control, command)["version"] == str(number)
        wait_until(lambda: all(t.versions[-1] == 7 or t.wrong for t in talkers))
    finally:
        for talker in talkers:
            talker.ended.set()
        for talker in talkers:
            talker.join()
    assert [talker.wrong for talker in talkers] == [[]] * len(talkers)
    assert all(len(set(talker.versions)) > 2 for talker in talkers)
    assert server.metrics()["deploy_inflight_bytes"] == 0
