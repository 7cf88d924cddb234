"""Replicas: each proves itself, and together they outlive one of them, on two nodes of Ray."""

import asyncio
import http.client
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import yaml
from ray_cluster import TOKEN, Cluster
from servers import ROOT, free_port, rows
from test_readiness import spoil_golden
from tiny import answer, draw

import deploy
from deploy.serving.options import ServeOptions
from deploy.serving.ray import BundleReplica, ReplicaApplication, build_application
from deploy.serving.ray_config import write_config
from export.errors import ConfigError, EngineError, GateError

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: the extra `ray`"
)
OPTIONS = ServeOptions(threads=1, log_level="warning")
LOST_AT_MOST = 64
"""Requests that may fail when one of two replicas is killed under the load of 8 clients."""


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


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "bundles must be a list of paths, not None"),
        ({"bundles": "a.deploy"}, "bundles must be a list of paths, not 'a.deploy'"),
        ({"bundles": ["a"], "max-bach": 4}, "unknown option 'max-bach'. Did you mean max-batch?"),
        ({"bundles": ["a"], "max-batch": "4"}, "max-batch must be int, not '4'"),
    ],
)
def test_arguments_of_the_config_file_are_checked(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_application(args)


class Client(threading.Thread):
    """Asks until it is told to stop; holds every answer against the closed form."""

    def __init__(self, port: int, seed: int, stop: threading.Event) -> None:
        super().__init__()
        self.port, self.random, self.stop = port, np.random.default_rng(seed), stop
        self.answered = 0
        self.wrong: list[str] = []
        self.lost: list[tuple[float, str]] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        while not self.stop.wait(0.005):
            x = self.random.standard_normal((1, 4)).astype(np.float32)
            try:
                connection.request("POST", "/v2/models/tiny/infer", json.dumps(rows(x[0].tolist())))
                got = connection.getresponse()
                body = got.read()
            except (OSError, http.client.HTTPException) as error:
                self.lost.append((time.monotonic(), repr(error)))
                connection.close()
                continue
            if got.status != 200:
                self.lost.append((time.monotonic(), f"{got.status} {body[:80]!r}"))
                continue
            data = json.loads(body)["outputs"][0]["data"]
            if not np.allclose(data, answer(x)[0], 1e-4, 1e-4):
                self.wrong.append(f"{x} {data}")
            self.answered += 1
        connection.close()


class Load:
    """Eight clients for as long as the block lasts; none may have got a wrong answer."""

    def __init__(self, port: int) -> None:
        self._stop = threading.Event()
        self.clients = [Client(port, seed, self._stop) for seed in range(8)]

    @property
    def answered(self) -> int:
        return sum(client.answered for client in self.clients)

    @property
    def lost(self) -> list[tuple[float, str]]:
        return sorted(loss for client in self.clients for loss in client.lost)

    def __enter__(self) -> "Load":
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for client in self.clients:
            client.join(30)
        assert [client.wrong for client in self.clients] == [[]] * 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one core, so that two replicas lie on two of them."""
    running = Cluster()
    yield running
    assert running.stop() == []


def put(
    cluster: Cluster,
    bundle: Path,
    folder: Path,
    *,
    least: int = 1,
    most: int = 1,
    target: float = 0,
) -> None:
    """Deploy the bundle and wait until `least` replicas take requests."""
    options = ServeOptions(
        port=cluster.port,
        max_batch=4,
        min_replicas=least,
        max_replicas=most,
        target_requests=target,
    )
    path = write_config(folder / "serve.yaml", [bundle], options)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["proxy_location"] = "HeadOnly"  # one machine has one port for the proxies of two nodes
    scaling = content["applications"][0]["deployments"][0]["autoscaling_config"]
    scaling |= {"upscale_delay_s": 1.0, "look_back_period_s": 2.0}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    cluster.deploy(path)
    cluster.wait_for(lambda: len(cluster.replicas()) == least)
    cluster.wait_for(lambda: cluster.request("GET", "/v2/health/ready")[0] == 200)


@needs_ray
@pytest.mark.slow
def test_answers_are_those_of_the_engine(cluster: Cluster, pristine: Path, tmp_path: Path) -> None:
    put(cluster, pristine, tmp_path)
    with deploy.load(pristine) as engine:
        for seed in range(5):
            x = draw(3, seed=seed)
            body = json.dumps(rows(*x.tolist()))
            status, answered = cluster.request("POST", "/v2/models/tiny/infer", body)
            assert status == 200
            got = np.reshape(json.loads(answered)["outputs"][0]["data"], (3, 3))
            np.testing.assert_allclose(got, engine({"x": x})["logits"], rtol=1e-5)
            np.testing.assert_allclose(got, answer(x), rtol=1e-4)
    assert cluster.application(token="1" * 64) == {}
    described = json.loads(cluster.request("GET", "/v2/models/tiny")[1])["parameters"]
    assert (described["engine"], described["degraded"]) == ("onnxruntime-int8", None)


@needs_ray
@pytest.mark.slow
def test_refusals_are_those_of_one_process(
    cluster: Cluster, pristine: Path, tmp_path: Path
) -> None:
    put(cluster, pristine, tmp_path)
    for path, body, expected in [
        ("/v2/models/other/infer", json.dumps(rows([1, 2, 3, 4])), 404),
        ("/v2/models/tiny/infer", "{", 400),
        ("/v2/models/tiny/infer", json.dumps(rows([1, 2, 3])), 400),
        ("/v2/models/tiny/infer", json.dumps(rows(*[[1.0] * 4] * 5)), 400),
        ("/v2/repository/models/tiny/load", "{}", 501),
    ]:
        status, answered = cluster.request("POST", path, body)
        assert status == expected
        assert list(json.loads(answered)) == ["error"]


@needs_ray
@pytest.mark.slow
def test_a_killed_replica_costs_few_requests_and_is_replaced(
    cluster: Cluster, pristine: Path, tmp_path: Path
) -> None:
    put(cluster, pristine, tmp_path, least=2, most=2)
    before = cluster.replicas()
    assert len(set(before.values())) == 2  # nodes
    killed = next(iter(before))
    assert psutil.Process(killed).cmdline()[0].startswith("ray::ServeReplica")
    with Load(cluster.port) as load:
        time.sleep(2.0)
        assert load.lost == []
        at = time.monotonic()
        os.kill(killed, signal.SIGKILL)
        replaced = cluster.wait_for(
            lambda: killed not in (now := cluster.replicas()) and len(now) == 2
        )
        time.sleep(2.0)
        answered = load.answered
        time.sleep(1.0)
        assert load.answered > answered
    errors = [(round(when - at, 3), what) for when, what in load.lost]
    last = errors[-1][0] if errors else 0.0
    print(f"lost {len(errors)} of {load.answered + len(errors)}, the last after {last:.2f} s;")
    print(f"two replicas again after {replaced:.1f} s; {errors[:3]}")
    assert len(errors) <= LOST_AT_MOST
    assert last < 10.0
    assert replaced < 40.0


@needs_ray
@pytest.mark.slow
def test_a_replica_is_added_under_load_and_loses_nothing(
    cluster: Cluster, pristine: Path, tmp_path: Path
) -> None:
    """By a number in the config file; the replica that is there stays as it is."""
    put(cluster, pristine, tmp_path)
    (first,) = cluster.replicas()
    with Load(cluster.port) as load:
        put(cluster, pristine, tmp_path, least=1, most=1)
        assert list(cluster.replicas()) == [first]  # the same file again changes nothing
        put_more = threading.Thread(
            target=put, args=(cluster, pristine, tmp_path), kwargs={"least": 2, "most": 2}
        )
        put_more.start()
        added = cluster.wait_for(lambda: len(cluster.replicas()) == 2)
        put_more.join()
        time.sleep(1.0)
    print(f"second replica after {added:.1f} s; {load.answered} answered")
    assert first in cluster.replicas()
    assert load.lost == []


@needs_ray
@pytest.mark.slow
def test_the_load_alone_adds_a_replica(cluster: Cluster, pristine: Path, tmp_path: Path) -> None:
    put(cluster, pristine, tmp_path, least=1, most=2, target=0.2)
    with Load(cluster.port) as load:
        added = cluster.wait_for(lambda: len(cluster.replicas()) == 2)
    print(f"second replica after {added:.1f} s of load; {load.answered} answered")
    assert load.lost == []


@needs_ray
@pytest.mark.slow
def test_a_bundle_that_is_not_what_it_was_does_not_deploy(
    cluster: Cluster, bundle_path: Path, pristine: Path, tmp_path: Path
) -> None:
    """And leaves the one that serves where it is."""
    put(cluster, pristine, tmp_path)
    (serving,) = cluster.replicas()
    spoil_golden(bundle_path, 1.5)
    path = write_config(tmp_path / "bad.yaml", [bundle_path], ServeOptions(port=cluster.port))
    with Load(cluster.port) as load:
        cluster.deploy(path)
        cluster.wait_for(
            lambda: (
                cluster.application()["status"] in ("DEPLOY_FAILED", "UNHEALTHY")
                and "does not repeat the answers" in json.dumps(cluster.application())
            )
        )
    assert list(cluster.replicas()) == [serving]
    assert load.lost == []


@needs_ray
@pytest.mark.slow
def test_a_new_version_takes_over_without_a_failed_request(
    cluster: Cluster, bundle_path: Path, pristine: Path, tmp_path: Path
) -> None:
    put(cluster, pristine, tmp_path)
    (old,) = cluster.replicas()
    with Load(cluster.port) as load:
        put(cluster, bundle_path, tmp_path)
        cluster.wait_for(lambda: old not in cluster.replicas() and len(cluster.replicas()) == 1)
        cluster.wait_for(lambda: not psutil.pid_exists(old))
    assert load.lost == []
    print(f"{load.answered} answered while the version changed")


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


def list_open_ports(processes: list[psutil.Process]) -> list[tuple[str, int]]:
    """What listens on more than loopback, by the first word of its command, and where."""
    return [
        (process.cmdline()[0], connection.laddr.port)
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        for connection in process.net_connections("tcp")
        if connection.status == "LISTEN" and not connection.laddr.ip.endswith("127.0.0.1")
    ]
