"""Embeddings in int8: rows mean what numpy says, and only large tables of rows are packed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_nets import run, sqnr

from deploy.engines.openvino_core import open_core
from export.artifacts import OnnxModel, TensorSpec
from quantize.transformers.weight_only import WeightScheme, quantize_weights

ROWS, WIDTH = 701, 96


def _lookup(folder: Path, table: np.ndarray, *, axis: int = 0, extra: bool = False) -> OnnxModel:
    """ids → rows of the table → a product with weights; `extra` reads the table twice more."""
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 0.1, (WIDTH, 64)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows"], name="rows", axis=axis)]
    outputs = ["y", "rows"]
    if axis == 0:
        nodes.append(helper.make_node("MatMul", ["rows", "w"], ["y"], name="product"))
    else:
        nodes.append(helper.make_node("MatMul", ["part", "w"], ["y"], name="product"))
        nodes.insert(0, helper.make_node("Slice", ["table", "zero", "three"], ["part"]))
    if extra:
        nodes.append(helper.make_node("Gather", ["table", "ids"], ["again"], name="again"))
        nodes.append(helper.make_node("Gemm", ["flat", "table"], ["tied"], name="tied", transB=1))
        nodes.insert(1, helper.make_node("ReduceMean", ["rows", "one"], ["flat"], keepdims=0))
        outputs += ["again", "tied"]
    stored = {"table": table, "w": weight, "one": np.array([1]), "zero": np.array([0])}
    stored["three"] = np.array([3])
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(a, n) for n, a in stored.items() if n in used]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 5])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "net", [ids], ends, tensors)
    path = folder / "m.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    specs = tuple(TensorSpec(name, ("batch",), "float32") for name in outputs)
    return OnnxModel(path, (TensorSpec("ids", ("batch", 5), "int64"),), specs, 20)


def _table(scale: float = 1.0) -> np.ndarray:
    table = np.random.default_rng(0).normal(0, scale, (ROWS, WIDTH)).astype(np.float32)
    table[3], table[7] = 0, table[7] * 1e6
    return table


IDS = {"ids": np.array([[3, 0, 700, 7, -1], [7, 7, 12, 699, 3]], np.int64)}


def test_rows_are_rounded_to_a_127th_of_their_largest_value(tmp_path: Path) -> None:
    table = _table()
    model = _lookup(tmp_path, table)
    result = quantize_weights(model, WeightScheme(8), tmp_path / "q.onnx")
    assert result.quantized == ("product", "rows")
    assert result.model.path.stat().st_size < 0.4 * model.path.stat().st_size
    rows = run(result.model, IDS)[1].astype(np.float64)
    true = table[IDS["ids"]].astype(np.float64)
    steps = np.abs(true).max(-1, keepdims=True) / 127
    assert (np.abs(rows - true) <= 0.5001 * steps).all()
    assert not rows[0, 0].any()
    assert sqnr(run(model, IDS)[0], run(result.model, IDS)[0]) > 35


def test_openvino_looks_up_the_same_rows(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO")
    path = quantize_weights(_lookup(tmp_path, _table()), WeightScheme(8), tmp_path / "q.onnx").model
    core = open_core()
    compiled = core.compile_model(core.read_model(path.path), "CPU")
    ids = {"ids": np.abs(IDS["ids"])}
    np.testing.assert_allclose(compiled(ids)[1], run(path, ids)[1], rtol=1e-6)


def test_tables_in_common_are_stored_once_and_tied_ones_stay_for_the_rest(tmp_path: Path) -> None:
    model = _lookup(tmp_path, _table(), extra=True)
    scheme = WeightScheme(8, keep_float=frozenset({"tied"}))
    result = quantize_weights(model, scheme, tmp_path / "q.onnx")
    assert set(result.quantized) == {"product", "rows", "again"}
    names = [tensor.name for tensor in onnx.load(result.model.path).graph.initializer]
    assert sum(name.startswith("table") for name in names) == 3  # codes, scales, and itself
    for a, b in zip(run(model, IDS), run(result.model, IDS), strict=True):
        assert sqnr(a, b) > 35


@pytest.mark.parametrize("case", ["small", "columns", "nan"])
def test_other_tables_stay_as_they_are(tmp_path: Path, case: str) -> None:
    table = _table()
    if case == "small":
        table = table[:600]
    if case == "nan":
        table[500, 2] = np.nan
    ids = {"ids": np.abs(IDS["ids"]) % 90}
    model = _lookup(tmp_path, table, axis=1 if case == "columns" else 0)
    result = quantize_weights(model, WeightScheme(8), tmp_path / "q.onnx")
    assert result.quantized == ("product",)
    np.testing.assert_array_equal(run(model, ids)[1], run(result.model, ids)[1])
