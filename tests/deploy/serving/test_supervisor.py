"""Several processes on one port: one that is killed costs its own requests and is replaced."""

import http.client
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from servers import Server, rows
from tiny import Cli

from deploy.serving.summing import sum_metrics

ANSWERED = 'nv_inference_request_success{model="tiny",version="1"}'


@pytest.fixture
def pair(pristine: Path) -> Any:
    """Two workers, both ready."""
    server = Server(pristine, "--workers", "2")
    wait_for_ready(server, 2)
    yield server
    assert server.stop() == 0


def wait_for_ready(server: Server, count: int) -> list[int]:
    """Process ids of all workers that became ready, when they are `count`."""
    end = time.monotonic() + 40
    while time.monotonic() < end:
        pids = [event["pid"] for event in server.events if event["message"] == "ready"]
        if len(pids) >= count:
            return pids
        time.sleep(0.02)
    raise AssertionError(server.events)


def test_a_killed_worker_is_replaced_and_the_other_serves_on(pair: Server) -> None:
    ended = threading.Event()
    outcomes: list[str] = []

    def ask() -> None:
        while not ended.is_set():
            try:
                outcomes.append(str(pair.infer("tiny", rows([1, 2, 3, 4]))[0]))
            except (OSError, http.client.HTTPException) as error:
                outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    killed = wait_for_ready(pair, 2)[0]
    begun = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    pair.wait_for("worker")
    assert len(set(wait_for_ready(pair, 3))) == 3
    recovered = time.monotonic() - begun
    time.sleep(0.2)
    ended.set()
    for thread in threads:
        thread.join(20)
    lost = [outcome for outcome in outcomes if outcome != "200"]
    assert len(lost) <= 4, lost  # what each client had sent to it
    assert len(outcomes) > 20
    assert recovered < 20  # under 1 s where nothing else runs


def test_workers_end_where_their_supervisor_was_killed(pristine: Path) -> None:
    server = Server(pristine, "--workers", "2")
    pids = wait_for_ready(server, 2)
    server.process.kill()
    server.process.wait(20)
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)
    server.stop()


def test_metrics_on_any_worker_are_those_of_all(pair: Server) -> None:
    for _ in range(40):
        assert pair.infer("tiny", rows([1, 2, 3, 4]))[0] == 200
    seen = [pair.metrics() for _ in range(8)]
    assert {metrics[ANSWERED] for metrics in seen} == {40}
    assert {metrics["deploy_ready"] for metrics in seen} == {1}


def test_what_needs_one_worker_is_said(pristine: Path, tmp_path: Path, cli: Cli) -> None:
    for flags in (("--control", tmp_path / "a.sock"), ("--metrics-port", "9000")):
        code, _, err = cli("serve", pristine, "--workers", 2, *flags)
        assert (code, "needs one worker" in err) == (2, True)


def test_sums_of_counters_and_the_worst_of_states() -> None:
    def text(count: int, ready: int, drift: float) -> str:
        return (
            "# HELP a things\n# TYPE a counter\n"
            f'a{{model="m"}} {count}\n'
            "# TYPE deploy_ready gauge\n"
            f"deploy_ready {ready}\n"
            "# TYPE deploy_latency_drift_ratio gauge\n"
            f"deploy_latency_drift_ratio {drift}\n"
            "# TYPE deploy_connections gauge\n"
            f"deploy_connections {count}\n"
            "# TYPE h histogram\n"
            f'h_bucket{{le="+Inf"}} {count}\n'
        )

    lines = sum_metrics([text(3, 1, 1.25), text(4, 0, 0.5)]).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        'a{model="m"} 7',
        "deploy_ready 0",
        "deploy_latency_drift_ratio 1.25",
        "deploy_connections 7",
        'h_bucket{le="+Inf"} 7',
    ]
    assert lines.count("# TYPE a counter") == 1
