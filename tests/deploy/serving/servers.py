"""A real server process on loopback, and raw ways to talk to it."""

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.bundle.folder import GOLDEN
from deploy.bundle.golden import Golden, read_golden
from deploy.bundle.manifest import read_manifest, write_manifest

ROOT = Path(__file__).parents[3]
WAIT_S = 40.0
"""Seconds after which what is waited for does not come any more."""

SILENCE_S = 20.0
"""The same of a connection that should be answered or ended; less than servers allow by default."""


def make_environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """That of a process which imports this project, and what else this one finds."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", **(more or {})}


class Server:
    """``deploy serve`` in a process of its own; its log is read as it comes."""

    def __init__(
        self, *arguments: object, env: dict[str, str] | None = None, script: Path | None = None
    ) -> None:
        start = ["-m", "deploy"] if script is None else [str(script)]
        command = [sys.executable, *start, "serve", *map(str, arguments)]
        ports = {"--port": "0", "--grpc-port": str(free_port()), "--drain": "0.3", "--threads": "1"}
        for flag, value in ports.items():
            if flag not in command:
                command += [flag, value]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=make_environment(env)
        )
        self.events: list[dict[str, Any]] = []
        self.other: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        started = self.wait_for("listening")
        self.port: int = started["http_port"]
        self.grpc_port: int = started["grpc_port"]
        self.address = f"127.0.0.1:{self.port}"

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.events.append(json.loads(line))
            except ValueError:
                self.other.append(line)

    def wait_for(self, message: str, **fields: object) -> dict[str, Any]:
        """The first event whose message begins so, and that has these fields."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            for event in list(self.events):
                if event["message"].startswith(message) and fields.items() <= event.items():
                    return event
            if self.process.poll() is not None:
                self._reader.join()
                break
            time.sleep(0.01)
        raise AssertionError(f"no {message!r}: {self.events} {''.join(self.other)}")

    def wait_until_ready(self) -> "Server":
        self.wait_for("ready")
        return self

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SILENCE_S)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def ask(self, path: str) -> Any:
        """A GET that is answered with JSON and 200."""
        status, _, body = self.request("GET", path)
        assert status == 200, body
        return json.loads(body)

    def infer(self, model: str, content: Any, **headers: str) -> tuple[int, Any]:
        """A JSON infer request: status and the answer."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        status, _, body = self.request("POST", f"/v2/models/{model}/infer", data, named)
        return status, json.loads(body)

    def metrics(self) -> dict[str, float]:
        """Every series with its value."""
        lines = self.request("GET", "/metrics")[2].decode().splitlines()
        pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in pairs}

    def pending(self, model: str) -> int:
        """Requests that wait or run."""
        labels = f'model="{model}",version="1"'
        return int(self.metrics()[f"nv_inference_pending_request_count{{{labels}}}"])

    def take_turns(self) -> None:
        """Return when all that was sent to the server before this call has been read.

        What is on a connection is read in the turn of the event loop after the one that accepts it,
        and each of two answers takes a turn of its own.
        """
        for _ in range(2):
            self.request("GET", "/v2/health/live")

    def raw(self, data: bytes) -> bytes:
        """Everything that is answered to these bytes until the server ends the connection."""
        answered = b""
        with socket.create_connection(("127.0.0.1", self.port), SILENCE_S) as connection:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                connection.sendall(data)
            with contextlib.suppress(ConnectionResetError):  # it did not want all that was sent
                while chunk := connection.recv(65536):
                    answered += chunk
        return answered

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextmanager
def serving(*arguments: object, env: dict[str, str] | None = None) -> Iterator[Server]:
    """A server that is ready, and stopped in the end."""
    server = Server(*arguments, env=env)
    try:
        yield server.wait_until_ready()
    finally:
        server.stop()


def write_slow_script(folder: Path, seconds: float) -> Path:
    """A ``deploy`` whose ONNX Runtime engines take so much longer, as `script` of a `Server`.

    Requests only, which run in threads of their own name or on the event loop; what a server runs
    before it is ready happens elsewhere. See `holding`.
    """
    script = folder / "slow.py"
    script.write_text(
        "import os, threading, time\n"
        "from deploy.engines.onnxruntime import OnnxRuntimeEngine\n"
        "run = OnnxRuntimeEngine._run\n"
        "def slowly(self, feeds):\n"
        "    if threading.current_thread().name.startswith(('engine-', 'MainThread')):\n"
        f"        while os.path.exists({str(_place_of_hold(script))!r}):\n"
        "            time.sleep(0.005)\n"
        f"        time.sleep({seconds})\n"
        "    return run(self, feeds)\n"
        "OnnxRuntimeEngine._run = slowly\n"
        "from deploy.cli import main\n"
        "main()\n"
    )
    return script


@contextmanager
def holding(script: Path) -> Iterator[None]:
    """Within the block no run of an engine of that slow script goes on; those that come wait."""
    held = _place_of_hold(script)
    held.touch()
    try:
        yield
    finally:
        held.unlink()


def _place_of_hold(script: Path) -> Path:
    return script.with_name("held")


def wait_until(holds: Callable[[], bool]) -> None:
    """Return once it holds; if it never does, that is an error."""
    end = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.01)


def read_to_end(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    connection.settimeout(SILENCE_S)
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return data


_GIVEN: set[int] = set()
"""What `free_port` has returned, a few hundred of 2,500."""


def free_port() -> int:
    """A port that nobody listens on.

    None of those that the system gives to whoever asks for any, which might take it meanwhile; and
    every process of the tests has some of its own. None is given twice: whoever has the first may
    not listen on it yet.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 8
    choice = random.SystemRandom()
    while True:
        port = 12_000 + 2_500 * worker + choice.randrange(2_500)
        if port in _GIVEN:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _GIVEN.add(port)
            return port


_ALGORITHMS = {"ec": "ec -pkeyopt ec_paramgen_curve:prime256v1", "rsa": "rsa:2048"}


def write_certificate(folder: Path, algorithm: str = "ec") -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed, and a certificate is needed")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = f"""req -x509 -newkey {_ALGORITHMS[algorithm]} -days 2 -nodes
        -keyout {key} -out {certificate} -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"""
    subprocess.run([openssl, *command.split()], check=True, capture_output=True)
    return certificate, key


def rows(*values: list[float]) -> dict[str, Any]:
    """A JSON request to the tiny model."""
    data = [number for row in values for number in row]
    shape = [len(values), 4]
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": data}]}


def spoil_golden(path: Path, factor: float) -> None:
    """Change the recorded answers by `factor`, and the hashes with them, as an attacker could."""
    manifest = read_manifest(path)
    golden = read_golden(path / GOLDEN)
    outputs = {
        engine: {name: array * np.float32(factor) for name, array in answers.items()}
        for engine, answers in golden.outputs.items()
    }
    (path / "manifest.json").unlink()
    Golden(golden.inputs, outputs).save(path / GOLDEN)
    values = {key: value for key, value in vars(manifest).items() if key != "files"}
    write_manifest(path, **values)
