"""What `deploy serve` costs a request: CPU time of the server, latency and throughput.

    python benchmarks/serving.py [--requests 2000] [--connections 1]

A model that answers with its input, so that what is measured is the server: CPU time of its process
with all threads, for a small JSON request and for a 1x3x224x224 float32 image as a raw tensor, over
HTTP on connections that stay open, and over gRPC. Every answer is compared with what was sent.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper

from deploy.bundle import GOLDEN, REPORT_HTML, REPORT_JSON
from deploy.golden import Golden
from deploy.machine import describe_machine
from deploy.manifest import BundledEngine, write_manifest
from export.artifacts import TensorSpec

ENGINE = "onnxruntime-fp32"


@dataclass(frozen=True)
class Case:
    """One kind of request: its bytes on the wire, and what its answer must end with."""

    name: str
    request: bytes
    ending: bytes


def write_bundle(path: Path, shape: tuple[int, ...]) -> Path:
    """A bundle whose model is Identity over [batch, *shape] in float32."""
    path.mkdir()
    dims = ["batch", *shape]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "echo",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        path / "model.onnx",
    )
    x = np.ones((1, *shape), np.float32)
    Golden({"x": x}, {key: {"y": x} for key in ("reference", ENGINE)}).save(path / GOLDEN)
    spec = [TensorSpec(name, ("batch", *shape), "float32") for name in ("x", "y")]
    (path / REPORT_HTML).write_text("")
    (path / REPORT_JSON).write_text(json.dumps(make_report(spec)))
    write_manifest(
        path,
        created="2026-11-25T00:00:00Z",
        model="echo.pt",
        winner=ENGINE,
        engines={ENGINE: BundledEngine("onnxruntime", "fp32", "model.onnx", 1e-6)},
        inputs=(spec[0],),
        outputs=(spec[1],),
        structure="tensor",
        machine={},
    )
    return path


def make_report(spec: list[TensorSpec]) -> dict[str, object]:
    """As little of a report as a reader accepts."""
    latency = {"p50_ms": 1.0, "p50_ci95": [1.0, 1.0], "speedup": 1.0, "speedup_ci95": [1.0, 1.0]}
    baseline = {
        "name": "torch",
        "engine": "torch",
        "precision": "fp32",
        "status": "ok",
        "reason": None,
        "parity": None,
        "latency": latency,
        "size_bytes": None,
    }
    model = {"name": "echo.pt", "sha256": None, "form": "module", "parameters": 0, "macs": 0}
    empty = {key: [] for key in ("fused", "skipped", "attempts")}
    tensors = {"inputs": [str(spec[0])], "outputs": [str(spec[1])]}
    return {
        "schema_version": 1,
        "created": "2026-11-25T00:00:00Z",
        "deploykit": "0",
        "model": {**model, **empty, **tensors},
        "machine": {"cpu": None, "gpu": None, "threads": 1, "versions": {}, "peak_gmacs": {}},
        "data": {
            "source": None,
            "kind": "synthetic",
            "evaluation_samples": 0,
            "classes_of": None,
        },
        "gates": {"max_drop": 0.01, "min_sqnr_db": {}},
        "measurement": {"batch": 1, "threads": 1, "seconds": 0.0},
        "control": None,
        "baseline": baseline,
        "candidates": [],
        "winner": "torch",
        "verdict": "",
        "warnings": [],
        "stages": [],
    }


def make_cases() -> list[Case]:
    """The two requests, over HTTP."""
    small = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.5, 2.0, 3.0, 4.0]}
    body = json.dumps({"inputs": [small]}).encode()
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    described = {
        "name": "x",
        "datatype": "FP32",
        "shape": list(image.shape),
        "parameters": {"binary_data_size": image.nbytes},
    }
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    return [
        Case("small JSON", post("small", body), b'"data":[1.5,2.0,3.0,4.0]}]}'),
        Case(
            "1x3x224x224 raw",
            post("image", head + image.tobytes(), len(head)),
            image.tobytes(),
        ),
    ]


def post(model: str, body: bytes, header: int | None = None) -> bytes:
    """An infer request as bytes."""
    lines = [
        f"POST /v2/models/{model}/infer HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {len(body)}",
    ]
    if header is not None:
        lines.append(f"Inference-Header-Content-Length: {header}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def send(connection: socket.socket, case: Case) -> float:
    """One request; seconds until its whole answer is there, which must be right."""
    begun = time.perf_counter()
    connection.sendall(case.request)
    data = bytearray()
    size = None
    while size is None or len(data) < size:
        chunk = connection.recv(1 << 20)
        if not chunk:
            raise SystemExit(f"{case.name}: the connection ended: {bytes(data[:200])!r}")
        data += chunk
        if size is None and (end := data.find(b"\r\n\r\n")) >= 0:
            headers = data[:end].lower()
            length = headers.split(b"content-length: ")[1].split(b"\r\n")[0]
            size = end + 4 + int(length)
    seconds = time.perf_counter() - begun
    if not data.startswith(b"HTTP/1.1 200") or not data.endswith(case.ending):
        raise SystemExit(f"{case.name}: a wrong answer: {bytes(data[:300])!r}")
    return seconds


def measure(
    process: psutil.Process, ask: Callable[[], list[float]]
) -> tuple[float, list[float], float]:
    """CPU seconds of the server, seconds of each request, and wall seconds of all."""
    before, begun = process.cpu_times(), time.perf_counter()
    times = ask()
    wall, after = time.perf_counter() - begun, process.cpu_times()
    return after.user + after.system - before.user - before.system, times, wall


def ask_http(port: int, case: Case, requests: int, connections: int) -> list[float]:
    """Closed loop: every connection sends its next request when it has the answer."""
    times: list[float] = []

    def client() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            times.extend([send(connection, case) for _ in range(requests // connections)])

    threads = [threading.Thread(target=client) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def ask_grpc(port: int, requests: int) -> list[float]:
    """The image over gRPC, by tritonclient."""
    import tritonclient.grpc

    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    given = tritonclient.grpc.InferInput("x", list(image.shape), "FP32")
    given.set_data_from_numpy(image)
    times = []
    for _ in range(requests):
        begun = time.perf_counter()
        answer = client.infer("image", [given])
        times.append(time.perf_counter() - begun)
        if not np.array_equal(answer.as_numpy("y"), image):
            raise SystemExit("gRPC: a wrong answer")
    return times


def start_server(folder: Path) -> tuple["subprocess.Popen[str]", dict[str, int], float]:
    """A server of both models, ready; its ports and the seconds until then."""
    bundles = [write_bundle(folder / "small", (4,)), write_bundle(folder / "image", (3, 224, 224))]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        grpc_port = probe.getsockname()[1]
    flags = ["--port", "0", "--grpc-port", str(grpc_port), "--threads", "1"]
    begun = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "deploy", "serve", *map(str, bundles), *flags],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    ports: dict[str, int] = {}
    for line in server.stderr:
        event = json.loads(line)
        ports |= {key: event[key] for key in ("http_port", "grpc_port") if key in event}
        if event["message"] == "ready":
            return server, ports, time.perf_counter() - begun
    raise SystemExit("the server ended before it was ready")


def show(name: str, cpu: float, times: list[float], wall: float) -> None:
    """One line of the table."""
    times.sort()
    p50, p99 = (statistics.quantiles(times, n=100)[q - 1] * 1e3 for q in (50, 99))
    print(
        f"{name:<26} {1e3 * cpu / len(times):>8.3f} ms CPU  p50 {p50:>7.3f} ms  "
        f"p99 {p99:>7.3f} ms  {len(times) / wall:>8.0f}/s"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=1)
    options = parser.parse_args()
    machine = describe_machine()
    stamp = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    print(f"{machine.cpu}, {machine.cores} cores, load {os.getloadavg()[0]:.2f}, {stamp}")
    print(f"Python {platform.python_version()}, {options.connections} connections")
    with tempfile.TemporaryDirectory() as folder:
        server, ports, seconds = start_server(Path(folder))
        try:
            print(f"start to ready: {seconds:.2f} s, two models")
            process = psutil.Process(server.pid)
            for case in make_cases():
                ask_http(ports["http_port"], case, 200, options.connections)
                show(
                    f"HTTP {case.name}",
                    *measure(
                        process,
                        lambda case=case: ask_http(
                            ports["http_port"], case, options.requests, options.connections
                        ),
                    ),
                )
            ask_grpc(ports["grpc_port"], 50)
            asked = options.requests // 4
            show(
                "gRPC 1x3x224x224",
                *measure(process, lambda: ask_grpc(ports["grpc_port"], asked)),
            )
        finally:
            server.terminate()
            server.wait(60)


if __name__ == "__main__":
    main()
