"""uint8 images are read by int8 layers as they are: no rounding, no QuantizeLinear, any data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.artifacts import BATCH, OnnxModel, TensorSpec
from quantize.audit.inputs import Splits, check_inputs, check_samples
from quantize.audit.profile import InputProfile
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.placement.pixels import move_bytes, shift_by_planes
from quantize.scheme import PRESETS


def draw(samples: int, low: int = 0, high: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (samples, 9, 9, 3), dtype=np.uint8)


def codes(*shape: int) -> np.ndarray:
    """Weights that int8 with a scale of 1/127 a channel holds as they are."""
    values = np.random.default_rng(1).integers(-126, 127, shape)
    values.reshape(shape[0], -1)[:, 0] = 127
    return (values / 127).astype(np.float32)


def make_net(folder: Path, *, moved: bool = True, shift: bool = False) -> OnnxModel:
    """A cast of uint8 [N, H, W, C], a convolution that pads, and Relu."""
    nodes = [helper.make_node("Cast", ["x"], ["floats"], name="cast", to=TensorProto.FLOAT)]
    last, constants = "floats", []
    if moved:
        nodes.append(helper.make_node("Transpose", [last], ["nchw"], perm=[0, 3, 1, 2]))
        last = "nchw"
    if shift:
        constants.append(numpy_helper.from_array(np.full((3, 1, 1), 100, np.float32), "mean"))
        nodes.append(helper.make_node("Sub", [last, "mean"], ["shifted"], name="sub"))
        last = "shifted"
    constants.append(numpy_helper.from_array(codes(4, 3 if moved else 9, 3, 3), "w"))
    nodes.append(helper.make_node("Conv", [last, "w"], ["y"], name="conv", pads=[1] * 4))
    shape = [BATCH, 9, 9, 3]
    out = [BATCH, 4, 9, 9 if moved else 3]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return OnnxModel(
        path,
        (TensorSpec("x", tuple(shape), "uint8"),),
        (TensorSpec("y", tuple(out), "float32"),),
        20,
    )


def quantize(model: OnnxModel, data: np.ndarray, target: str) -> onnx.ModelProto:
    path = model.path.with_name(f"{target}.onnx")
    ranges = calibrate(model, [{"x": data}])
    quantize_int8(model, ranges, PRESETS[target], path)
    return onnx.load(path)


def run(path: Path, images: np.ndarray, *, optimized: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": images})
    return np.asarray(found)


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def walk_back(model: onnx.ModelProto, name: str) -> list[onnx.NodeProto]:
    """What stands between the images and the layer `name`, the nearest first."""
    made = producers(model)
    tensor = next(node.input[0] for node in model.graph.node if node.name == name)
    found = []
    while tensor != "x":
        found.append(made[tensor])
        tensor = found[-1].input[0]
    return found


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(i) for i in model.graph.initializer if i.name == name)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("high", [256, 40], ids=["all pixels", "dark images"])
def test_an_int8_layer_reads_the_bytes_of_the_images(
    target: str, high: int, tmp_path: Path
) -> None:
    model = quantize(make_net(tmp_path), draw(16, high=high), target)
    kinds = [node.op_type for node in model.graph.node]
    assert not {"Cast", "QuantizeLinear"} & set(kinds[: kinds.index("Conv")])
    before = walk_back(model, "conv")
    # OpenVINO moves what is quantized, ONNX Runtime the bytes
    order = ["DequantizeLinear", "Transpose"]
    assert [node.op_type for node in before] == (order[::-1] if target == "openvino" else order)
    dequantize = next(node for node in before if node.op_type == order[0])
    assert [constant(model, name) for name in dequantize.input[1:]] == [1, 0]
    assert constant(model, dequantize.input[2]).dtype == np.uint8


def test_nothing_of_an_image_is_rounded(tmp_path: Path) -> None:
    """With weights that int8 holds exactly, all that is left is what float32 itself rounds."""
    images = draw(8, seed=3)
    quantize(make_net(tmp_path), draw(4, high=30), "openvino")
    found = run(tmp_path / "openvino.onnx", images, optimized=False)
    exact = nn.functional.conv2d(
        torch.from_numpy(images.transpose(0, 3, 1, 2)).double(),
        torch.from_numpy(codes(4, 3, 3, 3)).double(),
        padding=1,
    ).numpy()
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6 * abs(exact).max())


def test_images_that_nothing_moves_are_read_where_they_come_in(tmp_path: Path) -> None:
    model = quantize(make_net(tmp_path, moved=False), draw(8), "openvino")
    made = producers(model)
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    assert made[conv.input[0]].input[0] == "x"
    images = draw(2, seed=3)
    weight = torch.from_numpy(codes(4, 9, 3, 3)).double()
    exact = nn.functional.conv2d(torch.from_numpy(images).double(), weight, padding=1).numpy()
    found = run(tmp_path / "openvino.onnx", images, optimized=False)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6 * abs(exact).max())


def test_onnx_runtime_begins_with_an_integer_convolution(tmp_path: Path) -> None:
    quantize(make_net(tmp_path), draw(16), "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        str(tmp_path / "onnxruntime.onnx"), options, providers=["CPUExecutionProvider"]
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "QLinearConv" in kinds
    assert not {"QuantizeLinear", "Cast", "Conv"} & set(kinds)


def test_what_was_shifted_is_calibrated_as_anything_else(tmp_path: Path) -> None:
    model = quantize(make_net(tmp_path, shift=True), draw(16), "onnxruntime")
    kinds = [node.op_type for node in walk_back(model, "conv")]
    assert kinds[:3] == ["DequantizeLinear", "QuantizeLinear", "BatchNormalization"]
    images = draw(4, seed=3)
    found, exact = (
        run(tmp_path / f"{name}.onnx", images, optimized=False).astype(np.float64)
        for name in ("onnxruntime", "model")
    )
    assert 10 * np.log10((exact**2).sum() / ((found - exact) ** 2).sum()) > 30


def test_a_shift_by_planes_changes_no_bit_and_is_for_onnx_runtime_alone(tmp_path: Path) -> None:
    model = make_net(tmp_path, shift=True)
    proto = onnx.load(model.path)
    shift_by_planes(proto)
    onnx.checker.check_model(proto, full_check=True)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds == ["Cast", "Transpose", "BatchNormalization", "Conv"]
    assert "mean" not in {item.name for item in proto.graph.initializer}
    onnx.save(proto, tmp_path / "planes.onnx")
    images = draw(3, seed=4)
    np.testing.assert_array_equal(
        run(tmp_path / "planes.onnx", images), run(tmp_path / "model.onnx", images)
    )
    kinds = [node.op_type for node in quantize(model, draw(16), "openvino").graph.node]
    assert "Sub" in kinds


def test_other_differences_stay_as_they_are(tmp_path: Path) -> None:
    """Of images by position, of one number for all channels, and before the channels are first."""
    for value, source in (
        (np.ones((3, 9, 9)), "nchw"),
        (np.ones((1, 1, 1)), "nchw"),
        (np.ones((3, 1, 1)), "floats"),
    ):
        proto = onnx.load(make_net(tmp_path).path)
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), "c"))
        proto.graph.node.append(helper.make_node("Sub", [source, "c"], ["z"], name="sub"))
        before = [node.op_type for node in proto.graph.node]
        shift_by_planes(proto)
        assert [node.op_type for node in proto.graph.node] == before


def test_tensorrt_has_no_codes_for_pixels_and_keeps_the_cast(tmp_path: Path) -> None:
    model = quantize(make_net(tmp_path), draw(16), "tensorrt")
    kinds = [node.op_type for node in model.graph.node]
    assert {"Cast", "Transpose", "QuantizeLinear"} <= set(kinds)


def test_a_layer_that_is_kept_float_keeps_its_floats(tmp_path: Path) -> None:
    model = make_net(tmp_path)
    proto = onnx.load(model.path)
    proto.graph.node.append(
        helper.make_node("Conv", ["nchw", "w"], ["z"], name="other", pads=[1] * 4)
    )
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, [BATCH, 4, 9, 9])
    proto.graph.output.append(value)
    onnx.save(proto, model.path)
    scheme = replace(PRESETS["onnxruntime"], keep_float=frozenset({"other"}))
    path = tmp_path / "mixed.onnx"
    quantize_int8(model, calibrate(model, [{"x": draw(8)}]), scheme, path)
    mixed = onnx.load(path)
    kinds = {name: [n.op_type for n in walk_back(mixed, name)] for name in ("conv", "other")}
    assert kinds == {"conv": ["DequantizeLinear", "Transpose"], "other": ["Transpose", "Cast"]}


class TestAudit:
    def test_pixels_are_not_taken_for_floats_that_were_not_scaled(self) -> None:
        splits = Splits(self.profile(draw(40)), self.profile(draw(40, seed=1)))
        assert [*check_inputs(splits), *check_samples(splits)] == []

    def test_images_that_were_scaled_before_they_became_bytes_are_told(self) -> None:
        splits = Splits(self.profile(draw(40, high=2)), self.profile(draw(40, high=2, seed=1)))
        (finding,) = check_inputs(splits)
        assert "nothing but 0 and 1" in finding.words

    def test_black_images_and_drift_of_a_channel_are_told(self) -> None:
        black = draw(40)
        black[:3] = 0
        drifted = draw(40, seed=1)
        drifted[..., 2] //= 8
        splits = Splits(self.profile(black), self.profile(drifted))
        assert "3 of the 40 calibration samples" in next(check_samples(splits)).words
        (finding,) = check_inputs(splits)
        assert finding.words.startswith("Channel 2 of input 'x'")

    @staticmethod
    def profile(images: np.ndarray) -> InputProfile:
        profile = InputProfile()
        profile.take({"x": images})
        return profile


def test_bytes_are_moved_as_their_floats_were_however_often(tmp_path: Path) -> None:
    moves = [
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 1, 3, 2]),
        helper.make_node("Transpose", ["c"], ["d"], perm=[0, 1, 3, 2]),
    ]
    nodes = move_bytes("x", moves, "y")
    value = helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 9, 9, 3])
    result = helper.make_tensor_value_info("y", TensorProto.UINT8, [2, 3, 9, 9])
    graph = helper.make_graph(nodes, "net", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "moves.onnx")
    images = draw(2)
    found = run(tmp_path / "moves.onnx", images)
    np.testing.assert_array_equal(found, images.transpose(0, 3, 1, 2))


def test_what_is_no_constant_a_channel_of_the_image_is_taken_off_as_it_was() -> None:
    """Three means of a gray image make three channels of it; a computed mean is none."""
    for channels, computed in ((1, False), (3, True)):
        images = helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 9, 9, channels])
        result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 9, 9])
        nodes = [
            helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["floats"], ["nchw"], perm=[0, 3, 1, 2]),
            helper.make_node("GlobalMaxPool", ["nchw"], ["largest"]),
            helper.make_node("Sub", ["nchw", "largest" if computed else "mean"], ["y"]),
        ]
        mean = numpy_helper.from_array(np.arange(3, dtype=np.float32).reshape(3, 1, 1), "mean")
        graph = helper.make_graph(nodes, "net", [images], [result], [mean])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
        onnx.checker.check_model(model, full_check=True)
        before = model.SerializeToString()
        shift_by_planes(model)
        assert [node.op_type for node in model.graph.node][-1] == "Sub"
        assert onnx.ModelProto.FromString(before).graph.node == model.graph.node
