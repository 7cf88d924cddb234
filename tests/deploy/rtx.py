"""A bundle with a real engine of TensorRT for RTX, and machines that it fits or does not fit."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tiny import CLASSES, FEATURES, answer, draw, labelled_report, write_model

from deploy.bundle.folder import GOLDEN
from deploy.bundle.golden import Golden
from deploy.bundle.manifest import BundledEngine, write_manifest
from deploy.bundle.preflight import Host, InstalledProduct
from deploy.bundle.staging import stage_bundle
from export.artifacts import OnnxModel, TensorSpec
from export.gpu import GpuFacts
from export.tensorrt import BuildOptions, build_engine
from export.tensorrt.record import EngineRecord

NAME = "tensorrt_rtx-fp32"
INPUTS = (TensorSpec("x", ("batch", FEATURES), "float32"),)
OUTPUTS = (TensorSpec("logits", ("batch", CLASSES), "float32"),)
OPTIONS = BuildOptions(targets=("SM80", "SM89"), tf32=False)
L4 = GpuFacts("NVIDIA L4", "580.65.06", "8.9", "13.0")


def host_for(record: EngineRecord, *, gpu: GpuFacts | None = L4) -> Host:
    """A machine that an engine fits, as far as its library goes."""
    installed = {record.product: InstalledProduct(record.version, 13)}
    return Host(gpu, installed, record.system or "linux-x86_64")


def make_model(folder: Path) -> OnnxModel:
    return OnnxModel(write_model(folder / "model.onnx"), INPUTS, OUTPUTS, 20)


def write_bundle(
    target: Path, engine: bytes, record: EngineRecord | None, *, winner: str = NAME, **entry: Any
) -> Path:
    """A bundle of the tiny model: ONNX Runtime in float32, and the engine."""
    plugins: Mapping[str, bytes] = entry.pop("plugins", {})
    with stage_bundle(target) as stage:
        write_model(stage / "model.onnx")
        (stage / NAME).mkdir()
        (stage / NAME / "model.engine").write_bytes(engine)
        for name, content in plugins.items():
            (stage / NAME / name).write_bytes(content)
        for name, content in entry.pop("shipped", {}).items():
            (stage / "plugins").mkdir(exist_ok=True)
            (stage / "plugins" / name).write_bytes(content)
        x = draw(4, seed=1)
        recorded = {"logits": answer(x).astype(np.float32)}
        names = ("reference", "onnxruntime-fp32", *(() if entry.get("not_run") else (NAME,)))
        Golden({"x": x}, dict.fromkeys(names, recorded)).save(stage / GOLDEN)
        (stage / "report.json").write_text(json.dumps(labelled_report()), encoding="utf-8")
        (stage / "report.html").write_text("", encoding="utf-8")
        file = f"{NAME}/model.engine"
        values: dict[str, Any] = {"source": "model.onnx", "record": record, "recipe": OPTIONS}
        write_manifest(
            stage,
            created="2026-11-25T00:00:00+00:00",
            model="tiny.pt",
            winner=winner,
            engines={
                "onnxruntime-fp32": BundledEngine("onnxruntime", "fp32", "model.onnx", 1e-4),
                NAME: BundledEngine("tensorrt_rtx", "fp32", file, 1e-4, **{**values, **entry}),
            },
            inputs=INPUTS,
            outputs=OUTPUTS,
            structure="tensor",
            machine={},
        )
    return target


def build_tiny(folder: Path) -> tuple[bytes, EngineRecord]:
    """A real engine of the tiny model, with its record."""
    built = build_engine(make_model(folder), folder / "model.engine", options=OPTIONS)
    return built.path.read_bytes(), replace(built.record)
