"""The engines' own word on what they run in int8: ONNX Runtime and TensorRT for RTX."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from test_nets import Net, attention, classifier, run, sqnr

from export.artifacts import BATCH, OnnxModel, TensorSpec
from quantize.calibration.calibrate import calibrate
from quantize.half.fp16 import convert_fp16
from quantize.int8.insertion import quantize_int8
from quantize.scheme import PRESETS


def _quantize(model: OnnxModel, net: Net, target: str) -> OnnxModel:
    ranges = calibrate(model, [net.feed(32)])
    return quantize_int8(
        model, ranges, PRESETS[target], model.path.with_name(f"{target}.onnx")
    ).model


def _optimized(model: OnnxModel) -> Counter[str]:
    """Operators of the graph that ONNX Runtime really runs, counted."""
    path = model.path.with_name("optimized.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def _float_work(operators: Counter[str]) -> dict[str, int]:
    kinds = (
        "Conv",
        "FusedConv",
        "NhwcFusedConv",
        "Gemm",
        "FusedGemm",
        "MatMul",
        "FusedMatMul",
        "Add",
        "Concat",
        "MaxPool",
        "GlobalAveragePool",
        "Relu",
        "Clip",
    )
    return {kind: operators[kind] for kind in kinds if operators[kind]}


@pytest.mark.parametrize("opset", [13, 17, 19, 20, 21, 23])
def test_onnxruntime_runs_the_whole_classifier_in_int8(tmp_path: Path, opset: int) -> None:
    net, model = classifier(tmp_path, opset=opset)
    operators = _optimized(_quantize(model, net, "onnxruntime"))
    assert operators["QLinearConv"] == 6
    assert operators["QLinearAdd"] == 2
    assert operators["QGemm"] == 1
    assert operators["QLinearGlobalAveragePool"] == 1
    assert operators["DequantizeLinear"] == 0
    assert operators["QuantizeLinear"] == 1
    assert _float_work(operators) == {}


def test_the_count_tells_int8_from_float(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    assert _optimized(model)["QLinearConv"] == 0
    assert _optimized(_quantize(model, net, "tensorrt"))["QLinearConv"] == 0


def _conv_relu(net: Net) -> str:
    x = "x"
    for _ in range(3):
        x = net.op("Relu", net.conv(x, 8, 8))
    return x


def _conv_only(net: Net) -> str:
    return net.conv(net.conv(net.conv("x", 8, 8), 8, 8, bias=False), 8, 8)


def _residual(net: Net) -> str:
    x = net.op("Relu", net.conv("x", 8, 8))
    y = net.conv(net.op("Relu", net.conv(x, 8, 8)), 8, 8)
    return net.op("Relu", net.op("Add", x, y))


def _depthwise_clip6(net: Net) -> str:
    x = net.clip6(net.conv("x", 8, 8, kernel=1))
    return net.conv(net.clip6(net.conv(x, 8, 8, groups=8)), 8, 8, kernel=1)


def _max_pool(net: Net) -> str:
    x = net.op("Relu", net.conv("x", 8, 8))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    return net.conv(net.conv(x, 8, 8, groups=2), 8, 8)


def _concat(net: Net) -> str:
    x = net.op("Relu", net.conv("x", 8, 8))
    x = net.op("Concat", x, net.conv(x, 8, 8), axis=1)
    x = net.op("Transpose", net.conv(x, 16, 8), perm=[0, 1, 3, 2])
    return net.op("Relu", x)


def _two_readers(net: Net) -> str:
    x = net.op("Relu", net.conv("x", 8, 8))
    gate = net.op("Sigmoid", net.conv(x, 8, 8))
    return net.op("Mul", gate, net.conv(x, 8, 8))


@pytest.mark.parametrize(
    "build",
    [_conv_relu, _conv_only, _residual, _depthwise_clip6, _max_pool, _concat, _two_readers],
)
def test_onnxruntime_runs_every_conv_of_the_pattern_in_int8(tmp_path: Path, build) -> None:
    net = Net(8, 12, 12)
    model = net.save(tmp_path / "m.onnx", build(net))
    quantized = _quantize(model, net, "onnxruntime")
    operators = _optimized(quantized)
    assert operators["QLinearConv"] == 3
    work = _float_work(operators)
    # a Relu behind a Transpose belongs to no int8 operator
    assert work == ({"Relu": 1} if build is _concat else {})
    feeds = net.feed(5, seed=3)
    assert sqnr(run(model, feeds)[0], run(quantized, feeds)[0]) > 25


@pytest.mark.parametrize("trans", [0, 1])
def test_onnxruntime_runs_linear_layers_in_int8(tmp_path: Path, trans: int) -> None:
    net = Net(16)
    x = net.op("Relu", net.gemm("x", 16, 32, name="one", trans=trans))
    model = net.save(tmp_path / "m.onnx", net.gemm(x, 32, 8, name="two", trans=trans))
    operators = _optimized(_quantize(model, net, "onnxruntime"))
    assert operators["QGemm"] == 2
    assert _float_work(operators) == {}


def test_onnxruntime_runs_matmul_in_int8(tmp_path: Path) -> None:
    net = Net(5, 16)
    weight = net.constant("w", net.random.normal(0, 0.25, (16, 16)).astype(np.float32))
    bias = net.constant("b", net.random.normal(0, 0.25, 16).astype(np.float32))
    x = net.op("Gelu", net.op("Add", net.op("MatMul", "x", weight), bias))
    model = net.save(tmp_path / "m.onnx", net.op("MatMul", x, weight))
    quantized = _quantize(model, net, "onnxruntime")
    operators = _optimized(quantized)
    assert operators["MatMulIntegerToFloat"] + operators["QLinearMatMul"] == 2
    assert operators["MatMul"] == operators["FusedMatMul"] == 0
    assert sqnr(run(model, net.feed(4))[0], run(quantized, net.feed(4))[0]) > 30


def _rtx_build(model: OnnxModel, *, batch: int = 4) -> int:
    """Bytes of the engine that TensorRT for RTX builds ahead of time, with no GPU.

    Fails with the parser's or the builder's own message.
    """
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    messages: list[str] = []

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity, message) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                messages.append(message)

    logger = Log()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(model.path.read_bytes())
    errors = [parser.get_error(number).desc() for number in range(parser.num_errors)]
    assert parsed, errors
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.DISABLE_TIMING_CACHE)  # it would ask for a GPU
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    shape = model.inputs[0].shape[1:]
    profile.set_shape("x", (1, *shape), (batch, *shape), (2 * batch, *shape))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None, messages
    return int(engine.nbytes)


@pytest.mark.thorough
@pytest.mark.parametrize("opset", [17, 20, 23])
def test_tensorrt_builds_int8_fp16_and_both(tmp_path: Path, opset: int) -> None:
    net, model = classifier(tmp_path, opset=opset)
    int8 = _quantize(model, net, "tensorrt")
    fp16 = convert_fp16(model, tmp_path / "fp16.onnx").model
    both = convert_fp16(int8, tmp_path / "both.onnx").model
    assert all(_rtx_build(item) > 0 for item in (model, int8, fp16, both))


def test_tensorrt_builds_with_small_weights_transposed_convs_and_matmuls(tmp_path: Path) -> None:
    net = Net(8, 8, 8)
    x = net.op("Relu", net.conv("x", 8, 8, name="small"))
    weight = net.constant("up_w", net.random.normal(0, 0.2, (8, 4, 2, 2)).astype(np.float32))
    x = net.op("ConvTranspose", x, weight, strides=[2, 2], name="up")
    w = net.constant("w", net.random.normal(0, 0.25, (16, 8)).astype(np.float32))
    model = net.save(tmp_path / "m.onnx", net.op("MatMul", x, w, name="linear"))
    proto = onnx.load(model.path)
    small = onnx.numpy_helper.to_array(proto.graph.initializer[0]) * np.float32(1e-3)
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(small, "small_w"))
    onnx.save(proto, model.path)
    int8 = _quantize(model, net, "tensorrt")
    result = convert_fp16(int8, tmp_path / "both.onnx")
    assert [skip.reason for skip in result.kept_fp32] == [
        "its scale is not a normal float16 number"
    ]
    assert _rtx_build(int8) > 0
    assert _rtx_build(result.model) > 0


@pytest.mark.thorough
def test_tensorrt_builds_a_transformer_block(tmp_path: Path) -> None:
    net = Net(6, 32)
    int8 = _quantize(net.save(tmp_path / "m.onnx", attention(net)), net, "tensorrt")
    assert _rtx_build(int8) > 0
    assert _rtx_build(convert_fp16(int8, tmp_path / "both.onnx").model) > 0


def test_tensorrt_refuses_the_x86_file(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    with pytest.raises(AssertionError, match="stem_b_dequantized"):
        _rtx_build(_quantize(model, net, "onnxruntime"))


@pytest.mark.thorough
@pytest.mark.parametrize("opset", [18, 20])
def test_what_torch_exports_is_quantized_for_both_targets(tmp_path: Path, opset: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU6(),
        torch.nn.Conv2d(16, 16, 3, padding=1, groups=16),
        torch.nn.Hardswish(),
        torch.nn.Conv2d(16, 32, 1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 16, 10),
    ).eval()
    torch.nn.init.uniform_(net[1].running_var, 0.5, 2)
    path = tmp_path / "torch.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            net,
            (torch.zeros(2, 3, 16, 16),),
            path,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["x"],
            output_names=["y"],
            external_data=False,
            verbose=False,
        )
    feeds = Net(3, 16, 16).feed(16)
    with torch.no_grad():
        reference = net.double()(torch.from_numpy(feeds["x"]).double()).numpy()
    specs = (TensorSpec("x", (BATCH, 3, 16, 16), "float32"),)
    model = OnnxModel(path, specs, (TensorSpec("y", (BATCH, 10), "float32"),), opset)
    x86, tensorrt = (_quantize(model, Net(3, 16, 16), name) for name in ("onnxruntime", "tensorrt"))
    operators = _optimized(x86)
    assert operators["QLinearConv"] == 3
    assert operators["QGemm"] == 1
    for quantized in (x86, tensorrt):
        got = run(quantized, feeds)[0]
        assert sqnr(reference, got) > 25
        assert sqnr(reference, got[:, ::-1]) < 5
    assert _rtx_build(convert_fp16(tensorrt, tmp_path / "both.onnx").model) > 0


def _boxes_and_scores(net: Net, *, layout: bool) -> str:
    """Two heads a thousandfold apart in scale, put together for the caller."""
    x = net.op("Relu", net.conv("x", 8, 8))
    boxes, scores = net.conv(x, 8, 8, name="boxes"), net.conv(x, 8, 8, name="scores")
    for tensor in net.constants:
        if tensor.name.startswith("boxes_"):
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * 1000, tensor.name)
            )
    out = net.op("Concat", boxes, scores, axis=1)
    return net.op("Transpose", out, perm=[0, 2, 3, 1]) if layout else out


@pytest.mark.parametrize("layout", [False, True])
def test_scores_beside_boxes_in_one_output_keep_their_own_scale(
    tmp_path: Path, layout: bool
) -> None:
    net = Net(8, 12, 12)
    model = net.save(tmp_path / "m.onnx", _boxes_and_scores(net, layout=layout))
    quantized = _quantize(model, net, "onnxruntime")
    operators = _optimized(quantized)
    assert operators["QLinearConv"] == 3
    assert operators["QLinearConcat"] == 0
    assert _float_work(operators) == {"Concat": 1}
    feeds = net.feed(5, seed=3)
    exact, found = (
        np.moveaxis(run(which, feeds)[0], -1 if layout else 1, 0) for which in (model, quantized)
    )
    for head in (slice(0, 8), slice(8, 16)):
        assert sqnr(exact[head], found[head]) > 25


def test_a_concat_that_is_read_as_well_as_returned_runs_in_int8(tmp_path: Path) -> None:
    net = Net(8, 12, 12)
    x = net.op("Relu", net.conv("x", 8, 8))
    both = net.op("Concat", x, net.conv(x, 8, 8), axis=1)
    model = net.save(tmp_path / "m.onnx", net.conv(both, 16, 8), both)
    operators = _optimized(_quantize(model, net, "onnxruntime"))
    assert operators["QLinearConv"] == 3
    assert operators["QLinearConcat"] == 1
    assert _float_work(operators) == {}
