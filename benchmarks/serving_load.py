"""Drives a server over kept connections, closed loop or on a schedule, and simulates a queue.

Blocking sockets and a thread for each connection; the bytes of a request are made once, and of an
answer only status and length are looked at, after the first, which is compared whole.
"""

import http.client
import itertools
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

Floats = np.ndarray[Any, np.dtype[np.float64]]
TIMEOUT_S = 60.0
WORKERS = 64
"""Connections of an open loop; a request that finds all of them busy is late, and that counts."""


@dataclass(frozen=True)
class Trace:
    """What became of a load.

    Attributes:
        latencies: seconds from when each request was to be made to the end of its answer.
        seconds: from the first to the last.
        cpu: seconds of the server's whole process tree, user and system.
    """

    latencies: Floats
    seconds: float
    cpu: float

    @property
    def cpu_ms(self) -> float:
        """CPU time of the server for one request."""
        return 1e3 * self.cpu / len(self.latencies)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Of the latencies."""
        return 1e3 * float(np.percentile(self.latencies, percent))


class Caller:
    """One connection; one request at a time."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._connect()

    def call(self) -> bytes:
        """The body that is answered.

        Raises:
            RuntimeError: it is no answer with status 200 and a length.
        """
        if self._was_closed():  # as servers do with connections that were idle for long
            self._socket.close()
            self._connect()
        self._socket.sendall(self._request)
        data = bytearray()
        begin, size = 0, -1
        while size < 0 or len(data) < size:
            chunk = self._socket.recv(1 << 20)
            if not chunk:
                raise RuntimeError(f"the connection ended after {bytes(data[:300])!r}")
            data += chunk
            if size < 0 and (end := data.find(b"\r\n\r\n")) >= 0:
                begin = end + 4
                length = _read_length(bytes(data[: end + 2]))
                if length is None:
                    return self._read_chunks(data[begin:])
                size = begin + length
        return bytes(data[begin:])

    def _connect(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _was_closed(self) -> bool:
        """Whether the other side ended the connection while nothing was asked of it."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def _read_chunks(self, data: bytearray) -> bytes:
        """The rest of a chunked answer."""
        while not data.endswith(b"0\r\n\r\n"):
            chunk = self._socket.recv(1 << 20)
            if not chunk:
                raise RuntimeError("the connection ended within an answer")
            data += chunk
        parts, position = [], 0
        while (end := data.index(b"\r\n", position)) and (size := int(data[position:end], 16)):
            parts.append(data[end + 2 : end + 2 + size])
            position = end + 4 + size
        return b"".join(parts)

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def run_closed(
    process: psutil.Process, port: int, request: bytes, *, callers: int, seconds: float
) -> Trace:
    """Every caller makes its next request when it has its answer, for so many seconds."""
    with _open(port, request, callers) as opened:
        for caller in opened:
            caller.call()
        end = time.perf_counter() + seconds

        def work(caller: Caller) -> list[float]:
            times = []
            while (begun := time.perf_counter()) < end:
                caller.call()
                times.append(time.perf_counter() - begun)
            return times

        return _watch(process, [lambda caller=caller: work(caller) for caller in opened])


def run_calls(process: psutil.Process, call: Callable[[], object], *, seconds: float) -> Trace:
    """`call` again and again for so many seconds."""
    end = time.perf_counter() + seconds

    def work() -> list[float]:
        times = []
        while (begun := time.perf_counter()) < end:
            call()
            times.append(time.perf_counter() - begun)
        return times

    return _watch(process, [work])


def run_schedule(process: psutil.Process, port: int, request: bytes, arrivals: Floats) -> Trace:
    """Requests are made at `arrivals`, seconds from the start, whatever became of earlier ones.

    Latencies are counted from when a request was to be made, in the order of `arrivals`.
    """
    latencies = np.zeros(len(arrivals))
    with _open(port, request, WORKERS) as opened:
        for caller in opened[:4]:
            caller.call()
        numbers = itertools.count()
        start = time.perf_counter() + 0.2

        def work(caller: Caller) -> list[float]:
            while (index := next(numbers)) < len(arrivals):
                due = start + arrivals[index]
                time.sleep(max(0.0, due - time.perf_counter()))
                caller.call()
                latencies[index] = time.perf_counter() - due
            return []

        trace = _watch(process, [lambda caller=caller: work(caller) for caller in opened])
    return Trace(latencies, trace.seconds, trace.cpu)


def draw_arrivals(rate: float, count: int, seed: int) -> Floats:
    """A Poisson process of `rate` a second."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def simulate_queue(arrivals: Floats, service: Floats, seed: int) -> Floats:
    """Latencies of a queue that one server works off in order, with service times drawn anew."""
    drawn = np.random.default_rng(seed).choice(service, len(arrivals))
    latencies = np.empty(len(arrivals))
    free = 0.0
    for index, (arrival, seconds) in enumerate(zip(arrivals, drawn, strict=True)):
        free = max(free, arrival) + seconds
        latencies[index] = free - arrival
    return latencies


def await_ready(process: psutil.Process, port: int, path: str, seconds: float) -> None:
    """Return once `path` is answered with 200.

    Raises:
        RuntimeError: the process ended, or it took too long.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise RuntimeError("it ended before it was ready")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise RuntimeError(f"it was not ready after {seconds:g} s")


def _read_length(head: bytes) -> int | None:
    """Bytes of the body; None where it comes in chunks."""
    lowered = head.lower()
    length = lowered.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0].strip()
    chunked = b"\r\ntransfer-encoding: chunked\r\n" in lowered
    if not head.startswith(b"HTTP/1.1 200") or not (length.isdigit() or chunked):
        raise RuntimeError(f"not an answer: {head[:300]!r}")
    return None if chunked else int(length)


@contextmanager
def _open(port: int, request: bytes, count: int) -> Iterator[list[Caller]]:
    opened = [Caller(port, request) for _ in range(count)]
    try:
        yield opened
    finally:
        for caller in opened:
            caller.close()


def _watch(process: psutil.Process, works: list[Callable[[], list[float]]]) -> Trace:
    """Run all of `works` side by side; what they return, and what the server spent meanwhile."""
    times: list[float] = []
    failures: list[Exception] = []

    def run(work: Callable[[], list[float]]) -> None:
        try:
            times.extend(work())
        except (RuntimeError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    before, begun = _tree_cpu(process), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, after = time.perf_counter() - begun, _tree_cpu(process)
    if failures:
        raise RuntimeError(f"{len(failures)} callers failed: {failures[0]}")
    return Trace(np.array(times), seconds, after - before)


def _tree_cpu(root: psutil.Process) -> float:
    """User and system seconds of a process and its descendants."""
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
