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
    """uvicorn's server, which leaves signals to the lifecycle.

    Args:
        config: of uvicorn.
        handshake_s: seconds that a handshake of TLS may take.
    """

    def __init__(self, config: uvicorn.Config, handshake_s: float) -> None:
        super().__init__(config)
        self._handshake_s = handshake_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn's does, but for the handshake, which there has a minute."""
        await self.lifespan.startup()
        config = self.config
        given: dict[str, Any] = {"host": config.host, "port": config.port}
        if sockets is not None:
            given = {"sock": sockets[0]}
        if config.ssl is not None:
            given |= {"ssl": config.ssl, "ssl_handshake_timeout": self._handshake_s}
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(self._make_protocol, backlog=_BACKLOG, **given)
        except OSError:  # of `start_server`, which says so
            self.should_exit = True
            return
        self.servers = [server]
        self.started = True

    def _make_protocol(self) -> asyncio.Protocol:
        config, state = self.config, self.lifespan.state
        make: Any = config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=config, server_state=self.server_state, app_state=state
        )
        return protocol

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
    return HttpServer(config, options.receive_timeout)


async def start_server(server: HttpServer, listener: socket.socket | None) -> "asyncio.Task[None]":
    """Run `server` and return once it listens.

    Raises:
        EngineError: its port is taken.
    """
    task = asyncio.ensure_future(server.serve(None if listener is None else [listener]))
    while not server.started:
        if task.done():
            where = f"{server.config.host}:{server.config.port}"
            raise EngineError(f"HTTP cannot listen on {where}. Choose another --host or --port.")
        await asyncio.sleep(_TICK_S)
    return task


def port_of(server: HttpServer) -> int:
    """The port that it listens on."""
    port: int = server.servers[0].sockets[0].getsockname()[1]
    return port
