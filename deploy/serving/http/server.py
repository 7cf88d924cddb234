"""uvicorn's server, as this one uses it."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn

from deploy.serving.http.connections import LimitedProtocol, limit_connections
from deploy.serving.http.endings import ConnectionLimits
from deploy.serving.http.rest import RestApplication
from deploy.serving.metrics import ServerStatistics
from deploy.serving.options import ServeOptions
from export.errors import ConfigError, EngineError

_TICK_S = 0.02
_BACKLOG = 1024


class HttpServer(uvicorn.Server):
    """uvicorn's server, which leaves signals to the lifecycle."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; what goes the direct way, where it knows no task to cancel, ends too."""
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            if isinstance(connection, LimitedProtocol) and connection.withdraw is not None:
                connection.withdraw()


def make_server(
    application: Any, port: int, options: ServeOptions, statistics: ServerStatistics
) -> HttpServer:
    """A server of `application` that keeps to the limits of `options`; it does not listen yet.

    Raises:
        ConfigError: a TLS file cannot be used.
    """
    limits = ConnectionLimits(options.receive_timeout, options.max_connections)
    direct = application.direct if isinstance(application, RestApplication) else None
    config = uvicorn.Config(
        application,
        host=options.host,
        port=port,
        http=limit_connections(limits, statistics, direct),
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
    return HttpServer(config)


async def start_server(server: HttpServer, listener: socket.socket | None) -> "asyncio.Task[None]":
    """Run `server` and return once it listens.

    Raises:
        EngineError: its port is taken.
    """
    task = asyncio.ensure_future(_serve_quietly(server, listener))
    while not server.started:
        if task.done():
            where = f"{server.config.host}:{server.config.port}"
            raise EngineError(f"HTTP cannot listen on {where}. Choose another --host or --port.")
        await asyncio.sleep(_TICK_S)
    return task


async def _serve_quietly(server: HttpServer, listener: socket.socket | None) -> None:
    with contextlib.suppress(SystemExit):  # uvicorn's way to say that it cannot listen
        await server.serve(None if listener is None else [listener])


def port_of(server: HttpServer) -> int:
    """The port that it listens on."""
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port
