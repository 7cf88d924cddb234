"""`--workers N`: N servers on one port, each a process of its own, and one that looks after them.

The supervisor binds the HTTP socket and hands it to every worker, so none of them owns the port;
gRPC shares its port by SO_REUSEPORT. A worker that dies is started anew, and what the others do
does not notice. Metrics are asked for on any worker and summed over all: see `summing.py`.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deploy.serving.logs import log_to_stderr
from deploy.serving.models.finding import FoundBundle
from deploy.serving.options import ServeOptions
from export.errors import BundleError, DeployError, EngineError

_LOG = logging.getLogger("deploy.serving")
_BACKLOG = 1024
_TICK_S = 0.05
GAVE_WAY = 75
"""Exit code of a worker that was not ready while others were."""

REFUSED = 65
"""Exit code of a worker whose bundles are not those that were found at the start."""

_REFUSALS = 3
"""So many in a row in every place end the server: a bundle that was being put back is there by then
(the last two are a second apart at least), and nobody answers meanwhile."""

_SHORT_LIFE_S = 5.0
"""A worker that dies sooner than that again and again waits before it is started; so does one that
dies before it takes requests, which may take any time."""

_LONGEST_S = 30.0
"""Seconds that one waits at most which dies before it takes requests."""

_LONGEST_READY_S = 1.0
"""The same of one that took requests: it will again, and somebody waits for it."""

_SILENT_S = 30.0
"""Seconds without a sign of life after which a worker that took requests is killed: it is stopped,
or its event loop or an engine hangs."""

_PAUSE_S = 1.0
"""Seconds between two looks at the workers from which on all were stopped, as in a container."""

_PATIENCE_S = 5.0
"""Seconds beyond its own time that a worker has to end, before it is killed."""


@dataclass
class _Worker:
    """One place among the workers, and the process that fills it now."""

    number: int
    socket: Path
    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    died: float = float("-inf")
    deaths: int = 0
    short_lives: int = 0
    refusals: int = 0
    longest_s: float = _LONGEST_S
    sign: float = 0.0
    seen: float = 0.0

    @property
    def wait_s(self) -> float:
        """Seconds between a death and the next start: none at first, then 1, 2, 4 and so on."""
        return 0.0 if self.short_lives < 2 else min(2.0 ** (self.short_lives - 2), self.longest_s)

    def note_death(self, now: float, code: int) -> None:
        """Its process is gone, with this exit code; what it left is taken away."""
        served = code != GAVE_WAY and (self.sign > 0 or self.socket.exists())
        short = not served or now - self.started < _SHORT_LIFE_S
        self.short_lives = self.short_lives + 1 if short else 0
        self.refusals = self.refusals + 1 if code == REFUSED else 0
        self.longest_s = _LONGEST_READY_S if served else _LONGEST_S
        self.socket.unlink(missing_ok=True)  # else the next would seem to take requests already
        self.process, self.died, self.sign = None, now, 0.0
        self.deaths += 1

    def note_failure(self, now: float) -> None:
        """It could not be started; it waits as one that dies before it takes requests."""
        self.short_lives += 1
        self.longest_s, self.died = _LONGEST_S, now

    def count_silence(self, now: float) -> float:
        """Seconds since its last sign of life, which is the time of its socket; 0 before the first.

        By the clock of this process, which rests where the machine does; see also `_forgive_pause`.
        """
        try:
            sign = self.socket.stat().st_mtime
        except OSError:
            return 0.0
        if sign != self.sign:
            self.sign, self.seen = sign, now
            self.refusals = 0  # it takes requests, whatever those before it said
        return now - self.seen


class Supervisor:
    """Starts workers, starts them anew, ends them.

    Args:
        bundles: as they were found at the start, with their identities.
        options: with more than one worker.
    """

    def __init__(self, bundles: Sequence[FoundBundle], options: ServeOptions) -> None:
        self._bundles = [{**asdict(bundle), "path": str(bundle.path)} for bundle in bundles]
        self._options = options
        self._stopping = False
        self._workers: list[_Worker] = []

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            EngineError: a port is taken.
            BundleError: no worker is left, and there are other bundles now than at the start.
        """
        log_to_stderr(self._options.log_level)
        self._check_grpc_port()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        folder = Path(tempfile.mkdtemp(prefix="deploy-serve-"))
        self._workers = [
            _Worker(number, folder / f"{number}.sock") for number in range(self._options.workers)
        ]
        try:
            with self._listen() as listener:
                last = time.monotonic()
                while not self._stopping:
                    last = self._forgive_pause(last)
                    for worker in self._workers:
                        self._look_after(worker, listener)
                    self._check_refusals()
                    time.sleep(_TICK_S)
                self._end()
        finally:
            self._end()
            shutil.rmtree(folder, ignore_errors=True)

    def _forgive_pause(self, last: float) -> float:
        """Now; if this process was stopped since `last`, so were its workers."""
        now = time.monotonic()
        if now - last > _PAUSE_S:
            for worker in self._workers:
                worker.seen += now - last
        return now

    def _check_grpc_port(self) -> None:
        """Every worker would fail at it, again and again.

        Raises:
            EngineError: the port of gRPC is taken by somebody who does not share it.
        """
        if not self._options.grpc_port:
            return
        with self._make_socket() as probe:
            for option in (socket.SO_REUSEPORT, socket.SO_REUSEADDR):  # gRPC sets both
                probe.setsockopt(socket.SOL_SOCKET, option, 1)
            try:
                probe.bind((self._options.host, self._options.grpc_port))
            except OSError as error:
                where = f"{self._options.host}:{self._options.grpc_port}"
                raise EngineError(
                    f"gRPC cannot listen on {where}: {error}. Choose another --grpc-port."
                ) from error

    def _make_socket(self) -> socket.socket:
        return socket.socket(socket.AF_INET6 if ":" in self._options.host else socket.AF_INET)

    def _listen(self) -> socket.socket:
        listener = self._make_socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._options.host, self._options.port))
        except OSError as error:
            listener.close()
            where = f"{self._options.host}:{self._options.port}"
            raise EngineError(
                f"HTTP cannot listen on {where}: {error}. Choose another --host or --port."
            ) from error
        listener.listen(_BACKLOG)
        return listener

    def _stop(self, number: int, frame: object) -> None:
        """A first signal ends the workers; a second one their wait for others to turn away."""
        for worker in self._workers if self._stopping else ():
            if worker.process is not None and worker.process.stdin is not None:
                worker.process.stdin.close()
        self._stopping = True

    def _look_after(self, worker: _Worker, listener: socket.socket) -> None:
        now = time.monotonic()
        if worker.process is not None:
            code = worker.process.poll()
            if code is None and worker.count_silence(now) > _SILENT_S:
                _LOG.error("worker %d hangs and is killed", worker.number)
                worker.process.kill()
                worker.seen = now  # its death may take long where a driver has hold of it
            if code is None:
                return
            _LOG.error("worker %d died with %d; another takes its place", worker.number, code)
            worker.note_death(now, code)
        if now - worker.died < worker.wait_s:
            return
        worker.started = now
        try:
            worker.process = self._start(worker, listener)
        except OSError as error:  # no memory for one more process, say; the others go on
            _LOG.error("worker %d cannot be started: %s", worker.number, error)
            worker.note_failure(now)

    def _check_refusals(self) -> None:
        """Whoever connects would wait without end while nobody can serve.

        Raises:
            BundleError: no worker runs that took requests, and none will.
        """
        if not self._stopping and all(each.refusals >= _REFUSALS for each in self._workers):
            raise BundleError(
                "No worker is left and none can start: the bundles are not those that were there "
                "when the server started, see above. Start it anew, to serve what is there now."
            )

    def _start(self, worker: _Worker, listener: socket.socket) -> "subprocess.Popen[bytes]":
        options = replace(self._options, control=str(worker.socket))
        plan = {
            "bundles": self._bundles,
            "options": asdict(options),
            "socket": listener.fileno(),
            "deaths": worker.deaths,
        }
        code = "from deploy.serving.supervisor import run_worker; run_worker()"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[listener.fileno()]
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead already, which is seen next time
            process.stdin.write(json.dumps(plan).encode() + b"\n")
            process.stdin.flush()  # and stays open: its end tells the worker that nobody is left
        return process

    def _end(self) -> None:
        """Let every worker drain; kill what does not end."""
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        end = time.monotonic() + self._options.drain + self._options.stop_timeout + _PATIENCE_S
        for process in running:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                _LOG.error("a worker did not end in time and is killed")
                process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE_S)


def run_worker() -> None:
    """The process of a worker: its plan comes as a line of JSON on stdin."""
    from deploy.serving.lifecycle import WorkerPlace, serve_here

    plan = json.loads(sys.stdin.buffer.readline())
    given = plan["options"]
    options = ServeOptions(**{**given, "trust": tuple(given["trust"])})
    bundles = [FoundBundle(**{**each, "path": Path(each["path"])}) for each in plan["bundles"]]
    with socket.socket(fileno=plan["socket"]) as listener:
        place = WorkerPlace(listener, plan["deaths"])
        try:
            serve_here(bundles, options, place)
        except DeployError as error:
            _LOG.error("a worker cannot serve: %s", error)
            os._exit(REFUSED if isinstance(error, BundleError) else error.exit_code)
    os._exit(0)  # engines of vendors may hold threads that never end
