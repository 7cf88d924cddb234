"""The parent's end of a child process that holds one engine. See `deploy.engines.worker`."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from multiprocessing import Pipe
from typing import Any, Self

import numpy as np

from deploy.engines.base import Array, EngineSpec, Feeds
from export.artifacts import TensorSpec
from export.errors import DeployError, EngineError
from export.progress import ProgressCallback, ignore_progress

_TIMEOUT_S = 600.0


class ChildProcess:
    """A child that answers one request at a time. Ends with its context, whatever happened."""

    def __init__(self, *, threads: int) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed in close()
        self._connection, theirs = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONWARNINGS": "ignore",
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "deploy.engines.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=environment,
            )
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def request(self, method: str, *arguments: Any, timeout: float = _TIMEOUT_S) -> Any:
        """Send one request and wait for its answer; see `send` and `receive`."""
        self.send(method, *arguments)
        return self.receive(timeout=timeout)

    def send(self, method: str, *arguments: Any) -> None:
        """Send one request, whose answer `receive` waits for.

        Raises:
            EngineError: the child has died or was ended.
        """
        if self._connection.closed:
            raise EngineError("The engine's process was ended before; open the engine again.")
        try:
            self._connection.send((method, arguments))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EngineError(self._describe_death()) from error

    def receive(
        self, *, timeout: float = _TIMEOUT_S, progress: ProgressCallback = ignore_progress
    ) -> Any:
        """The answer to the request that was sent; `progress` is told what comes before it.

        Raises:
            DeployError: what the child raised; EngineError when it failed otherwise, died (the
                message has the signal and its last words) or said nothing for `timeout` seconds.
            OSError: a disk is full.
        """
        try:
            kind, value = self._next_message(timeout)
            while kind == "progress":
                progress(value)
                kind, value = self._next_message(timeout)
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise EngineError(self._describe_death()) from error
        if kind == "ok":
            return value
        if isinstance(value, DeployError | OSError):
            raise value
        raise EngineError(f"The engine failed: {value}")

    def _next_message(self, timeout: float) -> tuple[str, Any]:
        if not self._connection.poll(timeout):
            self.close()
            raise EngineError(f"The engine did not answer within {timeout:.0f} s; ended it.")
        message: tuple[str, Any] = self._connection.recv()
        return message

    def close(self) -> None:
        """End the child: ask, then terminate, then kill."""
        self._connection.close()  # the child ends itself at this, even in the middle of a call
        for end in (None, signal.SIGTERM, signal.SIGKILL):
            if end is not None:
                self._process.send_signal(end)
            try:
                self._process.wait(timeout=3)
                break
            except subprocess.TimeoutExpired:
                continue
        self._stderr.close()

    def _describe_death(self) -> str:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it lives, with its end of the connection closed
            self._process.kill()
            code = self._process.wait()
        self._stderr.seek(0)
        words = self._stderr.read().decode(errors="replace").strip().splitlines()[-3:]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        said = f"; its last words: {' | '.join(words)}" if words else ""
        return f"The engine's process ended with {how}{said}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class EngineProcess(ChildProcess):
    """An engine in a process of its own, with the same call as an `Engine`.

    Args:
        spec: what to open.
        wait: until it is open; otherwise `wait_until_open` is to be called before anything else.

    Raises:
        DeployError: it cannot be opened.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(self, spec: EngineSpec, *, wait: bool = True) -> None:
        super().__init__(threads=spec.threads)
        self.spec = spec
        try:
            self.send("open", spec)
        except BaseException:
            self.close()
            raise
        if wait:
            self.wait_until_open()

    def wait_until_open(self) -> None:
        """Wait for the engine; the process is ended where it cannot be opened, which is raised."""
        try:
            self.inputs, self.outputs = self.receive()
        except BaseException:
            self.close()
            raise

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Run on named arrays, in the child."""
        outputs: dict[str, Array] = self.request("run", dict(feeds))
        return outputs

    def prepare(self, feeds: Feeds) -> float:
        """Hand over the feeds to be timed; seconds of the first call."""
        return float(self.request("prepare", dict(feeds)))

    def time(self, calls: int, *, warmup: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Seconds of each of `calls` consecutive calls after `warmup` untimed ones."""
        seconds: np.ndarray[Any, np.dtype[np.float64]] = self.request("time", calls, warmup)
        return seconds


def open_processes(
    specs: Iterable[EngineSpec], stack: contextlib.ExitStack
) -> list[EngineProcess | DeployError]:
    """Open all engines at the same time, each in a process that ends with `stack`.

    Returns:
        In the order of `specs` the process, or why its engine cannot be opened.
    """
    processes: list[EngineProcess | DeployError] = []
    for spec in specs:
        try:
            processes.append(stack.enter_context(EngineProcess(spec, wait=False)))
        except DeployError as error:
            processes.append(error)
    for index, process in enumerate(processes):
        if isinstance(process, EngineProcess):
            try:
                process.wait_until_open()
            except DeployError as error:
                processes[index] = error
    return processes


def call_in_child(
    target: str, *, threads: int = 1, progress: ProgressCallback | None = None, **kwargs: Any
) -> Any:
    """Call ``package.module:function`` in a child of its own and return its result.

    Args:
        target: what to call, with `kwargs`.
        threads: of its numerical libraries.
        progress: where the function takes such a callback: told what it reports. What it raises
            ends the child.
    """
    with ChildProcess(threads=threads) as child:
        if progress is None:
            return child.request("call", target, kwargs)
        child.send("watch", target, kwargs)
        return child.receive(progress=progress)
