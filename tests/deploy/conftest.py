"""A small real bundle, the command line in this process, and Python without the extras."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nursery import Nursery
from process_state import process_as_before
from tiny import FIRST, ROOT, SECOND, Cli, Lean, fill_stage, hide_engines, write_model

from deploy.bundle.staging import stage_bundle
from deploy.cli import main
from export.gpu import read_gpu

REAL_CHILDREN = {"test_latency", "test_peaks", "test_process"}
"""Files whose children are started as they are for users, since they are about them."""


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    with process_as_before():
        yield


@pytest.fixture(scope="session")
def _nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.end()


@pytest.fixture(scope="module", autouse=True)
def _forked_children(request: pytest.FixtureRequest, _nursery: Nursery) -> Iterator[None]:
    """Elsewhere they need not import again what others have imported; drivers of GPUs need that."""
    if request.module.__name__ in REAL_CHILDREN or sys.platform != "linux" or read_gpu():
        _nursery.end()
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.engines.process.subprocess", _nursery)
        yield


@pytest.fixture
def real_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """The children of one test are started as they are for users."""
    monkeypatch.setattr("deploy.engines.process.subprocess", subprocess)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test may change."""
    target = tmp_path_factory.mktemp("bundles") / "tiny.deploy"
    with stage_bundle(target) as stage:
        fill_stage(stage)
    return target


@pytest.fixture
def bundle_path(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be changed."""
    return Path(shutil.copytree(pristine, tmp_path / "tiny.deploy"))


@pytest.fixture(scope="session")
def tiny_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.onnx")


_TINY_PACKAGE = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)

    def forward(self, x):
        return (x @ self.first).relu() @ self.second
"""


@pytest.fixture
def tiny_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tiny model as a module whose class is in a package of the user's, ``tinynets``."""
    package = tmp_path / "packages" / "tinynets.py"
    package.parent.mkdir()
    package.write_text(_TINY_PACKAGE, encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "tinynets", raising=False)
    module = importlib.import_module("tinynets").Tiny(torch.tensor(FIRST), torch.tensor(SECOND))
    yield module.eval()
    sys.modules.pop("tinynets", None)


@pytest.fixture
def torch_bundle(tiny_module: Any, tmp_path: Path) -> Path:
    """A bundle whose winner is the user's own file, which needs trust in ``tinynets``."""
    torch.save(tiny_module, tmp_path / "tiny.pt")
    target = tmp_path / "my bundles" / "torch.deploy"
    with stage_bundle(target) as stage:
        fill_stage(stage, winner="torch", torch_file=tmp_path / "tiny.pt")
    return target


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs ``deploy ARGS`` in this process, in an empty directory: exit code, stdout, stderr."""
    directory = tmp_path / "cwd"
    directory.mkdir()
    monkeypatch.chdir(directory)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["deploy", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        else:
            code = 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def onnxruntime_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds find ONNX Runtime and torch alone, which takes half the time."""
    hide_engines(monkeypatch, "openvino", "tensorrt_rtx", "tensorrt")


_BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="session")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Lean:
    """Runs Python where torch, onnxscript and openvino are not installed, children included."""
    folder = tmp_path_factory.mktemp("blocker")
    blocked = ("torch", "onnxscript", "openvino")
    (folder / "sitecustomize.py").write_text(_BLOCKER.format(blocked=blocked))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "PYTHONWARNINGS": "default",
    }

    def run(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=environment,
            cwd=cwd or folder,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run
