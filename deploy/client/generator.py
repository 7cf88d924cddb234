"""Makes requests when they are due, whatever became of the earlier ones, and notes the times.

A latency is the time from when a request was to be made to the end of its answer. A generator that
waits for answers before it makes the next request leaves out just the requests that would have met
a stalled server, and reports a p99 that no caller sees (coordinated omission; Tene 2015). Here the
schedule is drawn beforehand. Where no connection is free the request waits, and its time runs.

A closed loop has no schedule: every caller makes its next request when it has its answer. That
measures what a server can do, not what callers see who come when they like.

One thread, an event loop, requests that are made of bytes beforehand. The loop waits with
``select``, since ``epoll`` rounds its time-outs up to milliseconds.
"""

import asyncio
import gc
import selectors
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.client.arrivals import draw_arrivals
from deploy.client.connection import CLOSED, REFUSED, TIMEOUT, Connection
from deploy.client.settings import LoadSettings
from deploy.client.wire import Address
from deploy.engines.base import Array
from deploy.measuring.bootstrap import Floats

_LEAD_S = 0.05
_SWEEP_S = 0.1
_OPENED_BEFORE = 8


@dataclass
class Trace:
    """Every request: times in seconds from the start, and its status of HTTP or a failure.

    Attributes:
        intended: when it was to be made.
        begun: when the generator came to it.
        ended: when its answer was whole, or it was given up.
        outcomes: a status, or one of `deploy.client.connection.FAILURES`.
    """

    intended: list[float] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    outcomes: list[int] = field(default_factory=list)

    @property
    def latencies(self) -> Floats:
        """Seconds from the intended start, of the requests that were answered with 200."""
        waits: Floats = np.array(self.ended) - np.array(self.intended)
        return waits[self.answered]

    @property
    def answered(self) -> Array:
        """Which requests were answered with 200, as booleans."""
        return np.equal(self.outcomes, 200)

    @property
    def lateness(self) -> Floats:
        """Seconds that the generator itself was late with each request."""
        lateness: Floats = np.array(self.begun) - np.array(self.intended)
        return lateness


def drive(address: Address, request: bytes, settings: LoadSettings) -> Trace:
    """Drive a server with one request over and over, until all are answered or given up.

    Nothing else should run in this process meanwhile: what holds the interpreter, such as a bar of
    progress that is drawn, is in the latencies. The garbage collector rests.
    """
    generator = _Generator(address, request, settings)
    collects = gc.isenabled()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=_make_loop) as runner:
            runner.run(generator.run())
    finally:
        if collects:
            gc.enable()
    return generator.trace


def _make_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class _Generator:
    """The state of one run."""

    def __init__(self, address: Address, request: bytes, settings: LoadSettings) -> None:
        self._address, self._request, self._settings = address, request, settings
        self.trace = Trace()
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._waiting: deque[int] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._all_made = False
        self._next: Callable[[], None] = lambda: None

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._loop.set_exception_handler(self._stop)
        settings = self._settings
        arrivals = self._draw_schedule()
        least = settings.callers if settings.rate is None else _OPENED_BEFORE
        for _ in range(min(least, settings.connections)):
            self._open()
        await asyncio.gather(*self._opening)
        self._start = self._loop.time() + _LEAD_S
        self._loop.call_later(_SWEEP_S, self._sweep)
        if settings.rate is None:
            self._loop.call_at(self._start, self._begin_callers)
        else:
            self._begin_schedule(arrivals)
        try:
            await self._done
        finally:
            for task in self._opening:
                task.cancel()
            for connection in list(self._connections):
                connection.fail(CLOSED)

    def _draw_schedule(self) -> list[float]:
        settings = self._settings
        if settings.rate is None:
            return []
        seconds, seed = settings.seconds, settings.seed
        arrivals = draw_arrivals(settings.arrivals, settings.rate, seconds, seed=seed)
        return [float(arrival) for arrival in arrivals]

    def _begin_schedule(self, arrivals: list[float]) -> None:
        """The open loop: fire what is due, sleep until the next."""
        if not arrivals:
            self._done.set_result(None)
            return
        position = 0

        def fire() -> None:
            nonlocal position
            now = self._now()
            while position < len(arrivals) and arrivals[position] <= now:
                self._all_made = position == len(arrivals) - 1
                self._make(arrivals[position])
                position += 1
            if position < len(arrivals):
                self._loop.call_at(self._start + arrivals[position], fire)

        self._loop.call_at(self._start + arrivals[0], fire)

    def _begin_callers(self) -> None:
        """The closed loop: whoever has an answer makes the next request, until the time is up."""

        def make_next() -> None:
            now = self._now()
            if now < self._settings.seconds:
                self._make(now)

        self._next = make_next
        self._all_made = True  # of what is not made by an answer
        for _ in range(self._settings.callers):
            make_next()

    def _make(self, intended: float) -> None:
        index = len(self.trace.intended)
        self.trace.intended.append(intended)
        self.trace.begun.append(self._now())
        self.trace.ended.append(0.0)
        self.trace.outcomes.append(0)
        self._under_way += 1
        self._dispatch(index)

    def _dispatch(self, index: int) -> None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                connection.send(self._request, index)
                return
            self._connections.discard(connection)  # the server closed it meanwhile
        self._waiting.append(index)
        self._open_more()

    def _open_more(self) -> None:
        """Open connections for those that wait, as far as that is allowed."""
        room = self._settings.connections - len(self._connections) - len(self._opening)
        for _ in range(min(room, len(self._waiting) - len(self._opening))):
            self._open()

    def _open(self) -> None:
        task = self._loop.create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        where = self._address
        try:
            _, connection = await self._loop.create_connection(
                lambda: Connection(self._finished), where.host, where.port, ssl=where.tls or None
            )
        except OSError:
            if self._waiting:
                self._record(self._waiting.popleft(), REFUSED)
            return
        self._connections.add(connection)
        self._give_work(connection)

    def _give_work(self, connection: Connection) -> None:
        if not connection.usable:
            self._connections.discard(connection)
            if self._waiting:
                self._loop.call_soon(self._open_more)
        elif self._waiting:
            connection.send(self._request, self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _finished(self, connection: Connection, index: int, outcome: int) -> None:
        if outcome == CLOSED and connection.reused:
            # an idle connection that the server closed just now is no fault of it; every try ends
            # one, so a fresh one comes at last
            self._waiting.appendleft(index)
            self._give_work(connection)
            return
        ended = self._now()
        self._give_work(connection)  # first, so that a caller's next request finds it idle
        self._record(index, outcome, ended)

    def _record(self, index: int, outcome: int, ended: float | None = None) -> None:
        self.trace.ended[index] = self._now() if ended is None else ended
        self.trace.outcomes[index] = outcome
        self._under_way -= 1
        self._next()
        if self._all_made and not self._under_way and not self._done.done():
            self._done.set_result(None)

    def _sweep(self) -> None:
        """Give up what takes too long."""
        late = self._now() - self._settings.timeout
        while self._waiting and self.trace.intended[self._waiting[0]] < late:
            self._record(self._waiting.popleft(), TIMEOUT)
        for connection in list(self._connections):
            if connection.index is not None and self.trace.intended[connection.index] < late:
                connection.fail(TIMEOUT)
        if not self._done.done():
            self._loop.call_later(_SWEEP_S, self._sweep)

    def _stop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A fault in a callback ends the run; asyncio by itself would log it and wait for ever."""
        if not self._done.done():
            self._done.set_exception(context.get("exception") or RuntimeError(context["message"]))

    def _now(self) -> float:
        return self._loop.time() - self._start
