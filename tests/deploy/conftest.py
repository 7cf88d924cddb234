"""A small real bundle, made without the pipeline, and the command line in this process."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent / "report"))
from samples import labelled_report

from deploy.bundle import GOLDEN, BundledEngine, stage_bundle, write_manifest
from deploy.cli import main
from deploy.engines.base import Array
from deploy.golden import Golden
from deploy.report import render_html
from export.artifacts import TensorSpec

FEATURES, HIDDEN, CLASSES = 4, 8, 3
_RNG = np.random.default_rng(7)
FIRST = _RNG.standard_normal((FEATURES, HIDDEN)).astype(np.float32)
SECOND = _RNG.standard_normal((HIDDEN, CLASSES)).astype(np.float32)

ROOT = Path(__file__).parents[2]


def answer(x: Array) -> Array:
    """What the tiny model says, in closed form and float64."""
    hidden = np.maximum(x.astype(np.float64) @ FIRST.astype(np.float64), 0.0)
    return hidden @ SECOND.astype(np.float64)


def draw(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, FEATURES), dtype=np.float32)


def write_model(path: Path) -> Path:
    """relu(x @ FIRST) @ SECOND with a dynamic batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "second"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(FIRST, "first"), numpy_helper.from_array(SECOND, "second")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def fill_stage(stage: Path, *, winner: str = "onnxruntime-int8") -> None:
    """All files of a bundle with three engines; one lies in a folder of its own."""
    write_model(stage / "model.onnx")
    write_model(stage / "onnx-int8" / "model.onnx")
    entries = {
        "onnxruntime-fp32": BundledEngine("onnxruntime", "fp32", "model.onnx", 1e-4),
        "onnxruntime-int8": BundledEngine("onnxruntime", "int8", "onnx-int8/model.onnx", 1e-4),
        "openvino-fp32": BundledEngine("openvino", "fp32", "model.onnx", 1e-4),
    }
    x = draw(4, seed=1)
    recorded = {"logits": answer(x).astype(np.float32)}
    Golden({"x": x}, {name: recorded for name in ("reference", *entries)}).save(stage / GOLDEN)
    report = labelled_report()
    (stage / "report.json").write_text(json.dumps(report), encoding="utf-8")
    (stage / "report.html").write_text(render_html(report), encoding="utf-8")
    write_manifest(
        stage,
        created=report["created"],
        model="tiny.pt",
        winner=winner,
        engines=entries,
        inputs=(TensorSpec("x", ("batch", FEATURES), "float32"),),
        outputs=(TensorSpec("logits", ("batch", CLASSES), "float32"),),
        structure="tensor",
        machine=report["machine"],
    )


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


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Cli:
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

Lean = Callable[..., "subprocess.CompletedProcess[str]"]


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
