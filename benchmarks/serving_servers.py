"""Starts our server and its peers around the same ONNX file, and writes what each is asked."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from serving_load import Caller, await_ready

HERE = Path(__file__).parent
START_S = 60.0
Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Server:
    """One kind of server.

    Attributes:
        name: as the tables show it.
        script: of `serving_peers`, run by the interpreter given with ``--peer``; None: ours.
        ready: the path that is answered with 200 once it is ready.
        write: the request for an input, and reads the output of an answer's body.
        raw: it takes raw tensors.
    """

    name: str
    script: str | None
    ready: str
    write: Callable[[Array, bool], bytes]
    read: Callable[[bytes], Array]
    raw: bool


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    server: Server
    process: psutil.Process
    port: int
    request: bytes


def write_oip(x: Array, raw: bool) -> bytes:
    """Open Inference Protocol, JSON or with the tensor raw behind it."""
    tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": list(x.shape)}
    if not raw:
        body = json.dumps({"inputs": [{**tensor, "data": x.ravel().tolist()}]}).encode()
        return _post("/v2/models/echo/infer", body)
    tensor["parameters"] = {"binary_data_size": x.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    lengths = {
        "Inference-Header-Content-Length": str(len(head)),
        "Content-Type": "application/octet-stream",
    }
    return _post("/v2/models/echo/infer", head + x.tobytes(), lengths)


def read_oip(body: bytes) -> Array:
    """The output of an answer of the protocol, JSON or raw."""
    content, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    (output,) = content["outputs"]
    data = np.frombuffer(body[end:], np.float32) if "data" not in output else output["data"]
    return np.asarray(data, np.float32).reshape(output["shape"])


def write_litserve(x: Array, raw: bool) -> bytes:
    """Nested lists."""
    return _post("/predict", json.dumps({"x": x.tolist()}).encode())


def read_litserve(body: bytes) -> Array:
    """Nested lists."""
    return np.asarray(json.loads(body)["y"], np.float32)


def write_bentoml(x: Array, raw: bool) -> bytes:
    """Nested lists."""
    return _post("/infer", json.dumps({"x": x.tolist()}).encode())


def read_bentoml(body: bytes) -> Array:
    """Nested lists."""
    return np.asarray(json.loads(body), np.float32)


READY = "/v2/models/echo/ready"
OURS = Server("deploy serve", None, READY, write_oip, read_oip, True)
PEERS = {
    "triton": Server("Triton, python backend", "triton", READY, write_oip, read_oip, True),
    "kserve": Server("KServe SDK", "kserve", READY, write_oip, read_oip, True),
    "mlserver": Server("MLServer", "mlserver", READY, write_oip, read_oip, False),
    "litserve": Server("LitServe", "litserve", "/health", write_litserve, read_litserve, False),
    "bentoml": Server("BentoML", "bentoml", "/readyz", write_bentoml, read_bentoml, False),
}


@contextlib.contextmanager
def running(
    server: Server, python: str, bundle: Path, x: Array, *, flags: Sequence[str] = ()
) -> Iterator[Running]:
    """`server` around the model of `bundle`; its first answer, to `x`, is held to the model's own.

    Raises:
        RuntimeError: it does not start, or answers something else.
    """
    port = free_port()
    if server.script is None:
        command = [python, "-m", "deploy", "serve", str(bundle), "--port", str(port)]
        command += ["--grpc-port", "0", "--threads", "1", "--drain", "0", *flags]
    else:
        script = HERE / "serving_peers" / f"run_{server.script}.py"
        command = [python, str(script), str(port), str(bundle / "model.onnx")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(bundle.parent)}
    environment["PYTHONPATH"] = str(
        HERE.parent if server.script is None else HERE / "serving_peers"
    )
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        ) as child,
    ):
        process = psutil.Process(child.pid)
        try:
            await_ready(process, port, server.ready, START_S)
            request = server.write(x, server.raw and x.size > 1000)
            _compare(server, port, request, bundle, x)
            yield Running(server, process, port, request)
        except (RuntimeError, OSError) as error:
            log.seek(max(0, log.tell() - 1500))
            raise RuntimeError(f"{error}; {log.read().decode(errors='replace')}") from error
        finally:
            _end(process)


def free_port() -> int:
    """A port that nobody listens on, with two more behind it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _compare(server: Server, port: int, request: bytes, bundle: Path, x: Array) -> None:
    sys.path.insert(0, str(HERE / "serving_peers"))
    from session import open_session

    caller = Caller(port, request)
    body = caller.call()
    caller.close()
    try:
        answered = server.read(body)
    except (ValueError, TypeError, LookupError) as error:
        raise RuntimeError(f"an answer that cannot be read ({error}): {body[:300]!r}") from error
    expected = open_session(str(bundle / "model.onnx"))(x)
    if answered.shape != expected.shape or not np.allclose(answered, expected, 1e-4, 1e-4):
        raise RuntimeError(f"a wrong answer of shape {answered.shape}")


def _end(root: psutil.Process) -> None:
    """SIGTERM to the server; whatever is left of its tree after 10 seconds is killed."""
    try:
        tree = [root, *root.children(recursive=True)]
        root.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return
    _, left = psutil.wait_procs(tree, timeout=10)
    for process in left:
        process.kill()


def _post(path: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """A request as bytes."""
    named = {"Content-Type": "application/json", **(headers or {})}
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        *(f"{key}: {value}" for key, value in named.items()),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
