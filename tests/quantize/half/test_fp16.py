"""The fp16 files: valid, close to float32 by fp16's own step, and float32 where it must be."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from encoder_net import encoder
from onnx import TensorProto, helper, numpy_helper
from test_nets import Net, classifier, run, run_exactly, sqnr
from versions import since

from export.artifacts import OnnxModel
from export.errors import QuantizeError
from export.onnx.tensor_types import element_types, float_tensors
from quantize.calibration.calibrate import Ranges, calibrate
from quantize.half.fp16 import Fp16Options, Fp16Result, convert_fp16
from quantize.half.losses import measure_rounding
from quantize.int8.insertion import quantize_int8
from quantize.scheme import PRESETS

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def _convert(model: OnnxModel, **options) -> Fp16Result:
    before = model.path.read_bytes()
    result = convert_fp16(model, model.path.with_name("fp16.onnx"), **options)
    assert model.path.read_bytes() == before
    onnx.checker.check_model(str(result.model.path), full_check=True)
    if options.get("options", Fp16Options()).keep_io_types:
        old, new = onnx.load(model.path).graph, onnx.load(result.model.path).graph
        assert list(old.input) == list(new.input)
        assert list(old.output) == list(new.output)
    return result


def _reasons(result: Fp16Result) -> dict[str, str]:
    return {skip.where: skip.reason for skip in result.kept_fp32}


def _types(result: Fp16Result) -> dict[str, int]:
    """Node name → element type of its first output."""
    proto = onnx.load(result.model.path)
    types = element_types(proto)
    return {node.name: types[node.output[0]] for node in proto.graph.node}


def _casts(result: Fp16Result) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(result.model.path).graph.node if node.op_type == "Cast"]


@pytest.mark.parametrize("opset", [11, 13, 17, 20, 23])
def test_classifier_is_half_inside_and_float_outside(tmp_path: Path, opset: int) -> None:
    net, model = classifier(tmp_path, opset=opset)
    result = _convert(model)
    assert result.kept_fp32 == ()
    assert len(_casts(result)) == 2
    kinds = {item.data_type for item in onnx.load(result.model.path).graph.initializer}
    assert kinds == {HALF}
    assert result.model.path.stat().st_size < 0.75 * model.path.stat().st_size
    for batch in (1, 5):
        feeds = net.feed(batch, seed=4)
        (reference,), (got,) = run(model, feeds), run_exactly(result.model, feeds)
        assert got.dtype == np.float32
        assert 50 < sqnr(reference, got) < 100  # half precision, and not float32 in disguise


def test_kept_nodes_share_their_casts(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    result = _convert(model, keep_fp32={"main", "shortcut"})
    assert _reasons(result) == dict.fromkeys(("main", "shortcut"), "kept in fp32 as asked")
    # x in, y out, one into both convs, one out of each
    assert len(_casts(result)) == 5
    types = _types(result)
    assert (types["main"], types["shortcut"], types["down"], types["stem"]) == (
        FLOAT,
        FLOAT,
        HALF,
        HALF,
    )
    assert sqnr(run(model, net.feed(3))[0], run_exactly(result.model, net.feed(3))[0]) > 50


def test_an_unknown_name_to_keep_is_an_error(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    with pytest.raises(QuantizeError, match="names no node of the model: nowhere"):
        _convert(model, keep_fp32={"nowhere"})


def test_observed_overflow_keeps_its_nodes_in_float(tmp_path: Path) -> None:
    net = Net(4, 4)
    big = net.op("Mul", "x", net.constant("k", np.float32(5e4).reshape(())), name="big")
    small = net.op("Mul", big, net.constant("s", np.float32(1e-4).reshape(())), name="small")
    model = net.save(tmp_path / "m.onnx", net.op("Abs", small, name="end"))
    ranges = calibrate(model, [net.feed(64)], tensors=float_tensors(model.path))
    guarded, blind = _convert(model, ranges=ranges), convert_fp16(model, tmp_path / "blind.onnx")
    assert set(_reasons(guarded)) == {"big", "small"}
    assert "'big_out' was observed at 1.88e+05; float16 ends at 65504" in _reasons(guarded)["big"]
    assert blind.kept_fp32 == ()
    reference = run(model, net.feed(64))[0]
    assert sqnr(reference, run_exactly(guarded.model, net.feed(64))[0]) > 50
    assert not np.isfinite(run_exactly(blind.model, net.feed(64))[0]).all()


def test_an_overflow_that_an_observer_clips_is_seen(tmp_path: Path) -> None:
    net = Net(4, 4)
    wide = net.op("Mul", "x", net.constant("k", np.float32(100).reshape(())), name="wide")
    model = net.save(tmp_path / "m.onnx", net.gemm(net.flatten(wide), 16, 3))
    feeds = net.feed(4096)
    feeds["x"][7, 0, 0] = 5000
    ranges = calibrate(
        model, [feeds], tensors=float_tensors(model.path), observer="percentile-99.9"
    )
    flat = next(name for name in ranges.ranges if name.startswith("flatten"))
    assert ranges.ranges[flat][1] < 65504 < ranges.extents[flat][1]
    assert "wide" in _reasons(_convert(model, ranges=ranges))


def test_a_mask_beyond_half_stays_float_to_its_softmax(tmp_path: Path) -> None:
    net = Net(6, 6)
    scores = net.op("MatMul", "x", net.constant("w", np.eye(6, dtype=np.float32)), name="scores")
    mask = np.where(np.tri(6, k=-1) > 0, 0, -1e9).astype(np.float32)
    mask[0] = -1e9  # a row that is masked throughout is NaN where the mask became -inf
    masked = net.op("Add", scores, net.constant("mask", mask), name="masked")
    model = net.save(tmp_path / "m.onnx", net.op("Softmax", masked, name="softmax", axis=-1))
    result = _convert(model)
    assert set(_reasons(result)) == {"masked", "softmax"}
    assert "65504" in _reasons(result)["masked"]
    got = run_exactly(result.model, net.feed(2))[0]
    assert sqnr(run(model, net.feed(2))[0], got) > 40


def test_underflowing_weights_become_zero_without_a_warning(tmp_path: Path) -> None:
    net = Net(4)
    model = net.save(
        tmp_path / "m.onnx", net.op("Add", "x", net.constant("tiny", np.full(4, 1e-30, np.float32)))
    )
    result = _convert(model)
    assert result.kept_fp32 == ()
    assert sqnr(run(model, net.feed(3))[0], run_exactly(result.model, net.feed(3))[0]) > 50


def test_existing_casts_constants_and_fills_are_retyped(tmp_path: Path) -> None:
    net = Net(4, 4)
    sign = net.op(
        "Cast", net.op("Greater", "x", net.op("Constant", value_float=0.0)), to=FLOAT, name="sign"
    )
    two = net.op("Constant", value=numpy_helper.from_array(np.full((1,), 2, np.float32)))
    ones = net.op(
        "ConstantOfShape",
        net.op("Shape", "x"),
        name="ones",
        value=numpy_helper.from_array(np.ones(1, np.float32)),
    )
    zeros = net.op("ConstantOfShape", net.op("Shape", "x"), name="zeros")
    y = net.op("Sum", net.op("Mul", sign, two), ones, zeros, "x", name="sum")
    model = net.save(tmp_path / "m.onnx", y)
    result = _convert(model)
    assert result.kept_fp32 == ()
    types = _types(result)
    assert [types[name] for name in ("sign", "ones", "zeros", "sum")] == [HALF] * 4
    assert sqnr(run(model, net.feed(2))[0], run_exactly(result.model, net.feed(2))[0]) > 50


@since("onnx", "1.23", "needs a region to resize in its reference")
def test_resize_keeps_its_scales_float(tmp_path: Path) -> None:
    net = Net(3, 4, 4)
    roi = net.constant("roi", np.zeros(0, np.float32))
    scales = net.constant("scales", np.array([1, 1, 2, 2], np.float32))
    x = net.op("Resize", net.op("Relu", "x"), roi, scales, mode="linear", name="resize")
    model = net.save(tmp_path / "m.onnx", x)
    result = _convert(model)
    assert result.kept_fp32 == ()
    kinds = {t.name: t.data_type for t in onnx.load(result.model.path).graph.initializer}
    assert kinds["scales"] == FLOAT
    assert _types(result)["resize"] == HALF
    assert sqnr(run(model, net.feed(2))[0], run_exactly(result.model, net.feed(2))[0]) > 50


def test_operators_without_half_stay_float_with_the_reason(tmp_path: Path) -> None:
    net = Net(4, 4)
    x = net.op("Relu", "x", name="relu")
    boxes = net.op("Constant", value=numpy_helper.from_array(np.ones((1, 2, 4), np.float32)))
    scores = net.op("Constant", value=numpy_helper.from_array(np.ones((1, 1, 2), np.float32)))
    kept = net.op("NonMaxSuppression", boxes, scores, name="nms")
    noise = net.op("RandomNormalLike", x, name="noise", seed=1.0, scale=0.0)
    total = net.op(
        "Add",
        x,
        net.op("Mul", noise, net.op("Cast", net.op("ReduceMax", kept, keepdims=0), to=FLOAT)),
        name="add",
    )
    result = _convert(net.save(tmp_path / "m.onnx", total))
    assert _reasons(result) == {
        "nms": "NonMaxSuppression takes no float16 at opset 20",
        "noise": "the type of RandomNormalLike is fixed by an attribute",
    }


def test_arithmetic_that_ends_in_an_index_stays_float(tmp_path: Path) -> None:
    net = Net(4)
    table = net.constant("table", np.arange(8000, dtype=np.float32).reshape(-1, 1) / 8000)
    floats = net.op(
        "Mul",
        net.op("ReduceSum", net.op("Abs", "x", name="abs"), keepdims=0),
        net.constant("k", np.float32(301.7).reshape(())),
        name="scale",
    )
    index = net.op("Cast", net.op("Floor", floats, name="floor"), to=TensorProto.INT64, name="int")
    model = net.save(tmp_path / "m.onnx", net.op("Gather", table, index, name="gather"))
    result = _convert(model)
    assert set(_reasons(result)) == {"scale", "floor", "int"}
    assert set(_reasons(result).values()) == {"it computes integers"}
    assert _types(result)["gather"] == HALF


@pytest.mark.parametrize("public", ["hidden", "input"])
def test_outputs_that_are_read_inside_keep_their_name(tmp_path: Path, public: str) -> None:
    net = Net(4, 8, 8)
    hidden = net.op("Relu", net.conv("x", 4, 4, name="c1"), name="hidden")
    y = net.conv(hidden, 4, 4, name="c2")
    model = net.save(tmp_path / "m.onnx", y, *([hidden] if public == "hidden" else []))
    result = _convert(model, keep_fp32={"c2"})
    feeds = net.feed(2)
    for reference, got in zip(run(model, feeds), run_exactly(result.model, feeds), strict=True):
        assert sqnr(reference, got) > 50


@pytest.mark.parametrize("opset", [17, 19, 21, 23])
def test_int8_pairs_run_in_half_from_opset_19(tmp_path: Path, opset: int) -> None:
    net, model = classifier(tmp_path, opset=opset)
    ranges = calibrate(model, [net.feed(32)])
    int8 = quantize_int8(model, ranges, PRESETS["tensorrt"], tmp_path / "int8.onnx").model
    result = _convert(int8)
    types = _types(result)
    pairs = {name: kind for name, kind in types.items() if name.endswith("DequantizeLinear")}
    assert set(pairs.values()) == ({HALF} if opset >= 19 else {FLOAT})
    assert {types[name] for name in ("stem", "residual", "gap", "head")} == {HALF}
    assert len(_casts(result)) == 2 or opset < 19
    if opset < 19:
        assert {skip.reason.partition(" ")[2] for skip in result.kept_fp32} == {
            "takes no float16 at opset 17"
        }
    evaluate = run_exactly if opset >= 19 else run  # the reference knows no older pairs
    (reference,), (got,) = run(int8, net.feed(8)), evaluate(result.model, net.feed(8))
    assert sqnr(reference, got) > 35


def test_subgraphs_are_refused_by_name(tmp_path: Path) -> None:
    net = Net(4)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", FLOAT, None)],
    )
    flag = net.op("Constant", value=numpy_helper.from_array(np.array(True)))
    y = net.op("If", flag, name="choice", then_branch=branch, else_branch=branch)
    with pytest.raises(QuantizeError, match=r"choice \(If\) holds a subgraph"):
        _convert(net.save(tmp_path / "m.onnx", y))


def test_an_operator_that_cannot_be_typed_is_refused(tmp_path: Path) -> None:
    net = Net(4)
    model = net.save(tmp_path / "m.onnx", net.op("Relu", "x", name="relu"))
    proto = onnx.load(model.path)
    proto.opset_import.append(helper.make_opsetid("my.domain", 1))
    proto.graph.node.insert(0, helper.make_node("Own", ["x"], ["z"], "own", domain="my.domain"))
    proto.graph.node[1].input[0] = "z"
    onnx.save(proto, model.path)
    with pytest.raises(QuantizeError, match=r"'z', made by own \(Own\), cannot be inferred"):
        convert_fp16(model, tmp_path / "h.onnx")
    proto.graph.value_info.append(helper.make_tensor_value_info("z", FLOAT, ["batch", 4]))
    onnx.save(proto, model.path)
    result = convert_fp16(model, tmp_path / "h.onnx")
    assert _reasons(result) == {"own": "ONNX does not define my.domain.Own"}


def test_the_float_model_is_never_overwritten(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    with pytest.raises(QuantizeError, match="is the float model itself"):
        convert_fp16(model, model.path, ranges=Ranges("minmax", 1, {}))


def _scalar(net: Net, name: str, value: float) -> str:
    return net.constant(name, np.float32(value).reshape(()))


def test_casts_to_both_types_that_are_there_already_stay_valid(tmp_path: Path) -> None:
    net = Net(4, 4)
    half = net.op("Cast", net.op("Relu", "x", name="relu"), to=HALF, name="down")
    half = net.op("Abs", half, name="abs")  # float16 in the model itself
    back = net.op("Cast", half, to=FLOAT, name="up")
    twice = net.op("Cast", net.op("Cast", back, to=FLOAT, name="same"), to=HALF, name="again")
    like = net.op("CastLike", twice, back, name="like")
    wide = net.op("Cast", back, to=TensorProto.DOUBLE, name="wide")
    y = net.op("Add", like, net.op("Cast", wide, to=FLOAT, name="narrow"), name="sum")
    model = net.save(tmp_path / "m.onnx", y, back)
    for kept in ((), {"up"}, {"same", "sum"}, {"relu", "like"}):
        result = _convert(model, keep_fp32=kept)
        assert {skip.where for skip in result.kept_fp32} == set(kept)
        feeds = net.feed(3)
        for a, b in zip(run(model, feeds), run_exactly(result.model, feeds), strict=True):
            assert a.dtype == b.dtype == np.float32
            assert sqnr(a, b) > 55


@pytest.mark.parametrize("public", ["hidden", "input"])
def test_inputs_and_outputs_become_half_where_asked(tmp_path: Path, public: str) -> None:
    net = Net(4, 8, 8)
    hidden = net.op("Relu", net.conv("x", 4, 4, name="c1"), name="hidden")
    y = net.conv(hidden, 4, 4, name="c2")
    model = net.save(tmp_path / "m.onnx", y, *([hidden] if public == "hidden" else []))
    options = Fp16Options(keep_io_types=False)
    for kept in ((), {"c2"}, {"c1", "hidden"}):
        result = _convert(model, keep_fp32=kept, options=options)
        specs = (*result.model.inputs, *result.model.outputs)
        assert {spec.dtype for spec in specs} == {"float16"}
        assert [s.name for s in specs] == [s.name for s in (*model.inputs, *model.outputs)]
        if not kept:
            assert not _casts(result)
        feeds = net.feed(2)
        half = {"x": feeds["x"].astype(np.float16)}
        for a, b in zip(run(model, feeds), run_exactly(result.model, half), strict=True):
            assert b.dtype == np.float16
            assert sqnr(a, b) > 45


def test_an_output_beyond_half_cannot_become_it(tmp_path: Path) -> None:
    net = Net(4)
    model = net.save(tmp_path / "m.onnx", net.op("Mul", "x", _scalar(net, "k", 1e5)))
    ranges = calibrate(model, [net.feed(32)], tensors=float_tensors(model.path))
    with pytest.raises(
        QuantizeError, match=r"'y' holds values up to .*, and float16 ends at 65504"
    ):
        _convert(model, ranges=ranges, options=Fp16Options(keep_io_types=False))


def test_values_within_a_factor_of_two_of_the_end_stay_float(tmp_path: Path) -> None:
    net = Net(4)
    model = net.save(
        tmp_path / "m.onnx",
        net.op("Mul", net.op("Tanh", "x", name="tanh"), _scalar(net, "k", 40000), name="wide"),
    )
    ranges = calibrate(model, [net.feed(64)], tensors=float_tensors(model.path))
    assert set(_reasons(_convert(model, ranges=ranges))) == {"wide"}


def test_long_sums_and_squares_stay_float_and_short_ones_do_not(tmp_path: Path) -> None:
    net = Net(3, 40, 40)
    plane = net.constant("plane", np.array([2, 3], np.int64))
    line = net.constant("line", np.array([-1], np.int64))
    ends = [
        net.op("GlobalAveragePool", "x", name="pool"),
        net.op("ReduceMean", "x", plane, name="mean"),
        net.op("ReduceMean", "x", line, name="short"),
        net.op("ReduceL2", "x", line, name="length"),
    ]
    result = _convert(net.save(tmp_path / "m.onnx", *ends))
    assert _reasons(result) == {
        "pool": "it adds up 1,600 values",
        "mean": "it adds up 1,600 values",
        "length": "ReduceL2 adds up squares or powers, wider than its result",
    }


def test_a_sum_of_integers_stands_beside_floats(tmp_path: Path) -> None:
    net = Net(3, 40)
    found = net.op("Greater", "x", net.constant("least", np.float32(0.5).reshape(())))
    count = net.op("Cast", found, to=TensorProto.INT64)
    axis = net.constant("axis", np.array([1], np.int64))
    count = net.op("ReduceSum", count, axis, name="count", keepdims=0)
    ends = net.op("Abs", "x", name="abs"), net.op("Cast", count, to=TensorProto.FLOAT)
    result = _convert(net.save(tmp_path / "m.onnx", *ends))
    assert "count" not in _reasons(result)
    assert _types(result)["abs"] == HALF


def test_the_insides_of_a_norm_stay_float(tmp_path: Path) -> None:
    net, model = encoder(tmp_path, norms="parts")
    result = _convert(model)
    parts = ("square", "variance", "guard", "root", "unit")
    assert set(_reasons(result)) == {f"norm{n}_{part}" for n in (1, 2) for part in parts}
    assert _convert(encoder(tmp_path)[1]).kept_fp32 == ()  # the operator keeps them so itself
    assert sqnr(run(model, net.feed(3))[0], run_exactly(result.model, net.feed(3))[0]) > 45


def test_a_guard_that_would_be_zero_stays_float_to_its_division(tmp_path: Path) -> None:
    net = Net(4, 8)
    line = net.constant("line", np.array([-1], np.int64))
    length = net.op("ReduceL1", "x", line, name="length")
    safe = net.op("Max", length, _scalar(net, "eps", 1e-12), name="safe")
    y = net.op("Div", "x", net.op("Expand", safe, net.op("Shape", "x"), name="wide"), name="unit")
    model = net.save(tmp_path / "m.onnx", net.op("Neg", y, name="end"))
    result = _convert(model)
    assert set(_reasons(result)) == {"safe", "wide", "unit"}
    assert "guard against 0 is 0 in float16" in _reasons(result)["safe"]
    zeros = {"x": np.zeros((2, 4, 8), np.float32)}
    assert not run_exactly(result.model, zeros)[0].any()  # 0 / 0 is NaN


def test_nodes_measured_to_lose_much_stay_float(tmp_path: Path) -> None:
    net = Net(64)
    shifted = net.op("Add", "x", _scalar(net, "shift", 1000), name="shifted")
    back = net.op("Sub", shifted, _scalar(net, "again", 999), name="back")
    model = net.save(tmp_path / "m.onnx", net.op("Relu", net.op("Neg", back, name="neg"), name="r"))
    losses = measure_rounding(model, [net.feed(16)])
    result = _convert(model, options=Fp16Options(losses))
    assert set(_reasons(result)) == {"shifted", "back"}
    assert "below 40 dB" in _reasons(result)["back"]
    reference, feeds = run(model, net.feed(16))[0], net.feed(16)
    assert sqnr(reference, run_exactly(result.model, feeds)[0]) > 55
    plain = convert_fp16(model, tmp_path / "plain.onnx").model
    assert sqnr(reference, run_exactly(plain, feeds)[0]) < 20
    other = measure_rounding(model, [net.feed(4)], half="bf16")
    with pytest.raises(QuantizeError, match="measured for bf16, not fp16"):
        _convert(model, options=Fp16Options(other))


@pytest.mark.parametrize("norms", ["node", "parts", None])
def test_strongly_typed_tensorrt_sees_no_stray_float(tmp_path: Path, norms: str | None) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    from export.tensorrt import BuildOptions, build_engine

    net, model = encoder(tmp_path, norms=norms) if norms else classifier(tmp_path)
    losses = measure_rounding(model, [net.feed(8)])
    result = _convert(model, options=Fp16Options(losses))
    floats = {name for name, kind in _types(result).items() if kind == FLOAT}
    kept = {skip.where for skip in result.kept_fp32}
    casts = {node.name for node in _casts(result)}
    assert floats - casts == kept
    build_engine(result.model, tmp_path / "e.engine", options=BuildOptions(targets=("SM89",)))


def test_sums_of_sums_behind_a_guard_are_looked_at_once_each(tmp_path: Path) -> None:
    """As many ways lead through them as two to the number of the sums."""
    net = Net(8)
    last = net.op("Add", "x", _scalar(net, "eps", 1e-9), name="guard")
    names = ["guard"]
    for number in range(64):
        names += [f"clip{number}", f"sum{number}"]
        bounds = (_scalar(net, f"{side}{number}", value) for side, value in (("l", -1), ("h", 1)))
        last = net.op("Add", last, net.op("Clip", last, *bounds, name=names[-2]), name=names[-1])
    result = _convert(net.save(tmp_path / "m.onnx", net.op("Neg", last, name="end")))
    assert set(_reasons(result)) == set(names)


def test_a_cast_to_another_type_stays_what_it_is(tmp_path: Path) -> None:
    net = Net(16)
    sign = net.op("Cast", net.op("Relu", "x", name="above"), to=TensorProto.BOOL, name="sign")
    exact = net.op("Cast", "x", to=TensorProto.DOUBLE, name="exact")
    back = net.op("Cast", net.op("Neg", exact), to=TensorProto.FLOAT, name="back")
    model = net.save(tmp_path / "m.onnx", net.op("Where", sign, back, "x", name="choice"))
    result = _convert(model)
    feeds = net.feed(6)
    assert _reasons(result) == {}
    found = run_exactly(result.model, feeds)[0]
    expected = np.where(feeds["x"] > 0, -feeds["x"], feeds["x"])
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_a_mask_that_the_graph_fills_stays_float_to_its_softmax(tmp_path: Path) -> None:
    net = Net(6, 6)
    fill = numpy_helper.from_array(np.full(1, -1e9, np.float32))
    zero = numpy_helper.from_array(np.full(1, 2**40, np.int64))
    shape = net.op("Shape", "x", name="shape")
    mask = net.op("ConstantOfShape", shape, value=fill, name="mask")
    count = net.op("ConstantOfShape", shape, value=zero, name="count")
    below = net.op("Trilu", mask, upper=1, name="below")
    masked = net.op("Add", "x", below, name="masked")
    y = net.op("Softmax", masked, name="softmax", axis=-1)
    model = net.save(tmp_path / "m.onnx", y, net.op("Cast", count, to=1, name="floats"))
    result = _convert(model)
    assert set(_reasons(result)) == {"mask", "below", "masked", "softmax"}
    assert sqnr(run(model, net.feed(2))[0], run_exactly(result.model, net.feed(2))[0]) > 40


@pytest.mark.parametrize(("axis", "kept"), [(2, {"sum"}), (1, set())])
def test_the_axes_of_a_sum_may_be_a_constant_of_the_graph(
    tmp_path: Path, axis: int, kept: set[str]
) -> None:
    net = Net(4, 2000)
    stored = numpy_helper.from_array(np.array([axis], np.int64))
    other = numpy_helper.from_array(np.array([1, 2, 3], np.int64))
    net.op("Constant", value=other, name="unused")
    axes = net.op("Constant", value=stored, name="axes")
    model = net.save(tmp_path / "m.onnx", net.op("ReduceSum", "x", axes, name="sum"))
    assert set(_reasons(_convert(model))) == kept
