"""Weights of 4 and 8 bits: the bytes mean what ONNX and ONNX Runtime say, and engines agree."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from encoder_net import encoder
from onnx import helper, numpy_helper
from test_nets import Net, classifier, run, run_exactly, sqnr

from deploy.engines.openvino_core import open_core
from export.artifacts import OnnxModel
from export.errors import NothingToQuantizeError, QuantizeError
from export.onnx.tensor_types import read_precision
from quantize.int8.insertion import Int8Result
from quantize.transformers.blockwise import pack, quantize_blocks
from quantize.transformers.weight_only import WEIGHT_PRESETS, WeightScheme, quantize_weights

LINEAR = {"q", "k", "v", "out", "up", "down", "gemm"}


def _quantize(model: OnnxModel, scheme: WeightScheme) -> Int8Result:
    before = model.path.read_bytes()
    result = quantize_weights(model, scheme, model.path.with_name("weights.onnx"))
    assert model.path.read_bytes() == before
    onnx.checker.check_model(str(result.model.path))
    return result


def _product(folder: Path, inputs: int, outputs: int, opset: int = 21) -> tuple[Net, OnnxModel]:
    net = Net(5, inputs, opset=opset)
    weight = net.random.standard_t(4, (inputs, outputs)).astype(np.float32)
    return net, net.save(folder / "m.onnx", net.op("MatMul", "x", net.constant("w", weight)))


def _unpack(model: OnnxModel) -> np.ndarray:
    """[K, N] in float64 of the one MatMulNBits of a model, read byte by byte."""
    graph = onnx.load(model.path).graph
    (node,) = graph.node
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    codes, scales, *zeros = (stored[name] for name in node.input[1:])
    size, bits = values["block_size"], values["bits"]
    result = np.empty((values["K"], values["N"]))
    for k in range(values["K"]):
        block, inside = divmod(k, size)
        if bits == 8:
            code, zero = codes[:, block, inside], zeros[0][:, block] if zeros else 128
        else:
            code = codes[:, block, inside // 2] >> (4 * (inside % 2)) & 15
            zero = zeros[0][:, block // 2] >> (4 * (block % 2)) & 15 if zeros else 8
        result[k] = (code.astype(float) - zero) * scales[:, block].astype(float)
    return result


def _openvino(model: OnnxModel, feeds: dict[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """The answer with float activations, and the types that its matrix products read weights in."""
    pytest.importorskip("openvino", reason="needs OpenVINO")
    core = open_core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = core.compile_model(core.read_model(model.path), "CPU", options)
    info = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [
        str(entry["runtimePrecision"].value)
        for entry in info
        if str(entry["layerType"].value) == "FullyConnected"
    ]
    return compiled(feeds)[0], kinds


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 128), (8, 32), (8, 64)])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 61), (97, 64)])
def test_onnxruntime_reads_the_packed_bytes_as_written(
    tmp_path: Path, symmetric: bool, bits: int, block: int, inputs: int, outputs: int
) -> None:
    net, model = _product(tmp_path, inputs, outputs)
    result = _quantize(model, WeightScheme(bits, block, symmetric))
    feeds = net.feed(3)
    dense = _unpack(result.model)
    expected = feeds["x"].astype(np.float64) @ dense
    got = run(result.model, feeds)[0]
    assert np.abs(got - expected).max() < 3e-6 * np.abs(expected).max()
    weight = numpy_helper.to_array(net.constants[0])
    assert sqnr(weight, dense) > (16 if bits == 4 else 40)
    quantized = run(
        _quantize(model, WeightScheme(bits, block, symmetric, accuracy_level=4)).model, feeds
    )
    assert 33 < sqnr(expected, quantized[0]) < 70  # activations in int8, and not in float


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["matmul_nbits", "dequantize"])
def test_openvino_multiplies_with_the_packed_weights(
    tmp_path: Path, symmetric: bool, bits: int, form: str
) -> None:
    net, model = _product(tmp_path, 96, 64)
    result = _quantize(model, WeightScheme(bits, 32, symmetric, form))
    got, kinds = _openvino(result.model, net.feed(3))
    assert kinds in ([f"u{bits}"], [f"i{bits}"])
    packed = _quantize(model, WeightScheme(bits, 32, symmetric)).model
    expected = net.feed(3)["x"].astype(np.float64) @ _unpack(packed)
    assert np.abs(got - expected).max() < 3e-6 * np.abs(expected).max()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_both_forms_hold_the_same_numbers(tmp_path: Path, symmetric: bool, bits: int) -> None:
    net, model = _product(tmp_path, 128, 33)
    dense = _quantize(model, WeightScheme(bits, 64, symmetric, "dequantize")).model
    got = run_exactly(dense, net.feed(2))[0]  # ONNX's own reference
    packed = _quantize(model, WeightScheme(bits, 64, symmetric)).model
    expected = net.feed(2)["x"].astype(np.float64) @ _unpack(packed)
    assert np.abs(got - expected).max() < 3e-6 * np.abs(expected).max()


@pytest.mark.parametrize("preset", ["int8", "int4"])
def test_the_presets_take_every_weighted_product(tmp_path: Path, preset: str) -> None:
    net, model = encoder(tmp_path)
    result = _quantize(model, WEIGHT_PRESETS[preset])
    assert set(result.quantized) == LINEAR
    assert {skip.where for skip in result.skipped} == {"scores", "mixed"}
    least, size = {"int8": (30, 0.40), "int4": (14, 0.28)}[preset]
    feeds = net.feed(4)
    assert sqnr(run(model, feeds)[0], run(result.model, feeds)[0]) > least
    assert result.model.path.stat().st_size < size * model.path.stat().st_size
    assert read_precision(result.model.path) == preset


@pytest.mark.parametrize("symmetric", [True, False])
def test_four_bits_lose_less_than_onnxruntimes_own(tmp_path: Path, symmetric: bool) -> None:
    tools = pytest.importorskip(
        "onnxruntime.quantization.matmul_nbits_quantizer", reason="its own tools"
    )
    net, model = _product(tmp_path, 256, 64)
    theirs = tools.MatMulNBitsQuantizer(
        onnx.load(model.path), bits=4, block_size=32, is_symmetric=symmetric
    )
    theirs.process()
    path = tmp_path / "theirs.onnx"
    onnx.save(theirs.model.model, path)
    weight = numpy_helper.to_array(net.constants[0])
    ours = _unpack(_quantize(model, WeightScheme(4, 32, symmetric)).model)
    peer = _unpack(OnnxModel(path, model.inputs, model.outputs, model.opset))
    assert sqnr(weight, ours) > sqnr(weight, peer) + 0.1


def test_eight_bits_round_to_the_nearest_code() -> None:
    weight = np.random.default_rng(3).normal(0, 1, (70, 9)).astype(np.float32)
    blocks = quantize_blocks(weight, 8, 32, symmetric=False)
    dense = (blocks.codes.astype(float) - blocks.zero_points[..., None]) * blocks.scales[..., None]
    error = np.abs(dense.reshape(9, -1)[:, :70].T - weight)
    steps = np.repeat(blocks.scales, 32, axis=1)[:, :70].T
    assert (error <= steps * 1.01).all()  # half a step, but where the zero point was rounded
    assert ((error / steps) ** 2).mean() < 1.05 / 12  # the variance of rounding


def test_blocks_of_zeros_and_single_extremes_are_exact() -> None:
    weight = np.zeros((64, 3), np.float32)
    weight[5, 1], weight[40, 1], weight[7, 2] = 3.0, -2.0, -1e30
    for symmetric in (True, False):
        for bits in (4, 8):
            blocks = quantize_blocks(weight, bits, 32, symmetric=symmetric)
            codes = blocks.codes.astype(float) - blocks.zero_points[..., None]
            dense = (codes * blocks.scales[..., None]).reshape(3, 64).T
            np.testing.assert_allclose(dense, weight, rtol=1e-6)


def test_odd_numbers_of_codes_are_packed_low_half_first() -> None:
    assert pack(np.array([[1, 2, 3]], np.uint8), 4).tolist() == [[0x21, 0x03]]
    assert pack(np.array([[1, 2, 3]], np.uint8), 8).tolist() == [[1, 2, 3]]


def test_a_last_block_that_is_shorter_stays_float_in_onnxs_form(tmp_path: Path) -> None:
    _, model = _product(tmp_path, 97, 64)
    with pytest.raises(NothingToQuantizeError, match="97 inputs are no multiple of the block"):
        _quantize(model, WeightScheme(8, form="dequantize"))


def test_what_cannot_be_is_refused_in_words(tmp_path: Path) -> None:
    _, old = _product(tmp_path, 64, 64, opset=20)
    with pytest.raises(QuantizeError, match="opset 20 cannot hold blocks of weights"):
        _quantize(old, WeightScheme(4, form="dequantize"))
    with pytest.raises(QuantizeError, match="3 bits in blocks of 32 have no kernel"):
        WeightScheme(3)
    with pytest.raises(QuantizeError, match="8 bits in blocks of 48 have no kernel"):
        WeightScheme(8, 48)
    with pytest.raises(QuantizeError, match="is the float model itself"):
        quantize_weights(old, WeightScheme(8), old.path)
    _, convolutional = classifier(tmp_path)
    with pytest.raises(NothingToQuantizeError, match="too few to gain by"):
        _quantize(convolutional, WeightScheme(8))
