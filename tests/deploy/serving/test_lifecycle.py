"""From the command to the last answer: checks, limits under load, and an end that loses nothing."""

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import (
    SILENCE_S,
    WAIT_S,
    Server,
    free_port,
    holding,
    make_environment,
    rows,
    serving,
    spoil_golden,
    wait_until,
    write_slow_script,
)
from tiny import Cli, answer


def test_check_verifies_and_exits(pristine: Path, bundle_path: Path, cli: Cli) -> None:
    code, out, _ = cli("serve", pristine, "--check")
    assert (code, out) == (0, "tiny version 1: onnxruntime-int8\n")
    spoil_golden(bundle_path, 2.0)
    code, _, err = cli("serve", bundle_path, "--check")
    assert code == 1
    assert "does not repeat the answers recorded" in err


def test_check_tells_wrong_use_from_a_failed_gate(pristine: Path, tmp_path: Path, cli: Cli) -> None:
    for arguments, message in [
        ((tmp_path,), "is no bundle and holds none"),
        ((pristine, "--max-batch", "0"), "--max-batch 0: must be 1 or more"),
        ((pristine, "--engine", "openvino-int8"), "has no engine 'openvino-int8'"),
        ((pristine, pristine), "Two bundles are model 'tiny'"),
        ((pristine, "--config", tmp_path / "none.toml"), "cannot be read: No such file"),
        ((pristine, "--tls-cert", "a.pem"), "--tls-cert needs --tls-key"),
        ((pristine, "--tls-key", "a.pem"), "--tls-key needs --tls-cert"),
        ((pristine, "--tls-cert", "a.pem", "--tls-key", "b.pem"), "No such file or directory"),
        ((pristine, "--control", tmp_path / "no" / "s"), "there is no folder"),
        ((pristine, "--control", "s", "--workers", "2"), "--control needs one worker"),
    ]:
        code, _, err = cli("serve", *arguments, "--check")
        assert code == 2, err
        assert message in err


def test_a_port_that_is_taken_is_said(pristine: Path, cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = cli("serve", pristine, "--port", port, "--grpc-port", 0)
        assert (code, f"cannot listen on 127.0.0.1:{port}" in err) == (1, True)


_SLOW_GRPC = """
import asyncio
from deploy.cli import main
from deploy.serving import lifecycle
start = lifecycle.start_grpc
async def start_late(*given):
    await asyncio.sleep(0.5)
    return await start(*given)
lifecycle.start_grpc = start_late
main()
"""


def test_where_http_answers_grpc_does_as_well(pristine: Path, tmp_path: Path) -> None:
    script, port, grpc_port = tmp_path / "slow_grpc.py", free_port(), free_port()
    script.write_text(_SLOW_GRPC)
    ports = ("--port", str(port), "--grpc-port", str(grpc_port), "--drain", "0")
    command = [sys.executable, str(script), "serve", str(pristine), *ports]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=make_environment())
    try:
        wait_until(lambda: process.poll() is not None or _listens(port))
        assert _listens(grpc_port)
    finally:
        process.terminate()
        assert process.wait(WAIT_S) == 0


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_several_bundles_and_a_repository_with_versions(pristine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    for place in ("first.deploy", "second/1", "second/10", "second/notes"):
        shutil.copytree(pristine, folder / place)
    (folder / "second" / "notes" / "manifest.json").unlink()
    with serving(folder, pristine) as server:
        names = [(m["name"], m["version"]) for m in index(server)]
        assert names == [("first", "1"), ("second", "1"), ("second", "10"), ("tiny", "1")]
        assert server.ask("/v2/models/second")["versions"] == ["1", "10"]
        for path in ("first", "second", "second/versions/1", "tiny"):
            status, answered = server.infer(path, rows([1, 2, 3, 4]))
            assert status == 200
        assert server.infer("second", rows([1, 2, 3, 4]))[1]["model_version"] == "10"
        assert answered["model_version"] == "1"


def index(server: Server) -> list[dict[str, Any]]:
    status, _, body = server.request("POST", "/v2/repository/index", "{}")
    assert status == 200
    found: list[dict[str, Any]] = json.loads(body)
    return found


def test_metrics_and_health_on_a_port_of_their_own(pristine: Path) -> None:
    port = free_port()
    with serving(pristine, "--metrics-port", port) as server:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for path, expected in [("/metrics", 200), ("/v2/health/ready", 200), ("/v2", 404)]:
            connection.request("GET", path)
            answered = connection.getresponse()
            answered.read()
            assert answered.status == expected
        connection.close()
        assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 200


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return write_slow_script(tmp_path, 0.05)


@pytest.fixture
def slow(script: Path, pristine: Path) -> Any:
    """A server whose engine takes 50 ms, in a process that we start ourselves."""

    def start(*arguments: object) -> Server:
        return Server(pristine, *arguments, script=script).wait_until_ready()

    return start


def test_a_burst_on_a_short_queue_is_told_to_come_back(slow: Any, script: Path) -> None:
    server = slow("--queue-rows", "2", "--max-batch", "1")
    try:
        outcomes: list[tuple[int, str | None]] = []

        def ask() -> None:
            body = json.dumps(rows([1, 2, 3, 4]))
            status, headers, _ = server.request("POST", "/v2/models/tiny/infer", body)
            outcomes.append((status, headers.get("retry-after")))

        threads = [threading.Thread(target=ask) for _ in range(40)]
        with holding(script):
            for thread in threads:
                thread.start()
            wait_until(lambda: len(outcomes) == 37)
        for thread in threads:
            thread.join()
        full = [retry for status, retry in outcomes if status == 503]
        assert [status for status, _ in outcomes] == [503] * 37 + [200] * 3  # one ran, two waited
        assert all(retry is not None and int(retry) >= 1 for retry in full)
        series = 'nv_inference_request_failure{model="tiny",version="1",reason="REJECTED"}'
        assert server.metrics()[series] == len(full)
    finally:
        server.stop()


def test_what_takes_too_long_is_504_and_what_is_left_is_forgotten(slow: Any, script: Path) -> None:
    server = slow("--max-batch", "1")
    try:
        content = rows([1, 2, 3, 4]) | {"parameters": {"timeout": 5000}}
        assert server.infer("tiny", content)[0] == 504
        series = 'nv_inference_request_failure{{model="tiny",version="1",reason="{}"}}'
        wait_until(lambda: server.pending("tiny") == 0)
        left = http.client.HTTPConnection("127.0.0.1", server.port)
        with holding(script):
            left.request("POST", "/v2/models/tiny/infer", json.dumps(rows([1, 2, 3, 4])))
            wait_until(lambda: server.pending("tiny") == 1)
            left.close()
            wait_until(lambda: server.metrics()[series.format("CANCELED")] == 1)
        assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 200
        assert server.metrics()[series.format("TIMEOUT")] == 1
    finally:
        server.stop()


class Client(threading.Thread):
    """Asks until it is told that the server goes, and holds every answer against the model."""

    def __init__(self, port: int, seed: int) -> None:
        super().__init__()
        self.port, self.random = port, np.random.default_rng(seed)
        self.answered = 0
        self.lost: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SILENCE_S)
        while True:
            x = self.random.standard_normal((1, 4)).astype(np.float32)
            try:
                connection.connect() if connection.sock is None else None
            except ConnectionRefusedError:
                return
            try:
                connection.request("POST", "/v2/models/tiny/infer", json.dumps(rows(x[0].tolist())))
                got = connection.getresponse()
                body = json.loads(got.read())
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                return
            if got.status != 200:
                self.lost.append(f"{got.status} {body}")
                return
            np.testing.assert_allclose(body["outputs"][0]["data"], answer(x)[0], 1e-4, 1e-4)
            self.answered += 1
            if got.getheader("connection") == "close":  # as a proxy does: it turns elsewhere
                connection.close()
                return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_nothing(pristine: Path, number: int) -> None:
    server = Server(pristine, "--drain", "600").wait_until_ready()
    clients = [Client(server.port, seed) for seed in range(16)]
    try:
        for client in clients:
            client.start()
        wait_until(lambda: sum(client.answered for client in clients) > 100)
        server.process.send_signal(number)
        server.wait_for("draining")
        assert server.request("GET", "/v2/health/ready")[0] == 503
        assert server.ask("/v2/health/live") == {"live": True}
        server.process.send_signal(number)  # a second one ends the wait
        for client in clients:
            client.join(WAIT_S)
    finally:
        assert server.stop() == 0
    assert [client.lost for client in clients] == [[]] * 16
    server.wait_for("stopped")


def test_what_was_accepted_is_answered_however_long_it_takes(slow: Any, script: Path) -> None:
    server = slow("--max-batch", "1", "--drain", "0")
    outcomes: list[int] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(server.infer("tiny", rows([1] * 4))[0]))
        for _ in range(15)
    ]
    with holding(script):
        for thread in threads:
            thread.start()
        wait_until(lambda: server.pending("tiny") == 15)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
    assert server.stop() == 0
    for thread in threads:
        thread.join()
    assert outcomes == [200] * 15
