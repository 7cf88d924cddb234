"""int8 that the CPU at hand computes exactly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.candidates.schemes import choose_scheme, explain_saturation
from deploy.engines import EngineSpec, open_engine
from export.artifacts import OnnxModel, TensorSpec
from export.cpu import saturates_int8
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.scheme import NARROW, PRESETS

CHANNELS = 64


@pytest.mark.parametrize(
    ("machine", "features", "narrow"),
    [
        ("x86_64", ("avx2",), True),
        ("x86_64", ("avx2", "avx512f"), True),
        ("AMD64", (), True),
        ("x86_64", ("avx2", "avx_vnni"), False),
        ("x86_64", ("avx2", "avx512f", "avx512_vnni"), False),
        ("x86_64", ("avx2", "amx_int8"), False),
        ("aarch64", (), False),
    ],
)
def test_x86_without_vnni_saturates(machine: str, features: tuple[str, ...], narrow: bool) -> None:
    assert saturates_int8(machine, features) is narrow


def test_only_engines_of_cpus_are_narrowed() -> None:
    assert choose_scheme("tensorrt") == PRESETS["tensorrt"]
    levels = NARROW if saturates_int8() else 127
    for engine in ("onnxruntime", "openvino"):
        assert choose_scheme(engine) == replace(PRESETS[engine], weight_levels=levels)


def bright(path: Path) -> OnnxModel:
    """1x1 convolution whose weights all have one sign: its sums are as large as they can be."""
    weight = np.random.default_rng(0).uniform(0.5, 1, (8, CHANNELS, 1, 1)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "bright",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    shape = (1, CHANNELS, 8, 8)
    out = TensorSpec("y", (1, 8, 8, 8), "float32")
    return OnnxModel(path, (TensorSpec("x", shape, "float32"),), (out,), 20)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_an_engine_computes_here_is_what_the_file_says(engine: str, tmp_path: Path) -> None:
    model = bright(tmp_path / "m.onnx")
    feeds = {"x": np.ones((1, CHANNELS, 8, 8), np.float32)}  # the largest code everywhere
    ranges = calibrate(model, [feeds], observer="minmax")
    scheme = choose_scheme(engine)
    path = quantize_int8(model, ranges, scheme, tmp_path / "q.onnx").model.path
    codes = next(
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
        if tensor.name == "w_quantized"
    )
    assert np.abs(codes.astype(int)).max() == scheme.weight_levels
    if engine == "openvino":
        pytest.importorskip("openvino", reason="needs OpenVINO")
    with open_engine(EngineSpec(engine, "int8", str(path), 1)) as opened:
        ours = opened(feeds)["y"]
    np.testing.assert_allclose(ours, run_plainly(path, feeds), rtol=0.01)


def run_plainly(path: Path, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The file node by node: Q/DQ in float, no kernel for int8."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_int8_of_a_machine_with_vnni_is_told_where_it_saturates(
    engine: str, tmp_path: Path
) -> None:
    model = bright(tmp_path / "m.onnx")
    ranges = calibrate(model, [{"x": np.ones((1, CHANNELS, 8, 8), np.float32)}])
    found = {}
    for levels in (127, NARROW):
        scheme = replace(PRESETS[engine], weight_levels=levels)
        path = quantize_int8(model, ranges, scheme, tmp_path / f"{levels}.onnx").model.path
        found[levels] = EngineSpec(engine, "int8", str(path), 1)
    said = explain_saturation(found[127], saturates=True)
    assert said is not None
    assert said.startswith(f"{engine}-int8: its int8 weights have codes up to 127")
    assert explain_saturation(found[127], saturates=False) is None
    assert explain_saturation(found[NARROW], saturates=True) is None
    floats = EngineSpec(engine, "fp32", str(model.path), 1)
    assert explain_saturation(floats, saturates=True) is None
