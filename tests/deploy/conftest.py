"""A small real bundle, the command line in this process, and Python without the extras."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT, Cli, Lean, fill_stage, write_model

from deploy.cli import main
from deploy.staging import stage_bundle


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
            timeout=60,
            check=False,
        )

    return run
