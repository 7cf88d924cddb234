"""Bundles for `benchmarks/serving.py`: one that answers with its input, and ResNet-50 in int8."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from deploy.bundle.folder import GOLDEN, REPORT_HTML, REPORT_JSON
from deploy.bundle.golden import Golden
from deploy.bundle.manifest import BundledEngine, write_manifest
from deploy.results import spec_json
from export.artifacts import TensorSpec

ENGINE = "onnxruntime-fp32"
IMAGE = (3, 224, 224)
_CREATED = "2026-11-25T00:00:00Z"
_CALIBRATION = 16


def write_identity(path: Path, shape: tuple[int, ...]) -> Path:
    """A bundle whose model is Identity over [batch, *shape] in float32."""
    path.mkdir(parents=True)
    dims = ["batch", *shape]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "echo",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, dims)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path / "model.onnx")
    return _complete(path, shape)


def write_resnet50(path: Path) -> Path:
    """A bundle of ResNet-50 with random weights, by `quantize_static` of ONNX Runtime."""
    import torch
    from onnxruntime import quantization
    from resnet50 import make_net

    path.mkdir(parents=True)
    plain, prepared = path / "plain.onnx", path / "prepared.onnx"
    torch.onnx.export(
        make_net(),
        (torch.zeros(2, *IMAGE),),
        plain,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
    )
    quantization.quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        path / "model.onnx",
        _Samples(),
        per_channel=True,
        reduce_range=False,
    )
    plain.unlink()
    prepared.unlink()
    return _complete(path, IMAGE)


class _Samples:
    """Generated images, one at a time, as the calibrator asks for them."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._left = [
            {"x": rng.standard_normal((1, *IMAGE), dtype=np.float32)} for _ in range(_CALIBRATION)
        ]

    def get_next(self) -> dict[str, Any] | None:
        """The next one; None at the end."""
        return self._left.pop() if self._left else None


def _complete(path: Path, shape: tuple[int, ...]) -> Path:
    """Add everything that makes the folder of model.onnx a bundle."""
    session = onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    answer = session.run(["y"], {"x": x})[0]
    Golden({"x": x}, {key: {"y": answer} for key in ("reference", ENGINE)}).save(path / GOLDEN)
    takes = TensorSpec("x", ("batch", *shape), "float32")
    gives = TensorSpec("y", ("batch", *answer.shape[1:]), "float32")
    (path / REPORT_HTML).write_text("")
    (path / REPORT_JSON).write_text(json.dumps(_make_report(takes, gives)))
    write_manifest(
        path,
        created=_CREATED,
        model="echo.pt",
        winner=ENGINE,
        engines={ENGINE: BundledEngine("onnxruntime", "fp32", "model.onnx", 1e-4)},
        inputs=(takes,),
        outputs=(gives,),
        structure="tensor",
        machine={},
    )
    return path


def _make_report(takes: TensorSpec, gives: TensorSpec) -> dict[str, object]:
    """As little of a report as a reader accepts."""
    latency = {"p50_ms": 1.0, "p50_ci95": [1.0, 1.0], "speedup": 1.0, "speedup_ci95": [1.0, 1.0]}
    baseline = {
        "name": "torch",
        "engine": "torch",
        "precision": "fp32",
        "status": "ok",
        "reason": None,
        "parity": None,
        "latency": latency,
        "size_bytes": None,
    }
    model = {"name": "echo.pt", "sha256": None, "form": "module", "parameters": 0, "macs": 0}
    empty: dict[str, Any] = {key: [] for key in ("fused", "skipped", "attempts")}
    tensors = {"inputs": spec_json((takes,)), "outputs": spec_json((gives,))}
    data = {"source": None, "kind": "synthetic", "evaluation_samples": 0, "classes_of": None}
    return {
        "schema_version": 1,
        "created": _CREATED,
        "deploykit": "0",
        "model": {**model, **empty, **tensors},
        "machine": {"cpu": None, "gpu": None, "threads": 1, "versions": {}, "peak_gmacs": {}},
        "data": data,
        "gates": {"max_drop": 0.01, "min_sqnr_db": {}},
        "measurement": {"batch": 1, "threads": 1, "seconds": 0.0},
        "control": None,
        "baseline": baseline,
        "candidates": [],
        "winner": "torch",
        "verdict": "",
        "warnings": [],
        "stages": [],
    }
