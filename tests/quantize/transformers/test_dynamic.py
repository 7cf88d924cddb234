"""Dynamic int8: the integers of ONNX's own definition, and ONNX Runtime's fused kernels."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from encoder_net import encoder
from onnx import numpy_helper
from test_nets import Net, classifier, run, sqnr

from deploy.candidates.schemes import choose_levels
from export.artifacts import OnnxModel
from export.errors import NothingToQuantizeError, QuantizeError
from quantize.int8.insertion import Int8Result
from quantize.transformers.dynamic import quantize_dynamic

LINEAR = {"q", "k", "v", "out", "up", "down", "gemm"}


def _quantize(model: OnnxModel, **options) -> Int8Result:
    before = model.path.read_bytes()
    result = quantize_dynamic(model, model.path.with_name("dynamic.onnx"), **options)
    assert model.path.read_bytes() == before
    onnx.checker.check_model(str(result.model.path), full_check=True)
    return result


def _executed(model: OnnxModel) -> list[str]:
    """Operators of the graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    path = model.path.with_name("optimized.onnx")
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    onnxruntime.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def _product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x @ weight by the definition of DynamicQuantizeLinear, in integers and float64."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (np.float32(high) - np.float32(low)) / np.float32(255)
    zero = int(np.rint(np.float32(0 - low) / scale))
    codes = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64)
    unit = np.abs(weight).max(0) / choose_levels()
    return (codes - zero) @ np.rint(weight / unit).astype(np.int64) * np.float64(scale) * unit


@pytest.mark.parametrize("transposed", [None, 0, 1])
def test_it_computes_what_the_definition_says(tmp_path: Path, transposed: int | None) -> None:
    net = Net(97)
    if transposed is None:
        weight = net.random.normal(0, 0.1, (97, 61)).astype(np.float32)
        y = net.op("MatMul", "x", net.constant("w", weight), name="product")
    else:
        y = net.gemm("x", 97, 61, trans=transposed)
    result = _quantize(net.save(tmp_path / "m.onnx", y), levels=choose_levels())
    feeds = net.feed(5)
    weight = numpy_helper.to_array(net.constants[0]).astype(np.float64)
    bias = numpy_helper.to_array(net.constants[1]) if transposed is not None else 0
    expected = _product(feeds["x"], weight.T if transposed else weight) + bias
    np.testing.assert_allclose(run(result.model, feeds)[0], expected, atol=2e-6)


@pytest.mark.parametrize("opset", [17, 20, 23])
def test_onnxruntime_runs_every_weighted_product_in_int8(tmp_path: Path, opset: int) -> None:
    if opset < 20:
        net = Net(7, 96, opset=opset)
        x = net.op("MatMul", "x", net.constant("w", np.eye(96, 61, dtype=np.float32)), name="q")
        model, names = net.save(tmp_path / "m.onnx", x), {"q"}
    else:
        net, model = encoder(tmp_path, opset=opset)
        names = LINEAR
    result = _quantize(model)
    assert set(result.quantized) == names
    kinds = _executed(result.model)
    fused = [kind for kind in kinds if kind in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")]
    assert len(fused) == len(names)
    assert not {"Gemm", "MatMulInteger", "FusedGemm"} & set(kinds)
    assert sum("MatMul" in kind for kind in kinds) <= len(names) + 2  # attention's own two


def test_the_answers_stay_and_the_file_shrinks(tmp_path: Path) -> None:
    net, model = encoder(tmp_path)
    result = _quantize(model)
    for batch in (1, 3):
        feeds = net.feed(batch, seed=5)
        (reference,), (got,) = run(model, feeds), run(result.model, feeds)
        assert got.shape == reference.shape
        assert 25 < sqnr(reference, got) < 60
    assert result.model.path.stat().st_size < 0.35 * model.path.stat().st_size


def test_it_is_as_accurate_as_onnxruntimes_own(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization", reason="its own tools")
    net, model = encoder(tmp_path)
    theirs = tmp_path / "theirs.onnx"
    quantization.quantize_dynamic(
        model.path, theirs, per_channel=True, weight_type=quantization.QuantType.QInt8
    )
    feeds = net.feed(16)
    reference = run(model, feeds)[0]
    ours = run(_quantize(model).model, feeds)[0]
    assert sqnr(reference, ours) > sqnr(reference, run(theirs, feeds)[0]) - 0.2


def test_weights_and_activations_in_common_are_quantized_once(tmp_path: Path) -> None:
    net = Net(7, 64)
    weight = net.constant("w", net.random.normal(0, 1, (64, 64)).astype(np.float32))
    x = net.op("Relu", "x")
    y = net.op("Add", net.op("MatMul", x, weight), net.op("MatMul", x, weight, name="again"))
    z = net.op("MatMul", y, weight, name="third")
    result = _quantize(net.save(tmp_path / "m.onnx", z))
    proto = onnx.load(result.model.path)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("DynamicQuantizeLinear") == 2
    assert {item.name for item in proto.graph.initializer} == {"w_quantized", "w_scale"}


def test_what_it_leaves_alone_has_a_reason(tmp_path: Path) -> None:
    _, model = encoder(tmp_path)
    result = _quantize(model, keep_float={"up", "gemm"})
    assert set(result.quantized) == LINEAR - {"up", "gemm"}
    reasons = {skip.where: skip.reason for skip in result.skipped}
    assert reasons == {
        "scores": "its weights are not constant",
        "mixed": "its weights are not constant",
        "up": "kept float as asked",
        "gemm": "kept float as asked",
    }


def test_small_batched_and_scaled_products_stay_float(tmp_path: Path) -> None:
    net = Net(8, 64)
    small = net.op("MatMul", "x", net.constant("s", np.ones((64, 3), np.float32)), name="small")
    batched = np.ones((1, 64, 128), np.float32)
    wide = net.op("MatMul", "x", net.constant("b", batched), name="batched")
    flat = net.op("Flatten", "x")
    head = net.constant("h", np.ones((512, 61), np.float32))
    scaled = net.op("Gemm", flat, head, name="scaled", alpha=2.0)
    model = net.save(tmp_path / "m.onnx", small, wide, scaled)
    with pytest.raises(NothingToQuantizeError, match="small: 64x3 weights are too few"):
        _quantize(model)


def test_a_convolutional_net_has_nothing_for_it(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    with pytest.raises(NothingToQuantizeError, match=r"16x10 weights are too few|10x16 weights"):
        _quantize(model)


def test_dead_channels_and_zero_inputs_give_zero(tmp_path: Path) -> None:
    net = Net(7, 64)
    weight = net.random.normal(0, 1, (64, 65)).astype(np.float32)
    weight[:, 3] = 0
    model = net.save(tmp_path / "m.onnx", net.op("MatMul", "x", net.constant("w", weight)))
    result = _quantize(model)
    assert not run(result.model, net.feed(2))[0][..., 3].any()
    zeros = {"x": np.zeros((2, 7, 64), np.float32)}
    assert not run(result.model, zeros)[0].any()


def test_bad_weights_names_and_opsets_are_refused_in_words(tmp_path: Path) -> None:
    net = Net(7, 64)
    weight = np.ones((64, 64), np.float32)
    weight[3, 4] = np.nan
    y = net.op("MatMul", "x", net.constant("w", weight), name="bad")
    model = net.save(tmp_path / "m.onnx", y)
    with pytest.raises(QuantizeError, match="weights of bad hold NaN"):
        _quantize(model)
    with pytest.raises(QuantizeError, match="names no node of the model: nowhere"):
        _quantize(model, keep_float={"nowhere"})
    with pytest.raises(QuantizeError, match="is the float model itself"):
        quantize_dynamic(model, model.path)
    old = Net(64, opset=10)
    product = old.op("MatMul", "x", old.constant("w", np.ones((64, 64), np.float32)))
    with pytest.raises(QuantizeError, match="opset 10 has no DynamicQuantizeLinear"):
        _quantize(old.save(tmp_path / "old.onnx", product))
