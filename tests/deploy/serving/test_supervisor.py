"""Several processes on one port: one that is killed costs its own requests and is replaced."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import ROOT, WAIT_S, Server, rows, spoil_golden, wait_until
from tiny import Cli, answer

from deploy.bundle.folder import read_bundle
from deploy.serving.models.finding import find_bundles
from deploy.serving.options import ServeOptions
from deploy.serving.summing import sum_metrics
from deploy.serving.supervisor import GAVE_WAY, REFUSED, Supervisor, _Worker
from export.errors import BundleError, EngineError

X = np.array([[1, 2, 3, 4]], np.float32)
LOST = {"BrokenPipeError", "ConnectionResetError", "IncompleteRead", "RemoteDisconnected"}
ANSWERED = 'nv_inference_request_success{model="tiny",version="1"}'


@pytest.fixture
def pair(pristine: Path) -> Any:
    """Two workers, both ready."""
    server = Server(pristine, "--workers", "2")
    wait_for_workers(server, 2)
    yield server
    assert server.stop() == 0


def wait_for_workers(server: Server, count: int) -> list[int]:
    """Process ids of all workers that took requests so far, once they are `count`."""

    def find() -> list[int]:
        return [event["pid"] for event in server.events if event["message"].startswith("listening")]

    wait_until(lambda: len(find()) >= count)
    return find()


class Clients:
    """Four that ask, one request on a connection each, and keep what came of them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.outcomes: list[str] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(WAIT_S)

    def _ask(self) -> None:
        while not self._ended.wait(0.005):
            try:
                status, content = self.server.infer("tiny", rows([1, 2, 3, 4]))
                got = content["outputs"][0]["data"] if status == 200 else status
                right = status == 200 and np.allclose(got, answer(X)[0], 1e-4, 1e-4)
                self.outcomes.append("right" if right else str(got))
            except (OSError, http.client.HTTPException) as error:
                self.outcomes.append(type(error).__name__)

    def wait_for_more(self) -> None:
        """Until each has asked a few times more."""
        before = len(self.outcomes)
        wait_until(lambda: len(self.outcomes) > before + 10)

    def lost(self) -> list[str]:
        return [outcome for outcome in self.outcomes if outcome != "right"]


def test_a_killed_worker_costs_its_own_requests_and_is_replaced(pristine: Path) -> None:
    """Both are killed, one after the other: in the end only replacements answer."""
    server = Server(pristine, "--workers", "2")
    first, second = wait_for_workers(server, 2)
    try:
        with Clients(server) as clients:
            for number, pid in enumerate((first, second)):
                clients.wait_for_more()
                os.kill(pid, signal.SIGKILL)
                assert len(set(wait_for_workers(server, 3 + number))) == 3 + number
            clients.wait_for_more()
        lost = clients.lost()
        assert len(lost) <= 8, lost  # what each client had sent to the two
        assert set(lost) <= LOST
        assert server.metrics()["deploy_worker_deaths_total"] == 2
    finally:
        assert server.stop() == 0


def test_a_worker_that_took_requests_waits_little_however_often_it_dies(tmp_path: Path) -> None:
    """One that never does waits longer and longer, as whatever ails it will not pass at once."""
    worker = _Worker(0, tmp_path / "0.sock")
    waits = []
    for now in range(9):
        worker.started = float(now)
        worker.note_death(now + 0.5, -9)
        waits.append(worker.wait_s)
    assert waits == [0, 1, 2, 4, 8, 16, 30, 30, 30]
    worker.socket.touch()
    worker.note_death(10.0, -9)
    assert worker.wait_s == 1
    assert not worker.socket.exists()
    worker.socket.touch()
    worker.started = 20.0
    worker.note_death(30.0, -9)
    assert (worker.wait_s, worker.deaths) == (0, 11)


@pytest.mark.thorough
def test_what_lies_there_since_the_start_is_not_served_beside_what_was_there(
    bundle_path: Path, tmp_path: Path
) -> None:
    """A worker that is killed is replaced by one that reads the bundles once more."""
    server = Server(bundle_path, "--workers", "2")
    first, _ = wait_for_workers(server, 2)
    try:
        aside = tmp_path / "aside"
        shutil.copytree(bundle_path, aside)
        spoil_golden(bundle_path, 2.0)  # a sound bundle, of other recorded answers
        read_bundle(bundle_path)
        os.kill(first, signal.SIGKILL)
        refused = server.wait_for("a worker cannot serve")
        assert "is another bundle than when the server started or its config" in refused["message"]
        with Clients(server) as clients:
            clients.wait_for_more()
        assert set(clients.outcomes) == {"right"}
        shutil.rmtree(bundle_path)
        aside.rename(bundle_path)
        wait_for_workers(server, 3)
    finally:
        assert server.stop() == 0


@pytest.mark.thorough
def test_where_no_worker_is_left_and_the_bundle_is_another_the_server_ends(
    bundle_path: Path,
) -> None:
    """Whoever connects would wait for an answer without end."""
    server = Server(bundle_path, "--workers", "2")
    pids = wait_for_workers(server, 2)
    try:
        spoil_golden(bundle_path, 2.0)
        os.kill(pids[0], signal.SIGKILL)
        server.wait_for("a worker cannot serve")
        assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 200
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises((OSError, http.client.HTTPException)):
            server.infer("tiny", rows([1, 2, 3, 4]))
        assert server.process.wait(WAIT_S) == 2
        server._reader.join(WAIT_S)
        assert "Start it anew" in "".join(server.other)
    finally:
        server.stop()


def test_only_refusals_of_all_workers_and_again_and_again_end_the_server(pristine: Path) -> None:
    supervisor = Supervisor(find_bundles([pristine]), ServeOptions(workers=2))
    workers = [_Worker(number, pristine / f"{number}.sock") for number in range(2)]
    supervisor._workers = workers

    def end(*codes: int) -> None:
        for worker, code in zip(workers, codes, strict=True):
            worker.note_death(0.0, code)
        supervisor._check_refusals()

    for codes in ((REFUSED, REFUSED), (REFUSED, 1), (REFUSED, REFUSED), (-9, REFUSED)):
        end(*codes)
    end(REFUSED, REFUSED)
    end(REFUSED, REFUSED)
    with pytest.raises(BundleError, match="Start it anew"):
        end(REFUSED, REFUSED)


def test_a_worker_that_serves_is_not_ended_for_refusals_of_long_ago(
    pristine: Path, tmp_path: Path
) -> None:
    """Its bundle was put back after its third; nobody else's count says that none is left."""
    supervisor = Supervisor(find_bundles([pristine]), ServeOptions(workers=2))
    serving, other = supervisor._workers = [_Worker(n, tmp_path / f"{n}.sock") for n in range(2)]
    for worker in (serving, serving, serving, other, other):
        worker.note_death(0.0, REFUSED)
    for worker in (serving, other):
        worker.socket.touch()
        worker.count_silence(1.0)
    for code in (-9, REFUSED, REFUSED, REFUSED, REFUSED):
        other.note_death(2.0, code)
        supervisor._check_refusals()
    serving.note_death(3.0, -9)
    for _ in range(2):
        serving.note_death(4.0, REFUSED)
        supervisor._check_refusals()
    serving.note_death(5.0, REFUSED)
    with pytest.raises(BundleError, match="Start it anew"):
        supervisor._check_refusals()


@pytest.fixture
def doubtful(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file by which one worker finds that it computes something else, and the environment for it.

    There is no other way to have the machine change.
    """
    flag = tmp_path / "doubt"
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "import deploy.serving.models.readiness as readiness\n"
        "find = readiness.find_mismatch\n"
        "def doubt(*args, **options):\n"
        f"    if not os.path.exists({str(flag)!r}):\n"
        "        return find(*args, **options)\n"
        f"    os.unlink({str(flag)!r})\n"
        "    return 'y is another'\n"
        "readiness.find_mismatch = doubt\n"
    )
    before = os.environ.get("PYTHONPATH", "")
    return flag, {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT), before))}


@pytest.mark.thorough
def test_a_worker_that_is_not_ready_leaves_requests_to_those_that_are(
    pristine: Path, doubtful: tuple[Path, dict[str, str]]
) -> None:
    flag, environment = doubtful
    server = Server(pristine, "--workers", "2", env=environment)
    first, _ = wait_for_workers(server, 2)
    try:
        flag.touch()
        with Clients(server) as clients:
            clients.wait_for_more()
            os.kill(first, signal.SIGKILL)
            server.wait_for("not ready, while other workers are")
            wait_for_workers(server, 3)
            clients.wait_for_more()
        assert set(clients.lost()) <= LOST
        assert server.metrics()["deploy_worker_deaths_total"] == 2
    finally:
        assert server.stop() == 0


@pytest.mark.thorough
def test_of_workers_that_start_together_none_that_is_not_ready_stays(
    pristine: Path, doubtful: tuple[Path, dict[str, str]]
) -> None:
    flag, environment = doubtful
    flag.touch()
    server = Server(pristine, "--workers", "2", env=environment)
    try:
        server.wait_for("not ready, while other workers are")
        wait_until(lambda: [e["message"] for e in server.events].count("ready") == 2)
        wait_until(lambda: server.metrics()["deploy_ready"] == 1)
        with Clients(server) as clients:
            clients.wait_for_more()
        assert set(clients.outcomes) == {"right"}
    finally:
        assert server.stop() == 0


@pytest.mark.thorough
def test_where_no_worker_is_ready_each_says_so(bundle_path: Path) -> None:
    spoil_golden(bundle_path, 2.0)
    server = Server(bundle_path, "--workers", "2")
    pids = wait_for_workers(server, 2)
    for _ in range(30):
        assert server.request("GET", "/v2/health/live")[0] == 200
        assert server.request("GET", "/v2/health/ready")[0] == 503
        time.sleep(0.1)  # well beyond the time in which one would leave it to another
    assert wait_for_workers(server, 2) == pids
    assert server.stop() == 0


def test_how_long_a_worker_needs_to_fail_gives_it_no_quicker_start(tmp_path: Path) -> None:
    """It opens and verifies, for as long as that takes, beside those that answer."""
    worker = _Worker(0, tmp_path / "0.sock")
    for now, code in ((100.0, 1), (200.0, GAVE_WAY), (300.0, 1), (400.0, GAVE_WAY)):
        worker.started = now
        if code == GAVE_WAY:
            worker.socket.touch()
            worker.count_silence(now)
        worker.note_death(now + 60, code)
    assert (worker.short_lives, worker.wait_s) == (4, 4)


def test_a_worker_that_cannot_be_started_leaves_the_others_alone(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system has no memory or no number for one more process just now."""

    def refuse(*args: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    supervisor = Supervisor(find_bundles([pristine]), ServeOptions(workers=2))
    worker = _Worker(0, tmp_path / "0.sock")
    with socket.socket() as listener:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", refuse)
            supervisor._look_after(worker, listener)
            supervisor._look_after(worker, listener)
        assert (worker.process, worker.wait_s, worker.deaths) == (None, 1, 0)
        supervisor._look_after(worker, listener)
        assert worker.process is None  # it is not time yet
        worker.died -= 1
        supervisor._look_after(worker, listener)
        assert worker.process is not None
        worker.process.kill()
        worker.process.communicate()


@pytest.mark.thorough
def test_a_signal_to_all_processes_at_once_leaves_the_drain_as_long(pristine: Path) -> None:
    """As systemd and a terminal send it; a second one to the supervisor ends it after all."""
    server = Server(pristine, "--workers", "2", "--drain", "1000")
    pids = wait_for_workers(server, 2)
    for pid in (*pids, server.process.pid):
        os.kill(pid, signal.SIGTERM)
    for pid in pids:
        server.wait_for("draining", pid=pid)
        os.kill(pid, signal.SIGTERM)  # there may be any number of them
    for _ in range(40):  # on any of the two, and well after they would have closed their socket
        time.sleep(0.02)
        assert server.request("GET", "/v2/health/ready")[0] == 503
    assert server.infer("tiny", rows([1, 2, 3, 4]))[0] == 200
    assert server.stop() == 0


def test_silence_counts_from_the_last_sign_of_life(tmp_path: Path) -> None:
    worker = _Worker(0, tmp_path / "0.sock")
    assert worker.count_silence(100.0) == 0  # it does not take requests yet, which may take long
    worker.socket.touch()
    assert worker.count_silence(101.0) == 0
    assert worker.count_silence(131.0) == 30
    os.utime(worker.socket, (5, 5))
    assert worker.count_silence(132.0) == 0
    worker.note_death(133.0, -9)
    assert worker.count_silence(200.0) == 0


def test_silence_while_all_were_stopped_does_not_count(pristine: Path, tmp_path: Path) -> None:
    """As in a container that is paused, whose clock goes on."""
    supervisor = Supervisor(find_bundles([pristine]), ServeOptions(workers=2))
    worker = _Worker(0, tmp_path / "0.sock")
    worker.socket.touch()
    supervisor._workers = [worker]
    now = time.monotonic()
    assert worker.count_silence(now - 100) == 0
    last = supervisor._forgive_pause(now - 100)
    assert worker.count_silence(last) < 1
    seen = worker.seen
    supervisor._forgive_pause(time.monotonic())
    assert worker.seen == seen  # an ordinary turn forgives nothing


def test_a_port_of_grpc_that_a_server_has_just_left_is_taken(pristine: Path) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        options = ServeOptions(workers=2, grpc_port=port)
        with pytest.raises(EngineError, match="cannot listen"):
            Supervisor(find_bundles([pristine]), options)._check_grpc_port()
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listener.accept()
            accepted.close()  # first, so that this side waits for what is still under way
            assert client.recv(1) == b""
    Supervisor(find_bundles([pristine]), options)._check_grpc_port()


@pytest.mark.thorough
def test_a_worker_that_is_stopped_is_killed_and_replaced(pristine: Path, tmp_path: Path) -> None:
    script = tmp_path / "impatient.py"
    script.write_text(
        "import deploy.serving.supervisor as supervisor\n"
        "supervisor._SILENT_S = 4.0\n"
        "from deploy.cli import main\n"
        "main()\n"
    )
    server = Server(pristine, "--workers", "2", script=script)
    try:
        stopped, other = wait_for_workers(server, 2)
        os.kill(stopped, signal.SIGSTOP)
        third = wait_for_workers(server, 3)[2]
        assert third not in (stopped, other)
        assert any(event["message"].endswith("hangs and is killed") for event in server.events)
        assert server.metrics()["deploy_worker_deaths_total"] == 1
    finally:
        assert server.stop() == 0


@pytest.mark.thorough
def test_workers_end_where_their_supervisor_was_killed(pristine: Path) -> None:
    server = Server(pristine, "--workers", "2")
    pids = wait_for_workers(server, 2)
    server.process.kill()
    server.process.wait(20)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    server.stop()


def test_metrics_on_any_worker_are_those_of_all(pair: Server) -> None:
    for _ in range(40):
        assert pair.infer("tiny", rows([1, 2, 3, 4]))[0] == 200
    seen = [pair.metrics() for _ in range(8)]
    assert {metrics[ANSWERED] for metrics in seen} == {40}
    assert {metrics["deploy_ready"] for metrics in seen} == {1}


def test_a_port_of_grpc_that_is_taken_is_said_once(pristine: Path, cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = cli("serve", pristine, "--workers", 2, "--port", 0, "--grpc-port", port)
    assert (code, f"gRPC cannot listen on 127.0.0.1:{port}" in err) == (1, True)


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
            "# TYPE deploy_shadow_sqnr_db gauge\n"
            f"deploy_shadow_sqnr_db {drift}\n"
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
        "deploy_shadow_sqnr_db 0.5",
        "deploy_connections 7",
        'h_bucket{le="+Inf"} 7',
    ]
    assert lines.count("# TYPE a counter") == 1
