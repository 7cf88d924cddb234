"""A layer that is kept float runs in float in ONNX Runtime, whose optimizer would rather not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.candidates.schemes import choose_scheme
from deploy.engines.openvino_core import open_core
from export.artifacts import BATCH, OnnxModel, TensorSpec
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.scheme import PRESETS, QuantScheme

OUTLIER = 1e3
"""Weight for an input channel that is always 0: int8 with one scale rounds all others away."""


def make_model(kind: str, channels: int, path: Path) -> OnnxModel:
    """A first layer in int8, the layer ``kept`` that int8 would ruin, and a last one in int8."""
    rng = np.random.default_rng(0)
    wide = 6

    def conv(inputs: int, outputs: int) -> np.ndarray:
        return rng.standard_normal((outputs, inputs, 3, 3)).astype(np.float32) / inputs

    tensors = {"w0": conv(channels, wide), "w1": conv(wide, wide), "w2": conv(wide, 4)}
    tensors["w0"][0] = 0
    shape: list[int | str] = [BATCH, channels, 8, 8]
    pads = {"pads": [1] * 4}
    nodes = [helper.make_node("Conv", ["x", "w0"], ["a"], "first", **pads)]
    if kind == "ConvTranspose":
        tensors["w1"][0] = OUTLIER
        nodes.append(helper.make_node("ConvTranspose", ["a", "w1"], ["b"], "kept", **pads))
    elif kind == "Conv":
        tensors["w1"][:, 0] = OUTLIER
        nodes.append(helper.make_node("Conv", ["a", "w1"], ["b"], "kept", **pads))
    elif kind == "behind a Transpose":  # which ONNX Runtime folds before it quantizes
        tensors["w1"][0] = OUTLIER
        nodes.append(helper.make_node("Transpose", ["w1"], ["w1t"], "turned", perm=[1, 0, 2, 3]))
        nodes.append(helper.make_node("Conv", ["a", "w1t"], ["b"], "kept", **pads))
    elif kind == "grouped":
        tensors["w1"] = conv(2, wide)
        tensors["w1"][:2, 0] = OUTLIER
        nodes.append(helper.make_node("Conv", ["a", "w1"], ["b"], "kept", group=3, **pads))
    if kind == "Gemm":
        tensors["w1"] = rng.standard_normal((wide, 5)).astype(np.float32)
        tensors["w1"][0] = OUTLIER
        tensors["bias"] = np.ones(5, np.float32)
        nodes += [
            helper.make_node("GlobalAveragePool", ["a"], ["p"], "pool"),
            helper.make_node("Flatten", ["p"], ["f"], "flat"),
            helper.make_node("Gemm", ["f", "w1", "bias"], ["y"], "kept"),
        ]
        del tensors["w2"]
    else:
        nodes.append(helper.make_node("Conv", ["b", "w2"], ["y"], "last", **pads))
    output: list[int | str] = [BATCH, 5] if kind == "Gemm" else [BATCH, 4, 8, 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)
    signature = [TensorSpec(n, tuple(s), "float32") for n, s in (("x", shape), ("y", output))]
    return OnnxModel(path, (signature[0],), (signature[1],), 20)


def sqnr(expected: np.ndarray, ours: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(ours - expected).sum()))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["Conv", "grouped", "ConvTranspose", "Gemm", "behind a Transpose"])
def test_what_is_kept_float_keeps_its_weights(kind: str, target: str, tmp_path: Path) -> None:
    model = make_model(kind, 3, tmp_path / "model.onnx")
    x = np.random.default_rng(1).standard_normal((16, 3, 8, 8)).astype(np.float32)
    ranges = calibrate(model, [{"x": x}], observer="minmax")
    scheme = replace(choose_scheme(target), keep_float=frozenset({"kept"}))
    mixed = quantize_int8(model, ranges, scheme, tmp_path / "mixed.onnx").model
    assert any(node.op_type == "QuantizeLinear" for node in onnx.load(mixed.path).graph.node)
    onnx.checker.check_model(onnx.load(mixed.path), full_check=True)
    expected = onnxruntime.InferenceSession(str(model.path)).run(None, {"x": x})[0]
    if target == "openvino":
        pytest.importorskip("openvino")
        compiled = open_core().compile_model(
            str(mixed.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        ours = compiled([x])[0]
    else:
        ours = onnxruntime.InferenceSession(str(mixed.path)).run(None, {"x": x})[0]
    assert sqnr(expected, ours) > 25


def onnxruntime_sqnr(channels: int, scheme: QuantScheme, folder: Path) -> float:
    """Of the mix, against the float model, both in ONNX Runtime."""
    model = make_model("Conv", channels, folder / "model.onnx")
    x = np.random.default_rng(1).standard_normal((16, channels, 8, 8)).astype(np.float32)
    ranges = calibrate(model, [{"x": x}], observer="minmax")
    mixed = quantize_int8(model, ranges, scheme, folder / "mixed.onnx").model
    expected, ours = (
        onnxruntime.InferenceSession(str(each.path)).run(None, {"x": x})[0]
        for each in (model, mixed)
    )
    return sqnr(expected, ours)


def test_float_layers_of_one_channel_read_what_was_before_the_pair(tmp_path: Path) -> None:
    scheme = replace(PRESETS["onnxruntime"], keep_float=frozenset({"first", "kept"}))
    assert onnxruntime_sqnr(1, scheme, tmp_path) > 25


def test_without_the_guard_onnxruntime_ruins_the_layer(tmp_path: Path) -> None:
    """The oracle of the tests above: they would see it."""
    scheme = replace(
        PRESETS["onnxruntime"], keep_float=frozenset({"kept"}), guards_float_layers=False
    )
    assert onnxruntime_sqnr(3, scheme, tmp_path) < 5
