"""Small ONNX graphs that several test files use."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def affine_relu() -> onnx.ModelProto:
    """y = relu(x @ w) * 2, its shape computed beside it; h and a are hidden."""
    weight = np.random.default_rng(0).normal(0, 1, (4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Constant", [], ["two"], value_float=2.0),
            helper.make_node("Mul", ["a", "two"], ["y"]),
            helper.make_node("Shape", ["y"], ["shape"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
