"""A replica proves itself and lives its life; the command that serves in replicas."""

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from ray_cluster import TOKEN
from servers import ROOT, free_port, rows
from test_readiness import spoil_golden
from tiny import answer, draw

from deploy.bundle.folder import read_bundle
from deploy.serving.options import ServeOptions
from deploy.serving.ray import BundleReplica, ReplicaApplication, build_application
from export.errors import BundleError, ConfigError, EngineError, GateError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: the extra `ray`"
)
OPTIONS = ServeOptions(threads=1, log_level="warning")


async def ask(application: ReplicaApplication, path: str, body: bytes) -> tuple[int, bytes]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
    await application(scope, receive, send)
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


def test_a_replica_is_a_whole_server_from_its_first_request_to_its_end(pristine: Path) -> None:
    x = draw(2, seed=3)
    body = json.dumps(rows(*x.tolist())).encode()

    async def start() -> ReplicaApplication:
        replica = BundleReplica([str(pristine)], OPTIONS)
        application = await replica.__serve_build_asgi_app__()
        await replica.check_health()
        status, answered = await ask(application, "/v2/models/tiny/infer", body)
        assert status == 200
        got = np.reshape(json.loads(answered)["outputs"][0]["data"], (2, 3))
        np.testing.assert_allclose(got, answer(x), rtol=1e-5)
        told: asyncio.Queue[Any] = asyncio.Queue()
        for message in ("startup", "shutdown"):
            told.put_nowait({"type": f"lifespan.{message}"})
        await application({"type": "lifespan"}, told.get, asyncio.Queue[Any]().put)
        with pytest.raises(EngineError, match="tiny: unloading"):
            await replica.check_health()
        assert (await ask(application, "/v2/models/tiny/infer", body))[0] == 503
        return application

    asyncio.run(start())


def test_a_replica_that_answers_otherwise_than_recorded_never_starts(bundle_path: Path) -> None:
    spoil_golden(bundle_path, 1.01)
    replica = BundleReplica([str(bundle_path)], OPTIONS)
    with pytest.raises(GateError, match="does not repeat the answers recorded"):
        asyncio.run(replica.__serve_build_asgi_app__())


def test_a_replica_that_comes_later_has_the_bundles_of_those_before(bundle_path: Path) -> None:
    """What was put in their place since is refused, sound as it is; so are more and fewer."""
    identity = {"tiny/1": read_bundle(bundle_path).manifest.identity()}
    asyncio.run(BundleReplica([str(bundle_path)], OPTIONS, identity).__serve_build_asgi_app__())
    spoil_golden(bundle_path, 2.0)
    for identities, match in (
        (identity, "is another bundle than when the server started or its config was written"),
        ({**identity, "net/2": "0"}, "Here are tiny/1, and to be served are net/2, tiny/1"),
    ):
        replica = BundleReplica([str(bundle_path)], OPTIONS, identities)
        with pytest.raises(BundleError, match=match):
            asyncio.run(replica.__serve_build_asgi_app__())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "bundles must be a list of paths, not None"),
        ({"bundles": "a.deploy"}, "bundles must be a list of paths, not 'a.deploy'"),
        ({"bundles": ["a"], "identities": ["0"]}, "identities must be text by NAME/VERSION"),
        ({"bundles": ["a"], "max-bach": 4}, "unknown option 'max-bach'. Did you mean max-batch?"),
        ({"bundles": ["a"], "max-batch": "4"}, "max-batch must be int, not '4'"),
    ],
)
def test_arguments_of_the_config_file_are_checked(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_application(args)


@needs_ray
@pytest.mark.slow
def test_the_command_serves_until_a_signal_and_leaves_nothing(pristine: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "deploy", "serve", str(pristine), "--ray", "--port", str(port)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    with ending(process):
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if '"message": "ready"' in line:
                break
        assert process.poll() is None, "".join(lines)
        parts = psutil.Process(process.pid).children(recursive=True)
        everywhere = list_open_ports(parts)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/v2/models/tiny/infer", json.dumps(rows([1, 2, 3, 4])))
        assert connection.getresponse().status == 200
        connection.close()
        for name, open_port in everywhere:  # Ray's own port of a replica, which asks for the token
            assert name.startswith("ray::ServeReplica"), name
            with grpc.insecure_channel(f"127.0.0.1:{open_port}") as channel:
                with pytest.raises(grpc.RpcError) as refused:
                    channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=10)
                assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 0, rest
        process.stderr.close()
        assert psutil.wait_procs(parts, timeout=20)[1] == []


@contextlib.contextmanager
def ending(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Where the test fails, its cluster is ended too, and not left to run."""
    try:
        yield
    finally:
        if process.poll() is None:
            for part in psutil.Process(process.pid).children(recursive=True):
                part.kill()
            process.kill()
            process.wait()


def list_open_ports(processes: list[psutil.Process]) -> list[tuple[str, int]]:
    """What listens on more than loopback, by the first word of its command, and where."""
    return [
        (process.cmdline()[0], connection.laddr.port)
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        for connection in process.net_connections("tcp")
        if connection.status == "LISTEN" and not connection.laddr.ip.endswith("127.0.0.1")
    ]
