"""A server without sockets: what a connection brings, read by read, and all that is answered."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from servers import WAIT_S
from uvicorn.server import ServerState

from deploy.serving.http.connections import ConnectionLimits, LimitedProtocol, limit_connections
from deploy.serving.http.heads import HeadMemory
from deploy.serving.http.intake import Intake
from deploy.serving.http.rest import RestApplication
from deploy.serving.metrics import ServerStatistics
from deploy.serving.models.finding import find_bundles, make_models
from deploy.serving.models.repository import ModelRepository
from deploy.serving.options import ServeOptions

_TURNS = 60
"""Turns of the loop; an answer on the ordinary way takes about ten."""


class Wire(asyncio.Transport):
    """What is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False
        self.protocol: Any = None

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def bring(self, data: bytes) -> None:
        """Hand one read of the socket to whoever reads, in pieces where the buffer is smaller."""
        while data and not self.closed:
            if not isinstance(self.protocol, Intake):
                self.protocol.data_received(data)
                return
            buffer = self.protocol.get_buffer(len(data))
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self.protocol.buffer_updated(size)
            data = data[size:]


@dataclass
class Service:
    """One model behind connections that are made by `connect`."""

    loop: asyncio.AbstractEventLoop
    config: uvicorn.Config
    repository: ModelRepository

    def connect(self) -> tuple[LimitedProtocol, Wire]:
        """A connection, and what is written to it."""
        make: Any = self.config.http_protocol_class
        protocol = make(config=self.config, server_state=ServerState(), app_state={})
        wire = Wire()
        wire.protocol = protocol
        protocol.connection_made(wire)
        return protocol, wire

    def answer(self, reads: list[bytes], memory: HeadMemory) -> tuple[bytes, bool]:
        """All that is answered to one connection, and whether it was closed."""
        return self.loop.run_until_complete(self._answer(reads, memory))

    def count_answers(self, data: bytes, least: int) -> list[int]:
        """Answers given while one read is taken in, and then in each turn of the loop.

        Counted until there are `least` of them: how many turns those take is the machine's affair.
        """
        return self.loop.run_until_complete(self._count_answers(data, least))

    async def _answer(self, reads: list[bytes], memory: HeadMemory) -> tuple[bytes, bool]:
        protocol, wire = self.connect()
        protocol._heads = memory
        for data in reads:
            if wire.closed:
                break
            wire.bring(data)
            await self._settle(wire)
        closed = wire.closed
        protocol.connection_lost(None)
        return wire.written, closed

    async def _count_answers(self, data: bytes, least: int) -> list[int]:
        protocol, wire = self.connect()
        protocol.data_received(data)
        totals = [0, wire.written.count(b"HTTP/1.1 ")]
        async with asyncio.timeout(WAIT_S):
            while totals[-1] < least:
                await asyncio.sleep(0)
                totals.append(wire.written.count(b"HTTP/1.1 "))
        protocol.connection_lost(None)
        await self._settle(wire)
        return [later - sooner for sooner, later in itertools.pairwise(totals)]

    async def _settle(self, wire: Wire) -> None:
        """Until no request runs and nothing more is written for many turns of the loop."""
        (model,) = self.repository.models() or [None]
        quiet, seen = 0, -1
        while quiet < _TURNS:
            await asyncio.sleep(0)
            busy = model is not None and model.pending > 0
            quiet = 0 if busy or len(wire.written) != seen else quiet + 1
            seen = len(wire.written)


@contextlib.contextmanager
def serving_without_sockets(bundle: Path) -> Iterator[Service]:
    """The model of `bundle`, ready, on a loop of its own."""
    loop = uvloop.new_event_loop()
    options = ServeOptions(threads=1, max_body_mb=1)
    statistics, repository = ServerStatistics(), ModelRepository()
    (model,) = make_models(find_bundles([bundle]), options)
    repository.add(model)
    assert loop.run_until_complete(model.load())
    application = RestApplication(repository, options, statistics)
    limits = ConnectionLimits(30.0, 1000)
    protocol: Any = limit_connections(limits, statistics, application.direct)
    config = uvicorn.Config(application, http=protocol, lifespan="off", log_config=None)
    config.load()
    try:
        yield Service(loop, config, repository)
    finally:
        loop.run_until_complete(model.unload())
        loop.close()
