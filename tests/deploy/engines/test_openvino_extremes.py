"""Maxima and minima that are rounded to 8 bits are the largest and the smallest there are."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.engines import EngineSpec
from deploy.engines.openvino_extremes import keep_extremes_apart
from deploy.engines.process import EngineProcess

STEP = np.float32(0.03)
"""Of uint8 around a zero of 128."""


def write_pooled(path: Path, reduction: str, axes: list[int], sizes: list[int]) -> Any:
    """Convolution 1x1, `reduction`, an activation, Q/DQ and a quantized product; in numpy too."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(6, 3)).astype(np.float32)
    codes = random.integers(-60, 60, (6, 4)).astype(np.int8)
    constants = {
        "weight": weight.reshape(6, 3, *(1 for _ in sizes)),
        "axes": np.array(axes),
        "step": STEP,
        "zero": np.uint8(128),
        "codes": codes,
        "step_of_codes": np.float32(0.01),
        "flat": np.array([0, -1]),
    }
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["y"]),
        helper.make_node(reduction, ["y", "axes"], ["pooled"], keepdims=1),
        helper.make_node("LeakyRelu", ["pooled"], ["activated"], alpha=0.5),
        helper.make_node("QuantizeLinear", ["activated", "step", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "step", "zero"], ["held"]),
        helper.make_node("Reshape", ["held", "flat"], ["rows"]),
        helper.make_node("DequantizeLinear", ["codes", "step_of_codes"], ["factors"]),
        helper.make_node("MatMul", ["rows", "factors"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, *sizes])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)

    def compute(x: Any) -> Any:
        y = np.einsum("nc...,oc->no...", x.astype(np.float64), weight)
        pooled = y.max(tuple(axes)) if reduction == "ReduceMax" else y.min(tuple(axes))
        activated = np.where(pooled > 0, pooled, 0.5 * pooled)
        held = np.clip(np.rint(activated / STEP), -128, 127) * STEP
        return held @ (codes * 0.01)

    return compute


@pytest.mark.parametrize("reduction", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize(("axes", "sizes"), [([2, 3], [5, 6]), ([2], [9])])
def test_a_global_pool_before_a_quantized_layer_is_right(
    tmp_path: Path, reduction: str, axes: list[int], sizes: list[int]
) -> None:
    path = tmp_path / "model.onnx"
    compute = write_pooled(path, reduction, axes, sizes)
    x = np.random.default_rng(1).normal(size=(3, 3, *sizes)).astype(np.float32)
    with EngineProcess(EngineSpec("openvino", "int8", str(path), 1)) as engine:
        found = engine({"x": x})["z"]
    np.testing.assert_allclose(found, compute(x), atol=0.01 * 60 * STEP)  # a rounding the other way


def test_only_floats_of_quantized_models_are_kept_apart_and_outputs_keep_their_names() -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    from openvino import opset13 as ops

    def count(quantized: bool) -> int:
        x = ops.parameter([2, 4], np.float32)
        least = ops.reduce_min(ops.convert(x, np.int32), np.int64(1))
        most = ops.reduce_max(x, np.int64(1))
        most.output(0).set_names({"most"})
        low, high = np.float32(0), np.float32(1)
        rounded = (
            ops.fake_quantize(most, low, high, low, high, 256) if quantized else ops.relu(most)
        )
        model = openvino.Model([least, most, rounded], [x], "extremes")
        keep_extremes_apart(model)
        assert model.outputs[1].get_names() == {"most"}
        return sum(node.get_type_name() == "Maximum" for node in model.get_ops())

    assert count(quantized=True) == 1
    assert count(quantized=False) == 0
