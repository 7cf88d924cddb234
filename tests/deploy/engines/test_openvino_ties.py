"""Of equal values the first comes first, as ONNX says."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from deploy.engines import EngineSpec, open_engine


def write_order(path: Path, kind: type, size: int, count: int, *, largest: bool) -> EngineSpec:
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    outputs = [
        helper.make_tensor_value_info("values", number, ["batch", count]),
        helper.make_tensor_value_info("places", onnx.TensorProto.INT64, ["batch", count]),
    ]
    graph = helper.make_graph(
        [helper.make_node("TopK", ["x", "count"], ["values", "places"], largest=int(largest))],
        "ordered",
        [helper.make_tensor_value_info("x", number, ["batch", size])],
        outputs,
        [numpy_helper.from_array(np.array([count]), "count")],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return EngineSpec("openvino", "fp32", str(path), 1)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(
    ("kind", "size", "count"),
    [(np.float32, 40, 40), (np.float32, 300, 7), (np.int32, 40, 12), (np.int64, 700, 700)],
)
def test_equal_values_keep_their_order(
    tmp_path: Path, kind: type, size: int, count: int, largest: bool
) -> None:
    x = np.random.default_rng(size).integers(-3, 4, (3, size)).astype(kind)
    order = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :count]
    with open_engine(write_order(tmp_path / "m.onnx", kind, size, count, largest=largest)) as run:
        for batch in (1, 3):
            found = run({"x": x[:batch]})
            np.testing.assert_array_equal(found["places"], order[:batch])
            np.testing.assert_array_equal(found["values"], np.take_along_axis(x, order, 1)[:batch])


def test_many_floats_that_all_differ_are_in_order(tmp_path: Path) -> None:
    x = np.random.default_rng(0).permutation(8400).astype(np.float32)[None]
    with open_engine(write_order(tmp_path / "m.onnx", np.float32, 8400, 300, largest=True)) as run:
        np.testing.assert_array_equal(run({"x": x})["places"], np.argsort(-x, 1)[:, :300])
