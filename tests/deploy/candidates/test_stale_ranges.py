"""Ranges of an earlier build are taken for the very model alone, wherever its weights lie."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.cache import Cache
from deploy.candidates.calibration import Calibrator
from deploy.config import BuildConfig
from deploy.inputs.data import ArrayRows, Dataset
from deploy.source import Problem
from export.artifacts import BATCH, OnnxModel, TensorSpec
from export.onnx.files import write_model

SAMPLES = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)


def write(folder: Path, factor: float, *, limit: int) -> OnnxModel:
    weight = np.eye(32, dtype=np.float32) * np.float32(factor)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "w"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [BATCH, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [BATCH, 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = helper.make_opsetid("", 20)
    path = folder / "model.onnx"
    write_model(helper.make_model(graph, opset_imports=[opset], ir_version=10), path, limit=limit)
    specs = [(TensorSpec(name, (BATCH, 32), "float32"),) for name in ("x", "y")]
    return OnnxModel(path, specs[0], specs[1], 20)


@pytest.mark.parametrize("limit", [2**31, 1000], ids=["one file", "weights beside it"])
def test_a_model_that_was_trained_on_is_calibrated_anew(tmp_path: Path, limit: int) -> None:
    np.savez(tmp_path / "data.npz", x=SAMPLES)
    dataset = Dataset({"x": ArrayRows(SAMPLES, SAMPLES.dtype)}, None, "data.npz")
    problem: Any = SimpleNamespace(
        calibration=dataset,
        static_batch=None,
        kind="unlabelled",
        row_bytes=0,
        signature=SimpleNamespace(inputs=()),
    )
    config = BuildConfig(data=str(tmp_path / "data.npz"), observer="minmax")
    calibrator = Calibrator(cast(Problem, problem), config, 1, Cache(tmp_path / "cache"))
    before = calibrator(write(tmp_path, 1.0, limit=limit)).ranges["hidden"]
    assert before == pytest.approx((SAMPLES.min(), SAMPLES.max()))
    after = calibrator(write(tmp_path, 4.0, limit=limit)).ranges["hidden"]
    assert after == pytest.approx((4 * SAMPLES.min(), 4 * SAMPLES.max()))
