"""A server from start to end: listen, verify, be ready, drain, stop.

It is live from the moment it listens and ready when every model has repeated its recorded answers.
On SIGTERM and SIGINT ready turns 503 first, while requests are still taken for `drain` seconds, so
that whoever sends them can turn elsewhere; then nothing more is accepted, and what was is answered.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from deploy.serving.certificates import Certificate
from deploy.serving.control import Controller
from deploy.serving.grpc.server import start_grpc
from deploy.serving.grpc.service import GrpcService
from deploy.serving.http.rest import RestApplication, make_metrics_application
from deploy.serving.http.server import HttpServer, make_server, port_of, start_server
from deploy.serving.logs import log_to_stderr
from deploy.serving.metrics import ServerStatistics
from deploy.serving.models.finding import FoundBundle, find_bundles, make_models, pin_bundles
from deploy.serving.models.model import ServedModel
from deploy.serving.models.repository import ModelRepository
from deploy.serving.open_files import allow_open_files
from deploy.serving.options import ServeOptions
from deploy.serving.pauses import settle, shorten_turns
from deploy.serving.peers import is_any_ready
from deploy.serving.prerequisites import check_prerequisites
from deploy.serving.process_age import process_age_s
from deploy.serving.supervisor import GAVE_WAY, Supervisor
from deploy.serving.tracing.spans import open_sender
from deploy.serving.tracing.traced import TracedApplication
from export.errors import DeployError

_LOG = logging.getLogger("deploy.serving")
_BEAT_S = 1.0
_GIVES_WAY = "not ready, while other workers are: ends, to be started anew"
_LEAST_S = 2.0
"""Seconds that engines have to return in any case, once connections have ended."""


def serve(paths: Sequence[Path], options: ServeOptions) -> None:
    """Serve the bundles at `paths` until SIGTERM or SIGINT.

    Raises:
        BundleError, ConfigError: before anything listens.
        EngineError: a port is taken.
    """
    check_prerequisites(options)
    if options.workers > 1:  # what is wrong with them is said once, here
        Supervisor(pin_bundles(make_models(find_bundles(paths), options)), options).run()
    else:
        serve_here(find_bundles(paths), options)


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker stands among those of a supervisor.

    Attributes:
        listener: the HTTP socket of all of them.
        deaths: of processes that were in its place before.
    """

    listener: socket.socket
    deaths: int = 0


def serve_here(
    bundles: Sequence[FoundBundle], options: ServeOptions, place: WorkerPlace | None = None
) -> None:
    """Serve in this process; with `place` under a supervisor."""
    log_to_stderr(options.log_level)
    allow_open_files(options.max_connections)
    models = make_models(bundles, options)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(Lifecycle(models, options, place).run())
        if code is not None:
            os._exit(code)  # Python would wait for the thread that does not come back


def check(paths: Sequence[Path], options: ServeOptions) -> list[str]:
    """Open and verify what `serve` would, and stop; one line a model.

    Raises:
        DeployError: why it would not be ready.
    """
    lines = []
    check_prerequisites(options)
    for model in make_models(find_bundles(paths), options):
        asyncio.run(_check_model(model))
        opened = model.opened
        assert opened is not None
        degraded = f", degraded: {opened.degraded}" if opened.degraded else ""
        notes = "".join(f"; {note}" for note in opened.notes)
        lines.append(f"{model.name} version {model.version}: {opened.name}{degraded}{notes}")
    return lines


async def _check_model(model: ServedModel) -> None:
    await model.load()
    await model.unload()
    if model.failure is not None:
        raise model.failure


class Lifecycle:
    """One server process.

    Args:
        models: that it is to serve; none is loaded yet.
        options: of the server.
        place: under a supervisor; None: there is none, and `options` say where to listen.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        options: ServeOptions,
        place: WorkerPlace | None = None,
    ) -> None:
        self._listener = place.listener if place is not None else None
        self.repository = ModelRepository()
        self.statistics = ServerStatistics(deaths=place.deaths if place is not None else None)
        self._options = options
        self._stop = asyncio.Event()
        self._gives_way = False
        self._sender = open_sender(options.traces, os.environ)
        for model in models:
            self.repository.add(model)

    async def run(self) -> int | None:
        """Serve until a signal, then drain.

        Returns:
            None where all has ended; else with which exit code the process is to end at once, since
            an engine is still being opened or does not return.
        """
        shorten_turns()
        giving_way: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._heed_signal)
        if self._listener is not None:  # a supervisor holds the other end of stdin
            loop.add_reader(sys.stdin.fileno(), self._stop_alone)
            loading = asyncio.ensure_future(self._load())
            await self._wait_for(loading)  # others answer meanwhile, and this one would refuse
            if not loading.done():
                return 0
            control = Path(self._options.control)
            if not self.repository.ready and await is_any_ready(control):
                _LOG.error(_GIVES_WAY)
                return GAVE_WAY
            listening = await self._listen()
            beating = asyncio.ensure_future(self._show_life(control))
            if not self.repository.ready:
                giving_way = asyncio.ensure_future(self._give_way(control))
        else:
            listening = await self._listen()
            loading = asyncio.ensure_future(self._load())
            beating = None
        await self._stop.wait()
        if not self._gives_way:  # else there is nobody who has to turn elsewhere
            await self._drain()
        opened = loading.done()
        loading.cancel()
        returned = await self._end(listening)
        for task in (beating, giving_way):
            if task is not None:
                task.cancel()
        if self._sender is not None:
            await asyncio.to_thread(self._sender.stop)
        _LOG.info("stopped")
        if self._gives_way:
            return GAVE_WAY
        if not returned:
            return 1
        return None if opened and not listening.controller.busy else 0

    async def _listen(self) -> "_Listening":
        """Open every port and socket.

        Raises:
            ConfigError, EngineError: one cannot be.
        """
        options = self._options
        application: Any = RestApplication(self.repository, options, self.statistics)
        if self._sender is not None:
            self._sender.start()
            self.statistics.spans = self._sender.counts
            # which has no direct way around it, as nothing is noted there
            application = TracedApplication(application, self.repository, self._sender)
        certificate = Certificate(options.tls_cert, options.tls_key) if options.tls_cert else None
        grpc_server, grpc_port = None, 0
        if options.grpc_port:  # before HTTP, by which one is asked whether this is ready
            service = GrpcService(self.repository, options, self.statistics, self._sender)
            grpc_server, grpc_port = await start_grpc(service, options, certificate)
        controller = Controller(self.repository, options, self.statistics)
        try:
            main = make_server(application, options.port, options, self.statistics)
            servers = [main]
            tasks = [await start_server(main, self._listener)]
            if options.metrics_port:
                alone = make_metrics_application(self.repository, self.statistics)
                servers.append(make_server(alone, options.metrics_port, options, self.statistics))
                tasks.append(await start_server(servers[-1], None))
            control = await controller.start(Path(options.control)) if options.control else None
        except DeployError:
            if grpc_server is not None:  # it may not outlive its event loop
                await grpc_server.stop(None)
            raise
        ports = {"http_port": port_of(main), "grpc_port": grpc_port}
        _LOG.info("listening on %s", options.host, extra=ports)
        watching = None
        if certificate is not None:
            contexts = [server.config.ssl for server in servers if server.config.ssl is not None]
            watching = asyncio.ensure_future(certificate.watch(contexts))
        return _Listening(servers, tasks, grpc_server, controller, control, watching)

    async def _wait_for(self, loading: "asyncio.Task[None]") -> None:
        """Return when the models are loaded, or at a signal."""
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({loading, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()

    async def _show_life(self, control: Path) -> None:
        """Tell the supervisor again and again that events are handled and engines return."""
        while True:
            if not any(model.stalled for model in self.repository.models()):
                with contextlib.suppress(FileNotFoundError):
                    os.utime(control)
            await asyncio.sleep(_BEAT_S)

    async def _give_way(self, control: Path) -> None:
        """End this worker, whose models are not all ready, as soon as those of another are.

        Until then it says so to whoever asks, since else nobody would.
        """
        while not await is_any_ready(control):
            await asyncio.sleep(_BEAT_S)
        if not self._stop.is_set():
            _LOG.error(_GIVES_WAY)
            self._gives_way = True
            self._stop.set()

    async def _end(self, listening: "_Listening") -> bool:
        """Answer what was accepted, and let go of everything; whether every engine returned."""
        end = time.monotonic() + self._options.stop_timeout
        await self._close(listening)
        returned = [
            await model.unload(max(_LEAST_S, end - time.monotonic()))
            for model in self.repository.models()
        ]
        return all(returned) and not self.repository.leaving

    async def _close(self, listening: "_Listening") -> None:
        """Accept nothing more, and answer what was accepted."""
        if listening.watching is not None:
            listening.watching.cancel()
        if listening.control is not None:
            listening.control.close()
            Path(self._options.control).unlink(missing_ok=True)
        for server in listening.servers:
            server.should_exit = True
        if listening.grpc_server is not None:
            await listening.grpc_server.stop(self._options.stop_timeout)
        await asyncio.gather(*listening.tasks, return_exceptions=True)

    def _heed_signal(self) -> None:
        """Begin to end, or end the wait for others to turn away.

        A worker leaves the latter to its supervisor. Where all processes of a service are signalled
        at once, as by systemd and from a terminal, it gets one signal of theirs and one of its own.
        """
        if self._listener is None or not self.repository.draining:
            self._stop.set()

    def _stop_alone(self) -> None:
        """The supervisor is gone, whatever became of it, or waits for nothing any more."""
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        self._stop.set()

    async def _load(self) -> None:
        for model in self.repository.models():
            if model.state == "LOADING":  # else it was unloaded before its turn came
                await model.load()
        settle()
        if self.repository.ready:
            self.statistics.ready_after_s = round(process_age_s(), 3)
            _LOG.info("ready", extra={"seconds": self.statistics.ready_after_s})
        else:
            _LOG.error("not ready, and will not be: see above; live until it is stopped")

    async def _drain(self) -> None:
        self.repository.draining = True
        _LOG.info("draining: not ready any more, requests are taken for %g s", self._options.drain)
        self._stop.clear()
        with contextlib.suppress(TimeoutError):  # a second signal ends the wait
            await asyncio.wait_for(self._stop.wait(), self._options.drain)


@dataclass(frozen=True)
class _Listening:
    """All that takes requests: HTTP servers with the tasks they run in, gRPC, `deploy ctl`.

    Attributes:
        watching: over the files of TLS.
    """

    servers: list[HttpServer]
    tasks: "list[asyncio.Task[None]]"
    grpc_server: Any
    controller: Controller
    control: asyncio.AbstractServer | None
    watching: "asyncio.Task[None] | None"
