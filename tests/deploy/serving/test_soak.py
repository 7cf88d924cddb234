"""Minutes of valid and hostile requests side by side: nothing falls, grows or answers wrongly.

``DEPLOY_SOAK_MINUTES`` makes it shorter than ten.
"""

import http.client
import json
import os
import random
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
from servers import Server, serving
from tiny import answer

pytestmark = [pytest.mark.slow, pytest.mark.long]

SECONDS = 60 * float(os.environ.get("DEPLOY_SOAK_MINUTES", "10"))
INFER = "/v2/models/tiny/infer"
HEAD = f"POST {INFER} HTTP/1.1\r\nHost: a\r\n"


class Load(threading.Thread):
    """Calls `act` again and again until told to stop, and keeps what it raised."""

    def __init__(self, act: Callable[[], None], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.act, self.stop = act, stop
        self.done = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.stop.wait(0.002):
            try:
                self.act()
            except (OSError, AssertionError, http.client.HTTPException, grpc.RpcError) as error:
                self.failures.append(repr(error)[:500])
            self.done += 1


def valid_http(server: Server, seed: int, stack: ExitStack) -> Callable[[], None]:
    """Asks on one connection, by turns as JSON and raw, and holds answers against the model."""
    generator = np.random.default_rng(seed)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    stack.callback(connection.close)

    def act() -> None:
        x = generator.standard_normal((int(generator.integers(1, 9)), 4)).astype(np.float32)
        entry = {"name": "x", "datatype": "FP32", "shape": list(x.shape)}
        headers = {}
        if generator.random() < 0.5:
            content = {"inputs": [{**entry, "data": x.reshape(-1).tolist()}]}
            body = json.dumps(content).encode()
        else:
            entry["parameters"] = {"binary_data_size": x.nbytes}
            body = json.dumps({"inputs": [entry]}).encode()
            headers["Inference-Header-Content-Length"] = str(len(body))
            body += x.tobytes()
        connection.request("POST", INFER, body, headers)
        answered = connection.getresponse()
        data = answered.read()
        assert answered.status == 200, data
        got = np.array(json.loads(data)["outputs"][0]["data"]).reshape(len(x), -1)
        np.testing.assert_allclose(got, answer(x), rtol=1e-4, atol=1e-4)

    return act


def valid_grpc(server: Server, seed: int, stack: ExitStack) -> Callable[[], None]:
    generator = np.random.default_rng(seed)
    client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    stack.callback(client.close)

    def act() -> None:
        x = generator.standard_normal((int(generator.integers(1, 9)), 4)).astype(np.float32)
        given = triton.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        got = client.infer("tiny", [given]).as_numpy("logits")
        np.testing.assert_allclose(got, answer(x), rtol=1e-4, atol=1e-4)

    return act


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes, or half a second passes without a byte."""
    connection.settimeout(0.5)
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except (TimeoutError, ConnectionResetError):
        pass
    return data


def hostile_http(server: Server, seed: int) -> Callable[[], None]:
    """One of many kinds of attack a call; a 500 is a failure, being cut off is not."""
    choice = random.Random(seed)
    good = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'

    def body() -> bytes:
        return choice.choice(
            [
                b"[" * 10_000,
                b"\xff" * 100,
                good[: choice.randrange(len(good))],
                good.replace(b"[1,4]", b"[%d,4]" % choice.choice([-1, 0, 2**62, 2**70])),
                good.replace(b"1,2,3", choice.choice([b"null", b'"a"', b"1e400", b"[[[]]]"])),
                b'{"inputs":' + b"[{}," * choice.randrange(1, 1000),
                good + b'{"id":"' + b"a" * choice.randrange(50_000),
            ]
        )

    def request(path: str = INFER) -> bytes:
        content = body()
        length = choice.choice(["", "-5", "abc", "3", "9" * 20])
        header = f"Inference-Header-Content-Length: {length}\r\n" if choice.random() < 0.4 else ""
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\n{header}Content-Length: {len(content)}\r\n"
        return f"{head}Connection: close\r\n\r\n".encode() + content

    attacks: list[Callable[[], bytes]] = [
        request,
        lambda: request(f"/v2/models/m{choice.random()}/infer"),
        lambda: request(f"/v2/models/tiny/versions/{choice.randrange(2, 10**9)}/infer"),
        lambda: b"GET /v2 HTTP/1.1\r\n" + b"X: aaaaaaaa\r\n" * 20_000,
        lambda: b"GET /" + b"a" * 200_000,
        lambda: f"{HEAD}Transfer-Encoding: chunked\r\n\r\n10\r\n".encode() + good * 3,
        lambda: f"{HEAD}Content-Length: 999\r\n\r\n".encode() + good,
        lambda: f"{HEAD}Content-Length: 99999999999\r\n\r\n".encode(),
        lambda: f"{HEAD}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
        lambda: b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 20,
        lambda: bytes(choice.getrandbits(8) for _ in range(300)),
    ]

    def act() -> None:
        with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            data = b""
            try:
                connection.sendall(choice.choice(attacks)())
                if choice.random() < 0.3:  # goes away with a reset, whatever is on its way
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                else:
                    data = read_all(connection)
            except (ConnectionResetError, BrokenPipeError):
                pass
        assert b"HTTP/1.1 50" not in data, data[:300]

    return act


def hostile_grpc(server: Server, seed: int, stack: ExitStack) -> Callable[[], None]:
    choice = random.Random(seed)
    channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}"))
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def act() -> None:
        size = choice.randrange(2000)
        call = infer.future(bytes(choice.getrandbits(8) for _ in range(size)), timeout=10)
        if choice.random() < 0.3:
            call.cancel()
            return
        error = call.exception()
        assert error is not None
        assert error.code() != grpc.StatusCode.INTERNAL, error

    return act


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what clients opened."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def soaked(pristine: Path) -> Iterator[Server]:
    with serving(pristine, "--receive-timeout", "2") as running:
        yield running


def test_valid_and_hostile_load_side_by_side(
    soaked: Server, stack: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = threading.Event()
    valid = [Load(valid_http(soaked, seed, stack), stop) for seed in (1, 2)]
    valid.append(Load(valid_grpc(soaked, 3, stack), stop))
    hostile = [Load(hostile_http(soaked, seed), stop) for seed in range(4)]
    hostile.append(Load(hostile_grpc(soaked, 5, stack), stop))
    process = psutil.Process(soaked.process.pid)
    resident: list[tuple[float, float]] = []
    begun = time.monotonic()
    for load in (*valid, *hostile):
        load.start()
    while time.monotonic() - begun < SECONDS and soaked.process.poll() is None:
        resident.append((time.monotonic() - begun, process.memory_info().rss / 2**20))
        time.sleep(1.0)
    stop.set()
    for load in (*valid, *hostile):
        load.join(30)
    first = min(60.0, SECONDS / 3)
    early = statistics.median(mib for at, mib in resident if first - 6 <= at <= first + 6)
    late = statistics.median(mib for at, mib in resident if at >= SECONDS - 12)
    with capsys.disabled():
        counts = sum(load.done for load in valid), sum(load.done for load in hostile)
        print(f"\nsoak of {SECONDS:.0f} s: {counts[0]} valid, {counts[1]} hostile; ", end="")
        print(f"RSS {early:.1f} MiB after {first:.0f} s, {late:.1f} MiB at the end")
    assert soaked.process.poll() is None
    assert [load.failures[:3] for load in valid] == [[]] * len(valid)
    assert [load.failures[:3] for load in hostile] == [[]] * len(hostile)
    assert late <= early * 1.05
    time.sleep(3.0)  # what hostile connections left is given up
    metrics = soaked.metrics()
    assert metrics["deploy_inflight_bytes"] == 0
    assert metrics['nv_inference_pending_request_count{model="tiny",version="1"}'] == 0
