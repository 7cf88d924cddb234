"""A real Triton: the server that the nvidia-pytriton wheel carries, with its python backend.

It is installed into an environment of its own, since its python backend needs numpy 1. The wheel
has no ONNX Runtime backend, so the model behind an exported configuration is a few lines of numpy.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

WHEEL = "nvidia-pytriton==0.7.0"
VERSION = "2.51.0"


@dataclass(frozen=True)
class Triton:
    """An installed server, and the ``bin`` of its environment."""

    root: Path
    programs: Path


def install_triton(folder: Path) -> Triton:
    """Install the wheel into `folder`, or use the environment that DEPLOY_TEST_TRITON names."""
    given = os.environ.get("DEPLOY_TEST_TRITON")
    environment = Path(given) if given else folder / "triton"
    if not given:
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        command = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, WHEEL, "numpy<2"], capture_output=True, text=True, timeout=500, check=False
        )
        if done.returncode:
            pytest.skip(f"{WHEEL} cannot be installed: {done.stderr.strip()[-200:]}")
    (packages,) = environment.glob("lib/python3*/site-packages")
    root = packages / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        pytest.skip(f"{WHEEL} has no python backend for Python {version} on this machine")
    target = root / "backends" / "python" / stub.name
    if not target.exists():
        shutil.copyfile(stub, target)
    for file in (target, root / "bin" / "tritonserver"):
        file.chmod(0o755)
    return Triton(root, environment / "bin")


@contextlib.contextmanager
def run_triton(triton: Triton, repository: Path, log: Path) -> Iterator[str]:
    """The URL of a server on `repository`, which takes configurations as they are written."""
    port = _free_port()
    command = [
        triton.root / "bin" / "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={triton.root / 'backends'}",
        "--disable-auto-complete-config",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]
    # the backend takes the packages of the first python of PATH, and no PYTHONPATH
    environment = {**os.environ, "PATH": f"{triton.programs}{os.pathsep}{os.environ['PATH']}"}
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(server, url, log)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


class RefusedError(Exception):
    """Triton did not start; the message is its log."""


def _wait(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    for _ in range(300):
        if server.poll() is not None:
            raise RefusedError(log.read_text(encoding="utf-8", errors="replace"))
        try:
            urllib.request.urlopen(f"{url}/v2/health/ready", timeout=2).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise RefusedError(log.read_text(encoding="utf-8", errors="replace"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


MODEL = '''
import os

import numpy as np
import triton_python_backend_utils as backend

HERE = os.path.dirname(__file__)


class TritonPythonModel:
    """relu(x @ first) @ second, and a note of all rows of every execution."""

    def initialize(self, arguments):
        self.weights = [np.load(os.path.join(HERE, name)) for name in ("first.npy", "second.npy")]

    def execute(self, requests):
        answers = []
        inputs = [backend.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        with open(os.path.join(HERE, "seen.txt"), "a") as seen:
            print(np.concatenate(inputs).tolist(), file=seen)
        for x in inputs:
            first, second = self.weights
            logits = np.maximum(x @ first, 0) @ second
            answers.append(
                backend.InferenceResponse([backend.Tensor("logits", logits.astype(np.float32))])
            )
        return answers
'''


def put_numpy_model(folder: Path, version: str, weights: tuple[object, object]) -> Path:
    """Swap the backend of an exported model, and nothing else; returns where it notes batches."""
    import numpy as np

    config = folder / "config.pbtxt"
    text = config.read_text(encoding="utf-8")
    text, backends = re.subn(r'(?m)^backend: "onnxruntime"$', 'backend: "python"', text)
    text, files = re.subn(r'(?m)^default_model_filename: ".*"$', "", text)
    assert (backends, files) == (1, 1)
    config.write_text(text, encoding="utf-8")
    where = folder / version
    (where / "model.py").write_text(MODEL, encoding="utf-8")
    for name, array in zip(("first", "second"), weights, strict=True):
        np.save(where / f"{name}.npy", np.asarray(array))
    return where / "seen.txt"
