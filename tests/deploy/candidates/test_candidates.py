"""Which candidates are tried for which model, and that each opens its own file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import hide_engines

from deploy.candidates.files import build_candidates
from deploy.candidates.plans import PLANS, PRODUCT_PLANS, GpuTarget, Plan, choose_plans
from deploy.engines import EngineSpec, open_engine
from deploy.measuring.machine import describe_machine
from export.artifacts import OnnxModel, TensorSpec
from export.errors import QuantizeError
from export.gpu import GpuFacts
from export.onnx.tensor_types import read_precision
from export.tensorrt import BuildOptions
from export.tensorrt.options import RTX_TARGETS
from quantize.transformers.weight_only import WEIGHT_PRESETS, quantize_weights

WIDTH = 512
RTX = tuple(
    Plan("tensorrt_rtx", kind, "fp32" if kind == "tf32" else f"{kind}-tensorrt")
    for kind in ("tf32", "fp16", "bf16", "int8")
)


def perceptron(path: Path, width: int = WIDTH, *, planes: int = 0) -> OnnxModel:
    """Two products of `width` by `width`; with `planes`, a convolution of as many before them."""
    rng = np.random.default_rng(0)
    shape = (planes, 16, 16) if planes else (7, width)
    nodes, stored, x = [], [], "x"
    if planes:
        kernel = rng.normal(0, 0.1, (planes, planes, 3, 3)).astype(np.float32)
        stored.append(numpy_helper.from_array(kernel, "kernel"))
        nodes.append(helper.make_node("Conv", [x, "kernel"], ["c"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("GlobalMaxPool", ["c"], ["p"]))
        nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
        x = "f"
    for number, inside in enumerate((planes or width, width)):
        weight = rng.normal(0, inside**-0.5, (inside, width)).astype(np.float32)
        stored.append(numpy_helper.from_array(weight, f"w{number}"))
        result = "y" if number else "h"
        nodes.append(helper.make_node("MatMul", [x, f"w{number}"], [result], name=f"m{number}"))
        x = result
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "net", [value], [end], stored)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    specs = (TensorSpec("x", ("batch", *shape), "float32"),)
    outputs = (TensorSpec("y", ("batch", WIDTH), "float32"),)
    return OnnxModel(path, specs, outputs, 20)


def test_products_are_tried_only_where_they_are_the_work(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert choose(perceptron(path)) == PLANS + RTX + PRODUCT_PLANS
    assert choose(perceptron(path, 64)) == PLANS + RTX  # too few weights
    assert choose(perceptron(path, planes=64)) == PLANS + RTX  # a convolution does the work


def choose(model: OnnxModel, **target: object) -> tuple[Plan, ...]:
    return choose_plans(model, GpuTarget(**target))


def test_nvidia_tensorrt_is_planned_where_it_is_asked_for(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "m.onnx", 64)
    names = [plan.name for plan in choose(model, asked=True)]
    assert names[-4:] == [f"tensorrt-{kind}" for kind in ("tf32", "fp16", "bf16", "int8")]
    exact = [plan.name for plan in choose(model, options=BuildOptions(tf32=False))]
    assert "tensorrt_rtx-fp32" in exact
    assert "tensorrt_rtx-tf32" not in exact


CUDA = ("onnxruntime-tf32-cuda", "onnxruntime-fp16-cuda")
GRAPHS = ("onnxruntime-tf32-cuda-graphs", "onnxruntime-fp16-cuda-graphs")
NHWC = "onnxruntime-fp16-cuda-nhwc"


def cuda_names(model: OnnxModel, **target: object) -> list[str]:
    return [plan.name for plan in choose(model, **target) if plan.variant.startswith("cuda")]


def test_onnxruntime_is_tried_on_the_gpu_where_there_is_one_or_it_is_asked_for(
    tmp_path: Path,
) -> None:
    model, gpu = perceptron(tmp_path / "m.onnx", 64), GpuFacts("H100", "580", "9.0", "13.0")
    assert cuda_names(model) == []
    assert cuda_names(model, gpu=gpu) == [*CUDA, *GRAPHS]
    assert cuda_names(model, gpu=gpu, device="cuda") == [*CUDA, *GRAPHS]
    assert cuda_names(model, gpu=gpu, device="cpu") == []
    assert cuda_names(model, asked=True) == [*CUDA, *GRAPHS]
    exact = cuda_names(model, asked=True, options=BuildOptions(tf32=False))
    assert exact == ["onnxruntime-fp32-cuda", CUDA[1], "onnxruntime-fp32-cuda-graphs", GRAPHS[1]]
    convolution = perceptron(tmp_path / "c.onnx", planes=8)
    assert cuda_names(convolution, asked=True) == [*CUDA, *GRAPHS, NHWC]


def test_onnxruntime_on_the_gpu_keeps_its_files_for_a_machine_that_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.engines.availability.read_gpu", lambda: None)
    hide_engines(monkeypatch, "openvino", "tensorrt_rtx")
    stage = tmp_path / "stage"
    stage.mkdir()
    model = perceptron(stage / "model.onnx", 64)
    built = build_candidates(
        model,
        QuantizeError("no data"),
        stage=stage,
        scratch=tmp_path / "scratch",
        target=GpuTarget(asked=True),
    )
    found = {candidate.name: candidate for candidate in built}
    waiting = [found[name] for name in (*CUDA, *GRAPHS)]
    assert {candidate.status for candidate in waiting} == {"not_run"}
    assert waiting[0].reason == "no NVIDIA GPU; deploy finish judges it where it runs"
    assert [candidate.file for candidate in waiting] == [
        model.path,
        stage / "tensorrt-fp16" / "model.onnx",
    ] * 2
    assert waiting[1].spec(1).variant == "cuda"
    assert waiting[3].spec(1).variant == "cuda-graphs"
    on_cpu = EngineSpec("onnxruntime", "fp16", str(waiting[1].file), 1)
    feeds = {"x": np.random.default_rng(1).normal(0, 1, (3, 7, 64)).astype(np.float32)}
    with open_engine(on_cpu) as half, open_engine(found["onnxruntime-fp32"].spec(1)) as full:
        expected = full(feeds)["y"]  # the file is one that ONNX Runtime opens
        np.testing.assert_allclose(half(feeds)["y"], expected, atol=1e-2 * np.abs(expected).max())


def test_an_option_that_one_product_lacks_stops_no_other_candidate(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    stage, scratch = tmp_path / "stage", tmp_path / "scratch"
    stage.mkdir()
    model = perceptron(stage / "model.onnx", 64)
    target = GpuTarget(asked=True, options=BuildOptions(hardware_compatible=True))
    refused = QuantizeError("no data")
    built = build_candidates(model, refused, stage=stage, scratch=scratch, target=target)
    found = {candidate.name: candidate for candidate in built}
    assert found["tensorrt_rtx-fp16"].status == "failed"
    assert "no hardware-compatible engines" in str(found["tensorrt_rtx-fp16"].reason)
    assert found["tensorrt-fp16"].source is not None
    assert found["onnxruntime-fp32"].status == "built"


def test_what_only_a_gpu_machine_can_build_keeps_the_file_to_build_it_from(tmp_path: Path) -> None:
    stage, scratch = tmp_path / "stage", tmp_path / "scratch"
    stage.mkdir()
    model = perceptron(stage / "model.onnx", 64)
    target = GpuTarget(asked=True)
    refused = QuantizeError("no data")
    built = build_candidates(model, refused, stage=stage, scratch=scratch, target=target)
    found = {candidate.name: candidate for candidate in built}
    waiting = found["tensorrt-fp16"]
    assert (waiting.status, waiting.record) == ("not_run", None)
    assert waiting.reason == "no NVIDIA GPU; deploy finish builds it where there is one"
    assert waiting.file == waiting.source == stage / "tensorrt-fp16" / "model.onnx"
    assert found["tensorrt-tf32"].source == model.path
    ahead = found["tensorrt_rtx-fp16"]
    if ahead.record is None:
        pytest.skip(str(ahead.reason))
    assert ahead.source == waiting.source
    assert ahead.file == stage / "tensorrt_rtx-fp16" / "model.engine"


def test_names_say_the_variant_and_are_unique() -> None:
    names = [plan.name for plan in PLANS + RTX + PRODUCT_PLANS]
    assert len(set(names)) == len(names)
    assert {"onnxruntime-int8", "onnxruntime-int8-dynamic", "openvino-int4-weights"} <= set(names)


def test_every_candidate_without_calibration_is_built_and_answers(tmp_path: Path) -> None:
    stage, scratch = tmp_path / "stage", tmp_path / "scratch"
    stage.mkdir(), scratch.mkdir()
    model = perceptron(stage / "model.onnx")
    refused = QuantizeError("no data")
    built = build_candidates(model, refused, stage=stage, scratch=scratch)
    found = {candidate.name: candidate for candidate in built}
    assert set(found) == {plan.name for plan in PLANS + RTX + PRODUCT_PLANS}
    feeds = {"x": np.random.default_rng(1).normal(0, 1, (3, 7, WIDTH)).astype(np.float32)}
    with open_engine(found["onnxruntime-fp32"].spec(1)) as engine:
        reference = engine(feeds)["y"].astype(np.float64)
    for plan in PRODUCT_PLANS:
        candidate = found[plan.name]
        if candidate.status == "not_run":
            pytest.skip(str(candidate.reason))
        assert read_precision(candidate.file) == plan.precision
        assert candidate.spec(1).name == plan.name
        with open_engine(candidate.spec(1)) as engine:
            got = engine(feeds)["y"]
        noise = ((reference - got) ** 2).sum() / (reference**2).sum()
        assert (1e-4 if plan.precision == "int4" else 1e-6) < noise  # not float in disguise
        assert noise < (2e-2 if plan.precision == "int4" else 1e-3)


def test_16_bit_engines_are_built_from_measured_losses(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    stage, scratch = tmp_path / "stage", tmp_path / "scratch"
    stage.mkdir()
    model = perceptron(stage / "model.onnx", 64)
    large = {"x": np.full((2, 7, 64), 1e5, np.float32)}  # beyond float16
    options = {"stage": stage, "scratch": scratch, "samples": (large,)}
    built = build_candidates(model, QuantizeError("no data"), **options)
    found = {candidate.name: candidate for candidate in built}
    halves = {}
    for precision in ("fp16", "bf16"):
        assert found[f"tensorrt_rtx-{precision}"].file.stat().st_size > 1000
        graph = onnx.load(stage / f"tensorrt-{precision}" / "model.onnx").graph
        halves[precision] = {tensor.data_type for tensor in graph.initializer}
    assert halves == {"fp16": {TensorProto.FLOAT}, "bf16": {TensorProto.BFLOAT16}}


def test_openvino_keeps_activations_float_unless_the_variant_says_otherwise(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO")
    model = perceptron(tmp_path / "m.onnx")
    path = quantize_weights(model, WEIGHT_PRESETS["int8"], tmp_path / "w.onnx").model.path
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    feeds = {"x": np.random.default_rng(2).normal(0, 1, (2, 7, WIDTH)).astype(np.float32)}
    expected = feeds["x"].astype(np.float64)
    for node in graph.node:
        codes, scales = (stored[name] for name in node.input[1:3])
        dense = (codes.astype(np.float64) - 128) * scales[..., None]
        expected = expected @ dense.reshape(len(codes), -1).T
    errors = []
    for variant in ("", "weights"):
        with open_engine(EngineSpec("openvino", "int8", str(path), 1, variant=variant)) as engine:
            errors.append(np.abs(engine(feeds)["y"] - expected).max() / np.abs(expected).max())
    assert errors[0] < 1e-5
    if not any("vnni" in feature for feature in describe_machine().features):
        pytest.skip("OpenVINO quantizes activations by itself only on CPUs with VNNI")
    assert errors[1] > 1e-3


def test_an_engine_that_fits_this_machine_s_gpu_is_run_and_another_is_told_why(
    tmp_path: Path,
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    model = perceptron(tmp_path / "model.onnx", 64)
    found = {}
    for capability in ("8.9", "9.0"):
        stage = tmp_path / capability
        stage.mkdir()
        target = GpuTarget(gpu=GpuFacts("NVIDIA GPU", "580.65.06", capability, "13.0"))
        built = build_candidates(
            model, QuantizeError("no data"), stage=stage, scratch=stage / "s", target=target
        )
        found[capability] = next(c for c in built if c.name == "tensorrt_rtx-tf32")
    fits, other = found["8.9"], found["9.0"]
    assert (fits.status, fits.reason) == ("built", None)
    assert fits.spec(1).source == str(model.path)
    assert fits.record.version == rtx.__version__
    assert other.status == "not_run"
    assert "was built for SM80, SM89, SM120, and NVIDIA GPU is SM90" in str(other.reason)


def test_rtx_builds_for_this_machine_s_gpu_too_where_no_targets_were_chosen() -> None:
    known = GpuTarget(gpu=GpuFacts("RTX 3090", "580", "8.6"))
    assert known.options_for("tensorrt_rtx").targets == ("SM80", "SM89", "SM120", "SM86")
    assert known.options_for("tensorrt") == BuildOptions()
    unknown = GpuTarget(gpu=GpuFacts("H100", "580", "9.0"))
    assert unknown.options_for("tensorrt_rtx") == BuildOptions()
    chosen = GpuTarget(BuildOptions(targets=("SM120",)), gpu=known.gpu)
    assert chosen.options_for("tensorrt_rtx").targets == ("SM120",)


def test_the_targets_of_rtx_are_those_of_the_library() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    members = {name for name in rtx.ComputeCapability.__members__ if name.startswith("SM")}
    assert members == set(RTX_TARGETS)


def between_int8(path: Path) -> OnnxModel:
    """16 bits, and between two pairs of Q and DQ a Softplus in float32."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="narrow", to=TensorProto.FLOAT16),
        helper.make_node("Relu", ["h"], ["r"], name="half"),
        helper.make_node("Cast", ["r"], ["c"], name="widen", to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"], name="q0"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="d0"),
        helper.make_node("Softplus", ["d"], ["p"], name="head.softplus"),
        helper.make_node("QuantizeLinear", ["p", "s", "z"], ["q1"], name="q1"),
        helper.make_node("DequantizeLinear", ["q1", "s", "z"], ["y"], name="d1"),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.int8(0), "z"),
    ]
    graph = helper.make_graph(nodes, "net", [value], [end], stored)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    specs = [TensorSpec(name, ("batch", 8), "float32") for name in "xy"]
    return OnnxModel(path, (specs[0],), (specs[1],), 20)


@pytest.mark.thorough
def test_layers_left_in_float32_between_int8_ones_are_told_of_engines_of_tensorrt(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    stage = tmp_path / "stage"
    stage.mkdir()
    model = between_int8(stage / "model.onnx")
    built = build_candidates(
        model, QuantizeError("no data"), stage=stage, scratch=tmp_path / "scratch"
    )
    found = {candidate.name: candidate for candidate in built}
    assert found["tensorrt_rtx-tf32"].record is not None
    assert found["tensorrt_rtx-tf32"].stray_float == ("head.softplus",)
    assert found["onnxruntime-fp32"].stray_float == ()
