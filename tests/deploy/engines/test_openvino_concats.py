"""Tokens of several scales, one behind another, go through a product in int8."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.engines import EngineSpec
from deploy.engines.process import EngineProcess

STEPS, WHOLE = np.array([0.01, 0.03, 0.02], np.float32), np.float32(0.05)
"""No multiple of the first lies halfway between two of the last."""


def quantize(values: np.ndarray, step: np.float32) -> np.ndarray:
    return np.clip(np.rint(values / step), -128, 127) * np.float64(step)


@pytest.mark.parametrize("rounded", [False, True], ids=["as they are", "rounded together"])
def test_a_stack_of_quantized_steps_before_a_product_is_not_refused(
    tmp_path: Path, rounded: bool
) -> None:
    """OpenVINO 2026.4 moves a scale for each token behind the product, where it does not fit."""
    random = np.random.default_rng(0)
    codes = random.integers(-63, 64, (8, 5)).astype(np.int8)  # sums of 8 bits may saturate
    constants = {
        "codes": codes,
        "scales": random.uniform(1e-3, 1e-2, 5).astype(np.float32),
        "zeros": np.zeros(5, np.int8),
        "zero": np.uint8(128),
        "axis": np.array([1]),
        "step": WHOLE,
        **{f"step{i}": step for i, step in enumerate(STEPS)},
    }
    nodes = []
    for i in range(3):
        nodes += [
            helper.make_node("QuantizeLinear", [f"x{i}", f"step{i}", "zero"], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", f"step{i}", "zero"], [f"d{i}"]),
            helper.make_node("Unsqueeze", [f"d{i}", "axis"], [f"u{i}"]),
        ]
    nodes += [
        helper.make_node("Concat", ["u0", "u1", "u2"], ["stack"], axis=1),
        helper.make_node("QuantizeLinear", ["stack", "step", "zero"], ["whole"]),
        helper.make_node("DequantizeLinear", ["whole", "step", "zero"], ["held"]),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["weight"], axis=1),
        helper.make_node("MatMul", ["held" if rounded else "stack", "weight"], ["y"]),
    ]
    if not rounded:
        nodes = [node for node in nodes if node.output[0] not in ("whole", "held")]
    graph = helper.make_graph(
        nodes,
        "steps",
        [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["batch", 8]) for i in range(3)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path / "model.onnx"
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    feeds = {f"x{i}": random.uniform(-1, 1, (4, 8)).astype(np.float32) for i in range(3)}
    stack = np.stack([quantize(feeds[f"x{i}"], STEPS[i]) for i in range(3)], 1)
    held = quantize(stack, WHOLE) if rounded else stack
    right = held @ (codes * constants["scales"].astype(np.float64))
    with EngineProcess(EngineSpec("openvino", "int8", str(path), 1)) as engine:
        found = engine(feeds)["y"]
    np.testing.assert_allclose(found, right, atol=1e-3)
