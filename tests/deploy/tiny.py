"""A tiny model with its answers in closed form, and a small real bundle of it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent / "report"))
from samples import labelled_report

from deploy.bundle.folder import GOLDEN
from deploy.bundle.golden import Golden
from deploy.bundle.manifest import BundledEngine, write_manifest
from deploy.bundle.staging import stage_bundle
from deploy.engines.base import Array, Feeds
from deploy.report import render_html
from export.artifacts import TensorSpec
from export.optional import is_installed

Cli = Callable[..., tuple[int, str, str]]
Lean = Callable[..., "subprocess.CompletedProcess[str]"]

FEATURES, HIDDEN, CLASSES = 4, 8, 3
_RNG = np.random.default_rng(7)
FIRST = _RNG.standard_normal((FEATURES, HIDDEN)).astype(np.float32)
SECOND = _RNG.standard_normal((HIDDEN, CLASSES)).astype(np.float32)

ROOT = Path(__file__).parents[2]


def answer(x: Array) -> Array:
    """What the tiny model says, in closed form and float64."""
    hidden = np.maximum(x.astype(np.float64) @ FIRST.astype(np.float64), 0.0)
    return hidden @ SECOND.astype(np.float64)


def hide_engines(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Builds do not find these engines: less to build where they are not what is tested."""

    def find(engine: str) -> bool:
        return engine not in names and is_installed(engine)

    patch.setattr("deploy.engines.availability.is_installed", find)


def draw(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, FEATURES), dtype=np.float32)


LAYOUTS = ("reversed", "transposed", "read-only")


def lay_out(x: Array, layout: str) -> Array:
    """A square `x` as a view in another order, or read-only."""
    if layout == "reversed":
        return x[::-1, ::-1]
    if layout == "transposed":
        return x.T
    x.setflags(write=False)
    return x


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


def fill_stage(
    stage: Path, *, winner: str = "onnxruntime-int8", torch_file: Path | None = None
) -> None:
    """All files of a bundle with three engines; one lies in a folder of its own.

    With `torch_file`, a model file that gives the same answers, there is a fourth.
    """
    write_model(stage / "model.onnx")
    write_model(stage / "onnx-int8" / "model.onnx")
    entries = {
        "onnxruntime-fp32": BundledEngine("onnxruntime", "fp32", "model.onnx", 1e-4),
        "onnxruntime-int8": BundledEngine("onnxruntime", "int8", "onnx-int8/model.onnx", 1e-4),
        "openvino-fp32": BundledEngine("openvino", "fp32", "model.onnx", 1e-4),
    }
    if torch_file is not None:
        shutil.copyfile(torch_file, stage / "model.pt")
        entries = {"torch": BundledEngine("torch", "fp32", "model.pt", 1e-4), **entries}
    x = draw(4, seed=1)
    recorded = {"logits": answer(x).astype(np.float32)}
    Golden({"x": x}, dict.fromkeys(("reference", *entries), recorded)).save(stage / GOLDEN)
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


@dataclass(frozen=True)
class OneFile:
    """A graph with its signature, and golden samples with the answers that are right for them."""

    graph: onnx.GraphProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: Feeds
    answers: Feeds


def write_bundle_of(
    target: Path, file: OneFile, *, engines: tuple[str, ...] = ("onnxruntime-fp32",), **fields: Any
) -> Path:
    """A bundle of one ONNX file that all `engines` open; the first is the winner.

    `fields` are of the manifest, or `report`.
    """
    report = fields.pop("report", None) or labelled_report()
    opset = [helper.make_opsetid("", 20)]
    with stage_bundle(target) as stage:
        model = helper.make_model(file.graph, opset_imports=opset, ir_version=10)
        onnx.save(model, stage / "model.onnx")
        recorded = {name: dict(file.answers) for name in ("reference", *engines)}
        Golden(dict(file.golden), recorded).save(stage / GOLDEN)
        (stage / "report.json").write_text(json.dumps(report), encoding="utf-8")
        (stage / "report.html").write_text(render_html(report), encoding="utf-8")
        entries = {
            name: BundledEngine(*name.split("-", 1), file="model.onnx", golden_tolerance=1e-4)
            for name in engines
        }
        values = {
            "created": report["created"],
            "model": f"{target.stem}.pt",
            "winner": engines[0],
            "engines": entries,
            "inputs": file.inputs,
            "outputs": file.outputs,
            "structure": "tensor",
            "machine": report["machine"],
        }
        write_manifest(stage, **{**values, **fields})
    return target
