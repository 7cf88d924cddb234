"""Two nodes of Ray on one machine: replicas die, are added and give way, and nobody notices much.

Each test brings the deployment into the state that it needs, whatever the one before it left.
"""

import importlib.util
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from ray_cluster import Cluster
from ray_load import Load
from servers import rows
from test_readiness import spoil_golden
from tiny import answer, draw

import deploy
from deploy.serving.options import ServeOptions
from deploy.serving.ray_config import write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: the extra `ray`"
    ),
]
LOST_AT_MOST = 64
"""Requests that may fail when one of two replicas is killed under the load of 8 clients."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one core, so that two replicas lie on two of them."""
    running = Cluster()
    yield running
    assert running.stop() == []


@dataclass(frozen=True)
class Scale:
    """How many replicas there are to be, and what may wait in front of them."""

    least: int = 1
    most: int = 1
    target: float = 0.0
    queue: int = 256


def put(cluster: Cluster, bundle: Path, folder: Path, scale: Scale = Scale()) -> None:
    """Deploy the bundle and wait until as many replicas as there are to be take requests."""
    options = ServeOptions(
        port=cluster.port,
        max_batch=4,
        min_replicas=scale.least,
        max_replicas=scale.most,
        target_requests=scale.target,
    )
    path = write_config(folder / "serve.yaml", [bundle], options)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["proxy_location"] = "HeadOnly"  # one machine has one port for the proxies of two nodes
    deployment = content["applications"][0]["deployments"][0]
    deployment["max_queued_requests"] = scale.queue
    deployment["autoscaling_config"] |= {"upscale_delay_s": 1.0, "look_back_period_s": 2.0}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    cluster.deploy(path)
    cluster.wait_for(lambda: len(cluster.replicas()) == scale.least)
    cluster.wait_for(lambda: cluster.request("GET", "/v2/health/ready")[0] == 200)


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


def test_what_waits_in_front_of_the_replicas_is_bounded(
    cluster: Cluster, pristine: Path, tmp_path: Path
) -> None:
    put(cluster, pristine, tmp_path, Scale(queue=1))
    body = json.dumps(rows([1, 2, 3, 4]))
    statuses: list[int] = []

    def burst() -> None:
        def ask() -> None:
            statuses.append(cluster.request("POST", "/v2/models/tiny/infer", body)[0])

        threads = [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    cluster.wait_for(lambda: burst() or 503 in statuses)
    assert set(statuses) == {200, 503}


def test_a_killed_replica_costs_few_requests_and_is_replaced(
    cluster: Cluster, pristine: Path, tmp_path: Path
) -> None:
    put(cluster, pristine, tmp_path, Scale(least=2, most=2))
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


def test_a_replica_is_added_under_load_and_loses_nothing(
    cluster: Cluster, pristine: Path, tmp_path: Path
) -> None:
    """By a number in the config file; the replica that is there stays as it is."""
    put(cluster, pristine, tmp_path)
    (first,) = cluster.replicas()
    with Load(cluster.port) as load:
        put(cluster, pristine, tmp_path)
        assert list(cluster.replicas()) == [first]  # the same file again changes nothing
        two = Scale(least=2, most=2)
        put_more = threading.Thread(target=put, args=(cluster, pristine, tmp_path, two))
        put_more.start()
        added = cluster.wait_for(lambda: len(cluster.replicas()) == 2)
        put_more.join()
        time.sleep(1.0)
    print(f"second replica after {added:.1f} s; {load.answered} answered")
    assert first in cluster.replicas()
    assert load.lost == []


def test_the_load_alone_adds_a_replica(cluster: Cluster, pristine: Path, tmp_path: Path) -> None:
    put(cluster, pristine, tmp_path)  # else two that are there would stay, being within the bounds
    put(cluster, pristine, tmp_path, Scale(most=2, target=0.2))
    with Load(cluster.port) as load:
        added = cluster.wait_for(lambda: len(cluster.replicas()) == 2)
    print(f"second replica after {added:.1f} s of load; {load.answered} answered")
    assert load.lost == []


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
