"""What is picked behind an int8 layer has the shape and the values of what was picked."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.engines import EngineSpec
from deploy.engines.process import EngineProcess

STEP = np.float32(0.03)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("tokens", "axis", "index"), [(5, 1, 0), (5, 1, -1), (1, 1, -1), (5, 2, 3), (5, 2, -1)]
)
def test_one_token_or_channel_behind_an_int8_layer_is_picked(
    tmp_path: Path, tokens: int, axis: int, index: int, bias: bool
) -> None:
    """OpenVINO 2026.4 answers with one axis more where each channel has a scale."""
    random = np.random.default_rng(0)
    codes = random.integers(-63, 64, (12, 8)).astype(np.int8)  # sums of 8 bits may saturate
    constants = {
        "codes": codes,
        "scales": random.uniform(1e-3, 1e-2, 8).astype(np.float32),
        "zeros": np.zeros(8, np.int8),
        "bias": random.normal(size=8).astype(np.float32),
        "step": STEP,
        "zero": np.uint8(128),
        "index": np.array(index),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["rounded", "step", "zero"], ["held"]),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["weight"], axis=1),
        helper.make_node("MatMul", ["held", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["summed"]),
        helper.make_node("Gather", ["summed" if bias else "product", "index"], ["part"], axis=axis),
        helper.make_node("QuantizeLinear", ["part", "step", "zero"], ["codes_of_part"]),
        helper.make_node("DequantizeLinear", ["codes_of_part", "step", "zero"], ["picked"]),
    ]
    graph = helper.make_graph(
        nodes,
        "picked",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", tokens, 12])],
        [helper.make_tensor_value_info("picked", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path / "model.onnx"
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    x = random.uniform(-3, 3, (4, tokens, 12)).astype(np.float32)
    held = np.clip(np.rint(x / STEP), -128, 127) * np.float64(STEP)
    product = held @ (codes * constants["scales"].astype(np.float64))
    right = (product + constants["bias"] if bias else product).take(index, axis)
    with EngineProcess(EngineSpec("openvino", "int8", str(path), 1)) as engine:
        found = engine({"x": x})["picked"]
    assert found.shape == right.shape
    np.testing.assert_allclose(found, np.clip(right, -128 * STEP, 127 * STEP), atol=0.0151)
