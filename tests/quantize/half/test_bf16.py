"""The bfloat16 files: valid from opset 22 on, rounded as bfloat16 is, taken by TensorRT."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from encoder_net import encoder
from onnx import TensorProto, helper, numpy_helper
from test_nets import Net, classifier, run, run_exactly, sqnr

from export.artifacts import OnnxModel
from export.errors import EngineError, QuantizeError
from export.onnx.tensor_types import element_types
from quantize.half.bf16 import Bf16Result, convert_bf16
from quantize.half.fp16 import convert_fp16
from quantize.half.half_rules import HALF_RULES, HalfRule
from quantize.half.losses import measure_rounding
from quantize.half.opset import raise_opset

BFLOAT = TensorProto.BFLOAT16


def _convert(model: OnnxModel, **options) -> Bf16Result:
    before = model.path.read_bytes()
    result = convert_bf16(model, model.path.with_name("bf16.onnx"), **options)
    assert model.path.read_bytes() == before
    onnx.checker.check_model(str(result.model.path), full_check=True)
    old, new = onnx.load(model.path).graph, onnx.load(result.model.path).graph
    assert list(old.input) == list(new.input)
    assert list(old.output) == list(new.output)
    return result


def _floats(result: Bf16Result) -> set[str]:
    """Names of the nodes that make float32."""
    proto = onnx.load(result.model.path)
    types = element_types(proto)
    return {n.name for n in proto.graph.node if types[n.output[0]] == TensorProto.FLOAT}


@pytest.mark.parametrize("opset", [17, 20, 22, 23])
def test_a_convolutional_net_is_all_bfloat16_from_opset_22(tmp_path: Path, opset: int) -> None:
    _, model = classifier(tmp_path, opset=opset)
    result = _convert(model)
    assert result.kept_fp32 == ()
    assert result.model.opset == max(opset, 22)
    assert _floats(result) == {"y_Cast"}
    kinds = {item.data_type for item in onnx.load(result.model.path).graph.initializer}
    assert kinds == {BFLOAT}


def test_a_product_rounds_as_bfloat16_does(tmp_path: Path) -> None:
    net = Net(37)
    weight = net.random.normal(0, 0.2, (37, 61)).astype(np.float32)
    y = net.op("MatMul", "x", net.constant("w", weight), name="product")
    result = _convert(net.save(tmp_path / "m.onnx", y))
    x = net.feed(5)["x"]
    stored = numpy_helper.to_array(onnx.load(result.model.path).graph.initializer[0])
    np.testing.assert_array_equal(stored, weight.astype(ml_dtypes.bfloat16))
    narrow = x.astype(ml_dtypes.bfloat16).astype(np.float64) @ stored.astype(np.float64)
    expected = narrow.astype(ml_dtypes.bfloat16).astype(np.float64)
    got = run_exactly(result.model, {"x": x})[0]
    assert got.dtype == np.float32
    assert sqnr(expected, got) > 45  # numpy's products of bfloat16 gather in bfloat16
    assert 35 < sqnr(x.astype(np.float64) @ weight, got) < 60


def test_values_beyond_float16_stay_bfloat16(tmp_path: Path) -> None:
    net = Net(4, 4)
    big = net.op("Mul", "x", net.constant("k", np.float32(1e30).reshape(())), name="big")
    model = net.save(tmp_path / "m.onnx", net.op("Neg", big, name="end"))
    result = _convert(model)
    assert result.kept_fp32 == ()
    reference, got = run(model, net.feed(3))[0], run_exactly(result.model, net.feed(3))[0]
    assert sqnr(reference, got) > 40


def test_lossy_nodes_and_named_ones_stay_float(tmp_path: Path) -> None:
    net = Net(64)
    shift, again = (net.constant(n, np.float32(v).reshape(())) for n, v in (("s", 99), ("a", 98)))
    shifted = net.op("Add", "x", shift, name="shifted")
    back = net.op("Sub", shifted, again, name="back")
    model = net.save(
        tmp_path / "m.onnx", net.op("Relu", net.op("Neg", back, name="neg"), name="end")
    )
    losses = measure_rounding(model, [net.feed(16)], half="bf16")
    result = _convert(model, losses=losses, keep_fp32={"end"})
    reasons = {skip.where: skip.reason for skip in result.kept_fp32}
    assert set(reasons) == {"shifted", "back", "end"}
    assert "back cannot bear its result rounded" in reasons["shifted"]
    assert "below 25 dB" in reasons["back"]
    reference = run(model, net.feed(16))[0]
    plain = convert_bf16(model, tmp_path / "plain.onnx").model
    assert sqnr(reference, run_exactly(result.model, net.feed(16))[0]) > 35
    assert sqnr(reference, run_exactly(plain, net.feed(16))[0]) < 20


def test_operators_that_changed_are_refused() -> None:
    node = helper.make_node(
        "GroupNormalization", ["x", "s", "b"], ["y"], name="groups", num_groups=2
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xsby"]
    graph = helper.make_graph([node], "g", values[:3], values[3:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(
        QuantizeError, match=r"groups \(GroupNormalization\) is not the same at opset"
    ):
        raise_opset(proto, 22)
    assert proto.opset_import[0].version == 20
    assert raise_opset(proto, 18) == 20


@pytest.mark.parametrize("make", [classifier, encoder])
def test_tensorrt_builds_it(tmp_path: Path, make) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    from export.tensorrt import BuildOptions, build_engine

    _, model = make(tmp_path)
    result = _convert(model)
    path = tmp_path / "bf16.engine"
    build_engine(result.model, path, options=BuildOptions(targets=("SM89",)))
    assert path.stat().st_size > 1000


REFUSED_ALONE = ("ConvTranspose", "GlobalLpPool", "HardSwish", "LpNormalization", "LpPool", "Mish")


def refused_net() -> Net:
    """One of every operator that TensorRT has no bfloat16 engine of, between convolutions."""
    net = Net(4, 8, 8)
    x = net.op("HardSwish", net.conv("x", 4, 8, name="first"), name="HardSwish")
    weight = net.random.normal(0, 0.2, (8, 4, 2, 2)).astype(np.float32)
    x = net.op(
        "ConvTranspose", x, net.constant("up_w", weight), strides=[2, 2], name="ConvTranspose"
    )
    x = net.op("Mish", net.conv(x, 4, 8, name="second"), name="Mish")
    x = net.op("LpPool", x, kernel_shape=[2, 2], strides=[2, 2], name="LpPool")
    x = net.op("LpNormalization", net.conv(x, 8, 8, name="third"), axis=1, name="LpNormalization")
    x = net.conv(x, 8, 8, name="fourth")
    net.op("Flatten", net.op("GlobalLpPool", x, name="GlobalLpPool"), name="last")
    return net


def test_what_tensorrt_has_no_bfloat16_engine_of_stays_in_float32(tmp_path: Path) -> None:
    result = _convert(refused_net().save(tmp_path / "m.onnx", "last_out"))
    kept = {skip.where: skip.reason for skip in result.kept_fp32}
    assert set(kept) == set(REFUSED_ALONE)
    for operator, reason in kept.items():
        assert reason == f"TensorRT builds no {operator} in bfloat16"
    types = element_types(onnx.load(result.model.path))
    halves = [n.name for n in onnx.load(result.model.path).graph.node if n.op_type == "Conv"]
    assert {types[f"{name}_out"] for name in halves} == {BFLOAT}


def test_tensorrt_builds_such_a_net(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    from export.tensorrt import BuildOptions, build_engine

    options = BuildOptions(targets=("SM89",))
    result = _convert(refused_net().save(tmp_path / "m.onnx", "last_out"))
    path = tmp_path / "bf16.engine"
    build_engine(result.model, path, options=options)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("operator", REFUSED_ALONE)
def test_what_the_table_names_is_refused_by_tensorrt_itself(
    tmp_path: Path, operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that an operator which a later version builds does not stay in the table."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    from export.tensorrt import BuildOptions, build_engine

    others = frozenset(REFUSED_ALONE) - {operator}
    monkeypatch.setitem(HALF_RULES, "bf16", HalfRule(float32=others))  # type: ignore[misc]
    result = _convert(refused_net().save(tmp_path / "m.onnx", "last_out"))
    with pytest.raises(EngineError, match="TensorRT for RTX"):
        build_engine(result.model, tmp_path / "m.engine", options=BuildOptions(targets=("SM89",)))


def recurrent(folder: Path, kind: str, gates: int) -> OnnxModel:
    """A recurrent layer along the second axis of [N, 5, 4]."""
    net = Net(5, 4)
    shapes = {"W": (1, gates * 8, 4), "R": (1, gates * 8, 8)}
    weights = [
        net.constant(name, net.random.normal(0, 0.2, shape).astype(np.float32))
        for name, shape in shapes.items()
    ]
    turned = net.op("Transpose", "x", perm=[1, 0, 2])
    states = net.op(kind, turned, *weights, hidden_size=8, name="memory")
    rows = net.op("Transpose", states, perm=[2, 0, 1, 3])
    last = net.op("Flatten", rows, name="last")
    return net.save(folder / "m.onnx", last)


def test_a_gru_is_refused_in_words_before_anything_is_built(tmp_path: Path) -> None:
    model = recurrent(tmp_path, "GRU", 3)
    with pytest.raises(QuantizeError, match=r"no GRU in bfloat16.*memory \(GRU\).*float16"):
        convert_bf16(model, tmp_path / "bf16.onnx")
    assert not (tmp_path / "bf16.onnx").exists()
    assert convert_fp16(model, tmp_path / "fp16.onnx").kept_fp32 == ()


def test_tensorrt_builds_what_takes_the_place_of_a_gru_in_bfloat16(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    from export.tensorrt import BuildOptions, build_engine

    options, path = BuildOptions(targets=("SM89",)), tmp_path / "m.engine"
    lstm = convert_bf16(recurrent(tmp_path, "LSTM", 4), tmp_path / "bf16.onnx").model
    assert build_engine(lstm, path, options=options).path.stat().st_size > 1000
    gru = convert_fp16(recurrent(tmp_path, "GRU", 3), tmp_path / "fp16.onnx").model
    assert build_engine(gru, path, options=options).path.stat().st_size > 1000


def test_operators_that_onnx_does_not_define_are_none_of_a_newer_opset() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    nodes = [
        helper.make_node("Special", ["x"], ["a"], domain="com.example"),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    graph = helper.make_graph(nodes, "net", [value], [result])
    proto = helper.make_model(graph, opset_imports=opsets)
    assert raise_opset(proto, 22) == 22
    assert {item.domain: item.version for item in proto.opset_import} == {"": 22, "com.example": 1}


def test_the_float_model_is_not_written_over(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    before = model.path.read_bytes()
    with pytest.raises(QuantizeError, match="is the float model itself"):
        convert_bf16(model, tmp_path / "other" / ".." / model.path.name)
    assert model.path.read_bytes() == before


def test_a_node_that_is_to_stay_float_and_is_none_is_refused(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    with pytest.raises(QuantizeError, match="keep_fp32 names no node of the model: nobody"):
        convert_bf16(model, tmp_path / "bf16.onnx", keep_fp32=["nobody", "stem"])
