"""The child process: opens engines, runs them, times them. `engines.process` is its other end.

Every engine lives in a process of its own. A vendor library that crashes takes only its candidate
down, and the spinning threads of one engine do not slow the next one's measurement.

Started as ``python -P -m deploy.engines.worker FD``; speaks pickled tuples over that inherited
descriptor, which only the parent that made it can reach.
"""

import contextlib
import gc
import importlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from deploy.engines import Engine, EngineSpec, Feeds, open_engine
from deploy.full_disk import FULL
from export.errors import DeployError
from export.progress import Progress, ProgressCallback, ignore_progress

_REPORT_INTERVAL_S = 0.05


class Worker:
    """The state of one child: at most one engine, and the feeds that it is timed on."""

    def __init__(self, report: ProgressCallback = ignore_progress) -> None:
        self._report = report
        self._stack = contextlib.ExitStack()
        self._engine: Engine | None = None
        self._feeds: Feeds = {}

    def open(self, spec: EngineSpec) -> tuple[Any, Any]:
        """Open the engine; its inputs and outputs."""
        self._engine = self._stack.enter_context(open_engine(spec))
        return self._engine.inputs, self._engine.outputs

    def run(self, feeds: Feeds) -> dict[str, np.ndarray[Any, Any]]:
        """One call."""
        return self._opened()(feeds)

    def prepare(self, feeds: Feeds) -> float:
        """Keep `feeds` for timing; seconds of the first call on them."""
        self._feeds = feeds
        first = float(self.time(1, 0)[0])
        gc.collect()
        return first

    def time(self, calls: int, warmup: int) -> np.ndarray[Any, Any]:
        """Seconds of each of `calls` calls after `warmup` untimed ones."""
        engine, feeds, clock = self._opened(), self._feeds, time.perf_counter_ns
        for _ in range(warmup):
            engine(feeds)
        nanoseconds = np.empty(calls, dtype=np.int64)
        gc.disable()
        try:
            for index in range(calls):
                start = clock()
                engine(feeds)
                nanoseconds[index] = clock() - start
        finally:
            gc.enable()
        return nanoseconds / 1e9

    def call(self, target: str, kwargs: dict[str, Any]) -> Any:
        """Call ``package.module:function`` here, so that vendor code stays out of the parent."""
        module, _, name = target.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function(**kwargs)

    def watch(self, target: str, kwargs: dict[str, Any]) -> Any:
        """Likewise, where the function reports its progress, which goes to the parent."""
        return self.call(target, {**kwargs, "progress": self._report})

    def _opened(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("no engine is open in this process")
        return self._engine


class _Reporter:
    """Sends progress to the parent, no more often than anybody could read it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sent = -math.inf

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._sent >= _REPORT_INTERVAL_S or progress.done >= progress.total:
            self._sent = now
            self._connection.send(("progress", progress))


def serve(connection: Connection) -> None:
    """Answer requests until the parent closes its end."""
    worker = Worker(_Reporter(connection))
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, ...] = ("ok", getattr(worker, method)(*arguments))
        except DeployError as error:
            answer = ("error", error)
        except Exception as error:  # noqa: BLE001  the parent turns it into a reason
            if isinstance(error, OSError) and error.errno in FULL:
                answer = ("error", error)  # which ends the parent's work
            else:
                answer = ("fault", f"{type(error).__name__}: {error}")
        connection.send(answer)


def end_with_parent(descriptor: int) -> None:
    """End this process when the other end of `descriptor` closes, in the middle of a call too.

    A vendor library that hangs never reads from the connection again, and would outlive a parent
    that was killed.
    """
    hangup = select.poll()
    hangup.register(descriptor, 0)  # hang-up is always reported; data must not be
    hangup.poll()
    os._exit(0)


def main() -> None:
    """Entry point of the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    descriptor = int(sys.argv[1])
    os.dup2(2, 1)  # vendor libraries print to stdout
    watched = os.dup(descriptor)  # the connection closes its own when a call raises SystemExit
    threading.Thread(target=end_with_parent, args=(watched,), daemon=True).start()
    serve(Connection(descriptor))


if __name__ == "__main__":
    main()
