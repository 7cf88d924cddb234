"""Children of `deploy.engines.process`, forked from a process that has imported what they import.

A build has some thirty of them, and most of what they cost is Python, numpy and torch being
imported again in each. What they are told, do and answer is as ever: `engines.worker` runs in
a process of its own, with its own environment, which dies as others do. Only how it came to be
differs, so the files whose subject that is have it done as users do: see ``conftest.py``.

    python nursery.py SOCKET    the process that is forked; it ends when its socket is closed
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

PACKAGES = ("onnx", "torch", "tensorrt_rtx")
"""Not ONNX Runtime: it starts a thread when it is imported, which a fork would leave behind."""

OURS = (
    "deploy.engines.openvino",
    "deploy.engines.openvino_layers",
    "deploy.engines.torch",
    "deploy.measuring.census",
    "export.tensorrt.building",
)
"""What the worker imports once it is told what to do."""

_LONGEST = 2**17


class Nursery:
    """What stands in for the module `subprocess` where children are started.

    The process that is forked starts with the first child after `__init__` or `end`.
    """

    DEVNULL = subprocess.DEVNULL
    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **settings, "PYTHONPATH": path},
            )
        return ours

    def Popen(
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int],
        stderr: Any,
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
    ) -> "Child":
        """A child of `deploy.engines.process`."""
        assert list(command[:-1]) == [sys.executable, "-P", "-m", "deploy.engines.worker"]
        assert (stdin, stdout) == (subprocess.DEVNULL, subprocess.DEVNULL)
        plan = json.dumps({"environment": dict(env), "directory": os.getcwd()}).encode()
        with self._lock:
            if self._socket is None:
                self._socket = self._start()
            told, tells = os.pipe()
            socket.send_fds(self._socket, [plan], [*pass_fds, stderr.fileno(), tells])
            os.close(tells)
            return Child(int(self._socket.recv(64)), told)

    def end(self) -> None:
        """End the process that is forked; its children have ended."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._process.wait(60)


class Child:
    """One that was forked, with as much of `subprocess.Popen` as is asked of it."""

    def __init__(self, pid: int, told: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._told = told

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, minus the signal that ended it."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("deploy.engines.worker", timeout or 0.0)
            self.returncode = int(os.read(self._told, 16))
            os.close(self._told)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it, unless the child has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def main() -> None:
    """Fork whenever it is asked for, and tell of every end."""
    import deploy.engines.openvino_core

    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)
    for name in ("deploy.engines.worker", *OURS):
        importlib.import_module(name)
    if importlib.util.find_spec("openvino") is not None:
        deploy.engines.openvino_core.import_openvino()  # without the thread of its telemetry
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would be missing in every child"
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes)
    asked = socket.socket(fileno=int(sys.argv[1]))
    telling: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([asked, woken], [], [])
        if woken in ready:
            os.read(woken, 1024)
            _tell_ends(telling)
        if asked in ready:
            plan, descriptors, _, _ = socket.recv_fds(asked, _LONGEST, 3)
            if not plan:
                return
            connection, errors, tells = descriptors
            pid = os.fork()
            if pid == 0:
                for descriptor in (*telling.values(), tells, woken, wakes):
                    os.close(descriptor)
                asked.close()
                _live(json.loads(plan), connection, errors)
            for descriptor in (connection, errors):
                os.close(descriptor)
            telling[pid] = tells
            asked.send(b"%d" % pid)


def _tell_ends(telling: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            tells = telling.pop(ended[0])
            os.write(tells, b"%d" % os.waitstatus_to_exitcode(ended[1]))
            os.close(tells)


def _live(plan: Mapping[str, Any], connection: int, errors: int) -> NoReturn:
    """The life of a child, as ``python -P -m deploy.engines.worker`` has it."""
    import deploy.engines.worker

    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.chdir(plan["directory"])
        os.environ.clear()
        os.environ.update(plan["environment"])
        sys.path[:] = [*os.environ["PYTHONPATH"].split(os.pathsep)]
        with open(os.devnull, "r+b") as nothing:
            for number in (0, 1):
                os.dup2(nothing.fileno(), number)
        os.dup2(errors, 2)
        sys.argv = ["deploy.engines.worker", str(connection)]
        deploy.engines.worker.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
