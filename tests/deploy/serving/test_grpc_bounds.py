"""What one client could make the server hold over gRPC, and what bounds it."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from raw_http2 import calling
from servers import Server, serving

from deploy.serving.grpc_bounds import count_slots
from deploy.serving.grpc_messages import INFERENCE
from deploy.serving.grpc_server import start_grpc
from deploy.serving.grpc_service import GrpcService
from deploy.serving.metrics import ServerStatistics
from deploy.serving.options import ServeOptions
from deploy.serving.repository import ModelRepository

MIB = 2**20
INFER = b"/inference.GRPCInferenceService/ModelInfer"
SLOTS = 5


@pytest.fixture(scope="module")
def echo(identity_bundle: Path) -> Iterator[Server]:
    """Five messages of 16 MiB may be on their way; what takes two seconds is given up."""
    limits = ("--receive-timeout", "2", "--max-inflight-mb", "80", "--max-body-mb", "16")
    with serving(identity_bundle, *limits) as running:
        yield running


@pytest.fixture(autouse=True)
def _holds_nothing_in_the_end(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "echo" in request.fixturenames:
        wait_until_held(request.getfixturevalue("echo"), 0, 0)


def held(server: Server) -> float:
    return server.metrics()["deploy_inflight_bytes"]


def wait_until_held(server: Server, least: float, most: float) -> None:
    end = time.monotonic() + 5
    while not least <= held(server) <= most:
        assert time.monotonic() < end, held(server)
        time.sleep(0.05)


def resident_mib(server: Server) -> float:
    return float(psutil.Process(server.process.pid).memory_info().rss / MIB)


def make_message(values: int) -> bytes:
    """A request whose answer has two tensors as large as its own."""
    message = INFERENCE["ModelInferRequest"](model_name="echo")
    message.inputs.add(name="x", datatype="FP32", shape=[1, values])
    message.raw_input_contents.append(np.ones(values, np.float32).tobytes())
    data: bytes = message.SerializeToString()
    return data


def call(server: Server, data: bytes, **options: Any) -> Any:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        return channel.unary_unary(INFER.decode())(data, timeout=20, **options)


def test_messages_on_their_way_are_so_many_at_a_time(echo: Server) -> None:
    """Of forty that are begun five come in; of the others no more is taken than a window."""
    before = resident_mib(echo)
    with calling(echo.grpc_port, INFER) as calls:
        streams = [1 + 2 * number for number in range(40)]
        for stream in streams:
            calls.begin(stream, 15 * MIB)
        begun = time.monotonic()
        sent = [calls.push(stream, 12 * MIB, 0.02) for stream in streams]
        assert time.monotonic() - begun < 2  # before the first are given up
        large = [size for size in sent if size > 70_000]
        assert len(large) <= SLOTS
        assert sum(large) > 12 * MIB  # those that have their turn do come in
        assert resident_mib(echo) - before < 80 + 40


def test_who_waits_for_its_turn_gets_it(echo: Server) -> None:
    with calling(echo.grpc_port, INFER) as calls:
        for number in range(SLOTS):
            calls.begin(1 + 2 * number, 10 * MIB)
        time.sleep(0.2)
        begun = time.monotonic()
        assert call(echo, make_message(4))
        assert 1 < time.monotonic() - begun < 4  # two seconds after those that never came


def test_health_is_told_while_messages_that_never_come_take_all_turns(echo: Server) -> None:
    with (
        calling(echo.grpc_port, INFER) as calls,
        grpc.insecure_channel(f"127.0.0.1:{echo.grpc_port}") as channel,
    ):
        for number in range(20):
            calls.begin(1 + 2 * number, 10 * MIB)
        time.sleep(0.2)
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        begun = time.monotonic()
        assert (live(b"", timeout=5), check(b"", timeout=5)) == (b"\x08\x01", b"\x08\x01")
        assert time.monotonic() - begun < 1


def test_answers_that_nobody_takes_count_as_held(echo: Server) -> None:
    message = make_message(2 * MIB)
    each = 3 * len(message)
    with calling(echo.grpc_port, INFER) as calls:
        for number in range(3):
            calls.ask(1 + 2 * number, message)
            wait_until_held(echo, each * (number + 1) - MIB, each * (number + 1) + MIB)
        with pytest.raises(grpc.RpcError, match="holds as many bytes") as caught:
            call(echo, make_message(2 * MIB + MIB // 2))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert call(echo, make_message(4))  # for small ones there is room


def test_a_watch_of_health_without_a_message_ends_in_time(echo: Server) -> None:
    with calling(echo.grpc_port, b"/grpc.health.v1.Health/Watch") as watching:
        for number in range(70):
            watching.begin(1 + 2 * number, 10)
        time.sleep(4.5)
        with grpc.insecure_channel(f"127.0.0.1:{echo.grpc_port}") as channel:
            stream = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=5)
            assert next(iter(stream)) == b"\x08\x01"
            stream.cancel()


def test_who_has_no_token_is_told_so_before_a_message_is_taken(identity_bundle: Path) -> None:
    with serving(identity_bundle, env={"DEPLOY_SERVE_TOKEN": "secret"}) as server:
        begun = time.monotonic()
        with pytest.raises(grpc.RpcError, match="bearer token") as caught:
            call(server, make_message(12 * MIB))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert time.monotonic() - begun < 5
        headers = {"Authorization": "Bearer secret"}
        assert b"\ndeploy_inflight_bytes 0\n" in server.request("GET", "/metrics", None, headers)[2]
        good = [("authorization", "Bearer secret")]
        assert call(server, make_message(4), metadata=good)


@pytest.mark.slow  # half a minute until connections are too old
def test_old_connections_end_and_take_their_answers_with_them(identity_bundle: Path) -> None:
    """And nobody who takes them notices: a call is never lost to the age of its connection."""
    limits = ("--receive-timeout", "1", "--timeout", "1")
    with (
        serving(identity_bundle, *limits) as server,
        calling(server.grpc_port, INFER) as calls,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        infer = channel.unary_unary(INFER.decode())
        calls.ask(1, make_message(2 * MIB))
        wait_until_held(server, MIB, 100 * MIB)
        begun = time.monotonic()
        while not calls.ended or time.monotonic() - begun < 30:
            assert infer(make_message(4), timeout=5)
            assert time.monotonic() - begun < 45
            time.sleep(0.002)
        wait_until_held(server, 0, 0)


@pytest.mark.parametrize(("body", "held", "slots"), [(64, 1024, 16), (16, 80, 5), (64, 32, 1)])
def test_as_many_as_could_be_held_may_be_on_their_way(body: int, held: int, slots: int) -> None:
    assert count_slots(ServeOptions(max_body_mb=body, max_inflight_mb=held)) == slots


@pytest.mark.parametrize(
    "limits",
    [
        {"timeout": 1e7},
        {"receive_timeout": 1e300},
        {"max_body_mb": 4096},
        {"max_connections": 10**10},
    ],
    ids=str,
)
def test_limits_beyond_what_grpc_counts_to_are_its_largest(limits: dict[str, Any]) -> None:
    listen(ServeOptions(grpc_port=0, **limits))


@pytest.mark.parametrize("host", ["::1", "127.0.0.1", "localhost"])
def test_it_listens_on_addresses_of_either_kind(host: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    listen(ServeOptions(host=host, grpc_port=0))


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def listen(options: ServeOptions) -> None:
    """A server that listens, and ends."""

    async def run() -> int:
        service = GrpcService(ModelRepository(), options, ServerStatistics())
        server, port = await start_grpc(service, options)
        await server.stop(0)
        return port

    assert asyncio.run(run()) > 0
