"""The census agrees with counts by hand: layers, MACs by precision, what stays float, and where."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "quantize"))
from test_nets import Net, classifier

import deploy.measuring.census
from deploy.engines.base import EngineSpec
from deploy.engines.process import call_in_child
from deploy.engines.tensorrt_layers import match_layers
from deploy.measuring.census import Census, take_census
from export.artifacts import OnnxModel
from export.errors import EngineError
from export.tensorrt.inspection import read_inspection
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.scheme import PRESETS

ENGINES = ("onnxruntime", "openvino")
LAYERS = ("stem", "block_a", "block_b", "depthwise", "main", "shortcut", "head")
MACS = {
    "stem": 16 * 16 * 8 * 3 * 9,
    "block_a": 16 * 16 * 8 * 8 * 9,
    "block_b": 16 * 16 * 8 * 8 * 9,
    "depthwise": 8 * 8 * 8 * 9,
    "main": 4 * 4 * 16 * 8 * 9,
    "shortcut": 4 * 4 * 16 * 8,
    "head": 16 * 10,
}


def _census(model: OnnxModel, engine: str, precision: str, feeds: dict[str, np.ndarray]) -> Census:
    spec = EngineSpec(engine, precision, str(model.path), 1)
    census: Census = call_in_child("deploy.measuring.census:take_census", spec=spec, feeds=feeds)
    return census


def _quantize(net: Net, model: OnnxModel, engine: str) -> OnnxModel:
    ranges = calibrate(model, [net.feed(16)])
    path = model.path.with_name(f"{engine}.onnx")
    return quantize_int8(model, ranges, PRESETS[engine], path).model


def _by_precision(census: Census) -> dict[str, int]:
    return {share.precision: share.macs for share in census.precisions if share.macs}


@pytest.mark.thorough
@pytest.mark.parametrize("engine", ENGINES)
def test_all_macs_are_found_in_the_precision_of_the_file(tmp_path: Path, engine: str) -> None:
    net, model = classifier(tmp_path)
    feeds = net.feed(2)
    floats = _census(model, engine, "fp32", feeds)
    int8 = _census(_quantize(net, model, engine), engine, "int8", feeds)
    assert _by_precision(floats) == {"fp32": 2 * sum(MACS.values())}
    assert _by_precision(int8) == {"int8": 2 * sum(MACS.values())}
    assert not floats.remainder


def test_macs_are_those_of_the_sizes_that_were_run(tmp_path: Path) -> None:
    sizes = ["batch", 3, "height", "width"]
    ends = [onnx.helper.make_tensor_value_info(n, 1, sizes if n == "x" else None) for n in "xy"]
    weight = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv", strides=[2, 1])
    graph = onnx.helper.make_graph([node], "net", ends[:1], ends[1:], [weight])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m")
    spec = EngineSpec("onnxruntime", "fp32", str(tmp_path / "m"), 1)
    for batch, height, width in ((2, 9, 8), (1, 12, 5)):
        census = take_census(spec, {"x": np.ones((batch, 3, height, width), np.float32)})
        assert census.macs == batch * ((height - 1) // 2) * (width - 2) * 4 * 27


@pytest.mark.parametrize("engine", ENGINES)
def test_every_layer_with_macs_has_its_time_under_its_own_name(tmp_path: Path, engine: str) -> None:
    net, model = classifier(tmp_path)
    for item, precision in ((model, "fp32"), (_quantize(net, model, engine), "int8")):
        census = _census(item, engine, precision, net.feed(1))
        assert set(LAYERS) <= set(census.layer_seconds)
        assert all(census.layer_seconds[name] > 0 for name in LAYERS)
        named = sum(census.layer_seconds.values())
        assert named + census.reformat_seconds <= census.seconds * 1.0001
        assert 0 < census.seconds < 0.1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_float_remainder_is_named_with_its_share(tmp_path: Path, engine: str) -> None:
    net = Net(8, 32, 32)
    x = net.op("Relu", net.conv("x", 8, 8, name="first"))
    x = net.op("Elu", x, name="elu")
    model = net.save(tmp_path / "m.onnx", net.conv(x, 8, 8, name="second"))
    census = _census(_quantize(net, model, engine), engine, "int8", net.feed(1))
    if engine == "openvino":  # it takes the Elu into the convolution
        assert not [item for item in census.remainder if item.where == "elu"]
        return
    (found,) = [item for item in census.remainder if item.where == "elu"]
    assert found.precision == "fp32"
    assert found.operators == ("Elu",)
    assert 0 < found.share < 1
    assert found.share == pytest.approx(found.seconds / census.seconds)
    assert census.reformats >= 2


def test_openvino_calls_out_what_its_int8_file_leaves_in_float(tmp_path: Path) -> None:
    net = Net(8, 32, 32)
    x = net.conv("x", 8, 8, name="first")
    x = net.op("CumSum", x, net.constant("axis", np.int64(3).reshape(())), name="sum")
    model = net.save(tmp_path / "m.onnx", net.conv(x, 8, 8, name="second"))
    census = _census(_quantize(net, model, "openvino"), "openvino", "int8", net.feed(1))
    assert "sum" in {item.where for item in census.remainder}
    assert {"sum", "first", "second"} <= set(census.layer_seconds)


def test_an_engine_without_a_profile_says_so(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    spec = EngineSpec("torch", "fp32", str(model.path), 1)
    with pytest.raises(EngineError, match="torch cannot be read"):
        take_census(spec, net.feed(1))


def test_an_engine_file_is_told_by_the_graph_that_it_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, model = classifier(tmp_path)
    quantized = _quantize(net, model, "tensorrt")
    (tmp_path / "model.engine").write_bytes(b"no ONNX file")
    inspected = read_inspection(json.dumps({"Layers": _inspect(LAYERS)}))
    seconds = {layer.name: 1e-3 for layer in inspected}
    executed = match_layers(inspected, seconds)
    monkeypatch.setattr(deploy.measuring.census, "read_layers", lambda spec, feeds: executed)
    spec = EngineSpec(
        "tensorrt", "int8", str(tmp_path / "model.engine"), 1, source=str(quantized.path)
    )
    census = take_census(spec, net.feed(2))
    int8 = 2 * (sum(MACS.values()) - MACS["head"])
    assert _by_precision(census) == {"int8": int8, "fp16": 2 * MACS["head"]}
    assert set(LAYERS) == set(census.layer_seconds)
    assert [item.where for item in census.remainder] == ["head"]
    assert (census.reformats, census.reformat_seconds) == (1, pytest.approx(1e-3))


def _inspect(names: Sequence[str]) -> list[dict[str, Any]]:
    """As TensorRT 11 tells of it: every layer in int8 but the head, which is in fp16."""
    layers = [
        {
            "Name": f"{name} [profile 1]",
            "LayerType": "CaskConvolution",
            "Inputs": [{"DataType": "Half" if name == "head" else "Int8", "Format": "CHW32"}],
            "Outputs": [{"DataType": "Int8", "Format": "CHW32"}],
            "Metadata": f"[ONNX Layer: {name}_DequantizeLinear]\x1e[ONNX Layer: {name}]",
        }
        for name in names
    ]
    copy = {"Name": "Reformatting CopyNode for Input Tensor 0 to stem", "LayerType": "Reformat"}
    return [copy, *layers]


def test_onnxruntime_s_parts_of_a_function_are_led_back_to_it(tmp_path: Path) -> None:
    net = Net(8, 32, 32)
    x = net.conv("x", 8, 8, name="first")
    for number in range(2):
        x = net.conv(net.op("HardSwish", x, name=f"swish{number}"), 8, 8)
    model = net.save(tmp_path / "m.onnx", x)
    quantized = _quantize(net, model, "onnxruntime")
    census = _census(quantized, "onnxruntime", "int8", net.feed(1))
    assert [item.where for item in census.remainder if "swish" not in item.where] == []
    assert {"swish0", "swish1"} <= set(census.layer_seconds)
