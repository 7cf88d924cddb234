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
from raw_http2 import PIECE, RawCalls, calling
from servers import SILENCE_S, Server, serving, wait_until

from deploy.serving.grpc.bounds import count_slots
from deploy.serving.grpc.messages import INFERENCE
from deploy.serving.grpc.server import start_grpc
from deploy.serving.grpc.service import GrpcService
from deploy.serving.metrics import ServerStatistics
from deploy.serving.models.repository import ModelRepository
from deploy.serving.options import ServeOptions

MIB = 2**20
INFER = b"/inference.GRPCInferenceService/ModelInfer"
SLOTS = 5
WINDOW = 4 * PIECE - 1  # that a stream has at first: less than four pieces


@pytest.fixture(scope="module")
def echo(identity_bundle: Path) -> Iterator[Server]:
    """Five messages of 16 MiB may be on their way; what takes two seconds is given up."""
    limits = ("--receive-timeout", "2", "--max-inflight-mb", "80", "--max-body-mb", "16")
    with serving(identity_bundle, *limits) as running:
        yield running


@pytest.fixture(scope="module")
def patient(identity_bundle: Path) -> Iterator[Server]:
    """The same, and nothing is given up before a test is over, however long that takes."""
    limits = ("--receive-timeout", "600", "--max-inflight-mb", "80", "--max-body-mb", "16")
    with serving(identity_bundle, *limits) as running:
        yield running


@pytest.fixture(autouse=True)
def _holds_nothing_in_the_end(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"echo", "patient"} & set(request.fixturenames):
        wait_until_held(request.getfixturevalue(name), 0, 0)


def held(server: Server) -> float:
    return server.metrics()["deploy_inflight_bytes"]


def wait_until_held(server: Server, least: float, most: float) -> None:
    wait_until(lambda: least <= held(server) <= most)


def take_all_slots(calls: RawCalls, size: int) -> list[int]:
    """Begin as many calls as have their turn: the server takes more of each than a window."""
    streams = [1 + 2 * number for number in range(SLOTS)]
    for stream in streams:
        calls.begin(stream, size)
    for stream in streams:
        assert calls.push(stream, WINDOW + 1, SILENCE_S) == WINDOW + 1
    return streams


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
        return channel.unary_unary(INFER.decode())(data, timeout=SILENCE_S, **options)


def test_messages_on_their_way_are_so_many_at_a_time(patient: Server) -> None:
    """Of forty that are begun five come in; of the others no more is taken than a window."""
    before = resident_mib(patient)
    with calling(patient.grpc_port, INFER) as calls:
        taken = take_all_slots(calls, 15 * MIB)
        others = [taken[-1] + 2 * number for number in range(1, 36)]
        for stream in others:
            calls.begin(stream, 15 * MIB)
        for stream in taken:
            assert calls.push(stream, 12 * MIB, SILENCE_S) == 12 * MIB
        assert all(calls.push(stream, 12 * MIB, 0.02) <= WINDOW for stream in others)
        assert resident_mib(patient) - before < 80 + 40


def test_who_waits_for_its_turn_gets_it(echo: Server) -> None:
    begun = time.monotonic()
    with calling(echo.grpc_port, INFER) as calls:
        take_all_slots(calls, 10 * MIB)
        time.sleep(0.5)  # it may wait as long as they may take, so it has to come well behind them
        assert call(echo, make_message(4))
        assert time.monotonic() - begun > 1.9  # when those that never came were given up


def test_health_is_told_while_messages_that_never_come_take_all_turns(patient: Server) -> None:
    with (
        calling(patient.grpc_port, INFER) as calls,
        grpc.insecure_channel(f"127.0.0.1:{patient.grpc_port}") as channel,
    ):
        last = take_all_slots(calls, 10 * MIB)[-1]
        for number in range(1, 16):
            calls.begin(last + 2 * number, 10 * MIB)
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert live(b"", timeout=SILENCE_S) == b"\x08\x01"
        assert check(b"", timeout=SILENCE_S) == b"\x08\x01"


def test_answers_that_nobody_takes_count_as_held(patient: Server) -> None:
    message = make_message(2 * MIB)
    each = 3 * len(message)
    with calling(patient.grpc_port, INFER) as calls:
        for number in range(3):
            calls.ask(1 + 2 * number, message, SILENCE_S)
            wait_until_held(patient, each * (number + 1) - MIB, each * (number + 1) + MIB)
        with pytest.raises(grpc.RpcError, match="holds as many bytes") as caught:
            call(patient, make_message(2 * MIB + MIB // 2))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert call(patient, make_message(4))  # for small ones there is room


def test_a_watch_of_health_without_a_message_ends_in_time(echo: Server) -> None:
    with calling(echo.grpc_port, b"/grpc.health.v1.Health/Watch") as watching:
        for number in range(70):
            watching.begin(1 + 2 * number, 10)
        with grpc.insecure_channel(f"127.0.0.1:{echo.grpc_port}") as channel:
            watch = channel.unary_stream("/grpc.health.v1.Health/Watch")

            def is_watched() -> bool:
                stream = watch(b"", timeout=SILENCE_S)
                try:
                    return next(stream) == b"\x08\x01"
                except grpc.RpcError:  # the others are not given up yet
                    return False
                finally:
                    stream.cancel()

            wait_until(is_watched)


def test_who_has_no_token_is_told_so_before_a_message_is_taken(identity_bundle: Path) -> None:
    with serving(identity_bundle, env={"DEPLOY_SERVE_TOKEN": "secret"}) as server:
        with pytest.raises(grpc.RpcError, match="bearer token") as caught:
            call(server, make_message(12 * MIB))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
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
