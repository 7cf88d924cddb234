"""A real Triton server on loopback: the one inside the nvidia-pytriton wheel.

The wheel wants an older numpy than everything else here, so it lies in a virtual environment of its
own, which ``DEPLOY_TRITON_ENV`` names: ``pip install nvidia-pytriton`` is all that it needs.
"""

import contextlib
import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from servers import WAIT_S, free_port

VARIABLE = "DEPLOY_TRITON_ENV"
Answer = tuple[int, dict[str, str], bytes]


def find_triton() -> tuple[Path | None, str]:
    """The site-packages that hold Triton, or the reason why there are none."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None, f"{VARIABLE} names no environment with the nvidia-pytriton wheel"
    found = sorted(Path(named).glob("lib/python3.11/site-packages/pytriton/tritonserver/bin"))
    if not found:
        return None, f"{VARIABLE}={named} has no nvidia-pytriton for Python 3.11"
    return found[0].parents[2], ""


@contextlib.contextmanager
def running_triton(packages: Path, repository: Path, work: Path) -> Iterator[int]:
    """Triton with the models of `repository`; yields its HTTP port.

    Args:
        packages: as `find_triton` gives it.
        repository: a folder of models with the python backend.
        work: where the backend is put together and the log is written.
    """
    home = packages / "pytriton" / "tritonserver"
    backends = work / "backends"
    shutil.copytree(home / "backends", backends)
    stub = "triton_python_backend_stub"
    shutil.copy(home / "python_backend_stubs" / "3.11" / stub, backends / "python" / stub)
    port = free_port()
    flags = {
        "model-repository": repository,
        "backend-directory": backends,
        "http-address": "127.0.0.1",
        "http-port": port,
        "allow-grpc": "false",
        "allow-metrics": "false",
    }
    environment = {
        **os.environ,
        "PATH": f"{packages.parents[2] / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
        "LD_LIBRARY_PATH": str(packages / "nvidia_pytriton.libs"),
    }
    with (work / "triton.log").open("w") as log:
        process = subprocess.Popen(
            [home / "bin" / "tritonserver", *(f"--{key}={value}" for key, value in flags.items())],
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        _wait(process, port, work / "triton.log")
        yield port
    finally:
        process.terminate()
        try:
            process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask(port: int, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
    """One request: status, headers, body. A connection that is ended without an answer has 0."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            connection.putheader(key, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    except (http.client.HTTPException, ConnectionError):
        return 0, {}, b""
    finally:
        connection.close()


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            if ask(port, "GET", "/v2/health/ready", b"", {})[0] == 200:
                return
        time.sleep(0.2)
    raise AssertionError(f"Triton did not become ready: {log.read_text()[-2000:]}")
