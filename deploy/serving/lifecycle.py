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
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from deploy.serving.connections import ConnectionLimits, limit_connections
from deploy.serving.control import Controller
from deploy.serving.grpc_service import GrpcService, start_grpc
from deploy.serving.logs import log_to_stderr
from deploy.serving.metrics import ServerStatistics
from deploy.serving.model import ServedModel
from deploy.serving.options import ServeOptions
from deploy.serving.repository import ModelRepository, make_models
from deploy.serving.rest import RestApplication, make_metrics_application
from deploy.serving.supervisor import Supervisor
from export.errors import ConfigError, EngineError

_LOG = logging.getLogger("deploy.serving")
_TICK_S = 0.02
_BACKLOG = 1024


def serve(paths: Sequence[Path], options: ServeOptions) -> None:
    """Serve the bundles at `paths` until SIGTERM or SIGINT.

    Raises:
        BundleError, ConfigError: before anything listens.
        EngineError: a port is taken.
    """
    if options.workers > 1:
        make_models(paths, options)  # what is wrong with them is said once, here
        Supervisor(paths, options).run()
    else:
        serve_here(paths, options)


def serve_here(
    paths: Sequence[Path], options: ServeOptions, listener: socket.socket | None = None
) -> None:
    """Serve in this process; `listener` is the HTTP socket of a supervisor."""
    log_to_stderr(options.log_level)
    models = make_models(paths, options)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(Lifecycle(models, options, listener).run())


def check(paths: Sequence[Path], options: ServeOptions) -> list[str]:
    """Open and verify what `serve` would, and stop; one line a model.

    Raises:
        DeployError: why it would not be ready.
    """
    lines = []
    for model in make_models(paths, options):
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
        listener: to take HTTP connections from; None: `options` say where.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        options: ServeOptions,
        listener: socket.socket | None = None,
    ) -> None:
        self._listener = listener
        self.repository = ModelRepository()
        self.statistics = ServerStatistics()
        self._options = options
        self._stop = asyncio.Event()
        for model in models:
            self.repository.add(model)

    async def run(self) -> None:
        """Serve until a signal, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        if self._listener is not None:  # a supervisor holds the other end of stdin
            loop.add_reader(sys.stdin.fileno(), self._stop_alone)
            await self._load()  # others answer meanwhile, and this one would refuse
        listening = await self._listen()
        loading = None if self._listener is not None else asyncio.ensure_future(self._load())
        await self._stop.wait()
        await self._drain()
        if loading is not None:
            loading.cancel()
        await self._close(listening)
        for model in self.repository.models():
            await model.unload()
        _LOG.info("stopped")

    async def _listen(self) -> "_Listening":
        """Open every port and socket.

        Raises:
            ConfigError, EngineError: one cannot be.
        """
        options = self._options
        application = RestApplication(self.repository, options, self.statistics)
        main = self._make_server(application, options.port)
        servers = [main]
        tasks = [await _start(main, self._listener)]
        if options.metrics_port:
            alone = make_metrics_application(self.repository, self.statistics)
            servers.append(self._make_server(alone, options.metrics_port))
            tasks.append(await _start(servers[-1], None))
        grpc_server, grpc_port = None, 0
        if options.grpc_port:
            service = GrpcService(self.repository, options, self.statistics)
            grpc_server, grpc_port = await start_grpc(service, options)
        controller = Controller(self.repository, options, self.statistics)
        control = await controller.start(Path(options.control)) if options.control else None
        ports = {"http_port": _port_of(main), "grpc_port": grpc_port}
        _LOG.info("listening on %s", options.host, extra=ports)
        return _Listening(servers, tasks, grpc_server, control)

    async def _close(self, listening: "_Listening") -> None:
        """Accept nothing more, and answer what was accepted."""
        if listening.control is not None:
            listening.control.close()
            Path(self._options.control).unlink(missing_ok=True)
        for server in listening.servers:
            server.should_exit = True
        if listening.grpc_server is not None:
            await listening.grpc_server.stop(self._options.stop_timeout)
        await asyncio.gather(*listening.tasks, return_exceptions=True)

    def _stop_alone(self) -> None:
        """The supervisor is gone, whatever became of it."""
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        self._stop.set()

    async def _load(self) -> None:
        for model in self.repository.models():
            await model.load()
        if self.repository.ready:
            self.statistics.ready_after_s = round(_process_age_s(), 3)
            _LOG.info("ready", extra={"seconds": self.statistics.ready_after_s})
        else:
            _LOG.error("not ready, and will not be: see above; live until it is stopped")

    async def _drain(self) -> None:
        self.repository.draining = True
        _LOG.info("draining: not ready any more, requests are taken for %g s", self._options.drain)
        self._stop.clear()
        with contextlib.suppress(TimeoutError):  # a second signal ends the wait
            await asyncio.wait_for(self._stop.wait(), self._options.drain)

    def _make_server(self, application: Any, port: int) -> "_Server":
        options = self._options
        limits = ConnectionLimits(options.receive_timeout, options.max_connections)
        direct = application.direct if isinstance(application, RestApplication) else None
        config = uvicorn.Config(
            application,
            host=options.host,
            port=port,
            http=limit_connections(limits, self.statistics, direct),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=options.keep_alive,  # type: ignore[arg-type]
            timeout_graceful_shutdown=max(1, round(options.stop_timeout)),
            ssl_certfile=options.tls_cert or None,
            ssl_keyfile=options.tls_key or None,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"The TLS files cannot be used: {error}.") from error
        return _Server(config)


@dataclass(frozen=True)
class _Listening:
    """All that takes requests: HTTP servers with the tasks they run in, gRPC, `deploy ctl`."""

    servers: "list[_Server]"
    tasks: "list[asyncio.Task[None]]"
    grpc_server: Any
    control: asyncio.AbstractServer | None


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to the lifecycle."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _start(server: _Server, listener: socket.socket | None) -> "asyncio.Task[None]":
    """Run `server` and return once it listens.

    Raises:
        EngineError: its port is taken.
    """
    task = asyncio.ensure_future(_serve_quietly(server, listener))
    while not server.started:
        if task.done():
            where = f"{server.config.host}:{server.config.port}"
            raise EngineError(f"HTTP cannot listen on {where}. Choose another --port.")
        await asyncio.sleep(_TICK_S)
    return task


async def _serve_quietly(server: _Server, listener: socket.socket | None) -> None:
    with contextlib.suppress(SystemExit):  # uvicorn's way to say that it cannot listen
        await server.serve(None if listener is None else [listener])


def _port_of(server: _Server) -> int:
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port


def _process_age_s() -> float:
    """Seconds since this process was started, where the system says; else since this import."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, ValueError, AttributeError):
        return time.monotonic() - _IMPORTED


_IMPORTED = time.monotonic()
