"""What is measured against what, and on which inputs; the measuring itself is test_latency's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny import draw

import deploy.commands.bench
from deploy.bundle.folder import GOLDEN, Bundle, read_bundle
from deploy.bundle.golden import Golden
from deploy.bundle.manifest import BundledEngine
from deploy.commands.bench import bench_bundle, bench_onnx
from deploy.engines import EngineSpec, Feeds
from deploy.measuring.latency import LatencyReport, LatencySettings
from export.artifacts import OnnxModel, TensorSpec
from export.errors import BundleError, DeployError, EngineError, LoadError, TrustError
from quantize.calibration.calibrate import calibrate
from quantize.half.fp16 import convert_fp16
from quantize.int8.insertion import quantize_int8
from quantize.scheme import PRESETS

SETTINGS = LatencySettings(seconds=1.0, seed=3)
EMPTY = LatencyReport({}, {}, None, None, 0, 0, 2, 0.0)


class Recorder:
    """Stands in for `measure`: what it was asked; raises what `errors` has for a baseline."""

    def __init__(self) -> None:
        self.errors: dict[str, DeployError] = {}

    def __call__(
        self, baseline: EngineSpec, others: Sequence[EngineSpec], feeds: Feeds, *rest: object
    ) -> LatencyReport:
        self.baseline, self.others, self.feeds, self.rest = baseline, list(others), feeds, rest
        if baseline.name in self.errors:
            raise self.errors[baseline.name]
        return EMPTY


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(deploy.commands.bench, "measure", recorder)
    block(monkeypatch)
    return recorder


def block(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Nothing stands in the way of any engine but `names`."""

    def find_obstacle(engine: str, precision: str) -> str | None:
        return "not here" if names and f"{engine}-{precision}".startswith(names) else None

    monkeypatch.setattr(deploy.commands.bench, "find_obstacle", find_obstacle)


def with_engines(bundle: Bundle, **changes: BundledEngine) -> Bundle:
    engines = {**bundle.manifest.engines, **changes}
    return replace(bundle, manifest=replace(bundle.manifest, engines=engines))


TORCH = BundledEngine("torch", "fp32", "model.pt", 1e-4)


def test_every_engine_of_a_bundle_is_measured_on_its_golden_inputs(
    pristine: Path, asked: Recorder
) -> None:
    found = bench_bundle(read_bundle(pristine), SETTINGS, batch=6, threads=2)
    assert found.baseline == asked.baseline.name == "onnxruntime-fp32"
    assert (found.latency, found.not_run) == (EMPTY, {})
    assert [spec.name for spec in asked.others] == ["onnxruntime-int8", "openvino-fp32"]
    assert {spec.threads for spec in (asked.baseline, *asked.others)} == {2}
    np.testing.assert_array_equal(asked.feeds["x"], draw(4, seed=1)[[0, 1, 2, 3, 0, 1]])
    assert asked.rest[0] is SETTINGS


@pytest.mark.parametrize(("installed", "baseline"), [(True, "torch"), (False, "onnxruntime-fp32")])
def test_eager_is_the_baseline_where_it_can_be(
    pristine: Path,
    asked: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    installed: bool,
    baseline: str,
) -> None:
    block(monkeypatch, *(() if installed else ("torch",)))
    bundle = with_engines(read_bundle(pristine), torch=TORCH)
    found = bench_bundle(bundle, SETTINGS, trust=("nets",))
    assert found.baseline == asked.baseline.name == baseline
    measured = {spec.name: spec for spec in (asked.baseline, *asked.others)}
    assert ("torch" in measured) == installed
    assert {name: str(error) for name, error in found.not_run.items()} == (
        {} if installed else {"torch": "not here"}
    )
    if installed:
        assert measured["torch"].trust == ("nets",)


def test_a_baseline_that_does_not_open_gives_way_to_the_next_and_keeps_its_reason(
    pristine: Path, asked: Recorder
) -> None:
    bundle = with_engines(read_bundle(pristine), torch=TORCH)
    asked.errors = {"torch": TrustError("not trusted"), "onnxruntime-fp32": EngineError("broken")}
    found = bench_bundle(bundle, SETTINGS)
    assert found.baseline == asked.baseline.name == "onnxruntime-int8"
    assert [spec.name for spec in asked.others] == ["openvino-fp32"]
    assert found.not_run == {"torch": asked.errors["torch"]}
    assert found.latency.failed == {"onnxruntime-fp32": "broken"}


def test_where_nothing_opens_the_error_is_told(pristine: Path, asked: Recorder) -> None:
    names = ("onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32")
    asked.errors = {name: EngineError(f"{name} is broken") for name in names}
    with pytest.raises(EngineError, match="openvino-fp32 is broken"):
        bench_bundle(read_bundle(pristine), SETTINGS)


def test_a_static_batch_is_kept(bundle_path: Path, asked: Recorder) -> None:
    bundle = read_bundle(bundle_path)
    inputs = (TensorSpec("x", (2, 4), "float32"),)
    bundle = replace(bundle, manifest=replace(bundle.manifest, inputs=inputs))
    Golden({"x": draw(2)}, {}).save(bundle_path / GOLDEN)
    found = bench_bundle(bundle, SETTINGS, batch=5, threads=3)
    assert asked.feeds["x"].shape == (2, 4)
    assert ", 3 threads, batch 2, 20" in found.conditions


def test_what_was_not_run_is_not_measured(pristine: Path, asked: Recorder) -> None:
    gpu = BundledEngine("tensorrt", "fp16", "x.engine", 0.1, not_run="no GPU")
    bench_bundle(with_engines(read_bundle(pristine), tensorrt=gpu), SETTINGS)
    assert "tensorrt-fp16" not in [spec.name for spec in asked.others]


def test_a_bundle_with_nothing_to_run_is_refused(pristine: Path, asked: Recorder) -> None:
    bundle = read_bundle(pristine)
    bundle = replace(bundle, manifest=replace(bundle.manifest, engines={}))
    with pytest.raises(BundleError, match="no engine that can be run"):
        bench_bundle(bundle, SETTINGS)


@pytest.mark.thorough
def test_an_onnx_file_is_measured_in_all_that_can_open_it(tiny_onnx: Path, asked: Recorder) -> None:
    found = bench_onnx(tiny_onnx, SETTINGS, batch=5, threads=1)
    assert found.baseline == "onnxruntime-fp32"
    assert [spec.name for spec in asked.others] == ["openvino-fp32", "openvino-bf16"]
    first = asked.feeds["x"]
    assert first.shape == (5, 4)
    bench_onnx(tiny_onnx, SETTINGS, batch=5, threads=1)
    np.testing.assert_array_equal(asked.feeds["x"], first)


def test_what_the_cpu_cannot_do_is_not_run_with_the_reason(
    tiny_onnx: Path, asked: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    block(monkeypatch, "openvino-bf16")
    found = bench_onnx(tiny_onnx, SETTINGS, threads=1)
    assert [spec.name for spec in asked.others] == ["openvino-fp32"]
    assert {name: str(error) for name, error in found.not_run.items()} == {
        "openvino-bf16": "not here"
    }


def test_an_onnx_file_is_called_by_the_precision_of_its_graph(
    tiny_onnx: Path, tmp_path: Path, asked: Recorder
) -> None:
    signature = (TensorSpec("x", ("batch", 4), "float32"),)
    model = OnnxModel(tiny_onnx, signature, (TensorSpec("logits", ("batch", 3), "float32"),), 20)
    ranges = calibrate(model, [{"x": draw(8)}])
    half = convert_fp16(model, tmp_path / "fp16.onnx").model
    for scheme in PRESETS.values():
        int8 = quantize_int8(model, ranges, scheme, tmp_path / "int8.onnx").model
        mixed = convert_fp16(int8, tmp_path / "mixed.onnx").model
        for file, precision in ((half, "fp16"), (int8, "int8"), (mixed, "int8")):
            assert bench_onnx(file.path, SETTINGS).baseline == f"onnxruntime-{precision}"
            assert [spec.name for spec in asked.others] == [f"openvino-{precision}"]


def test_an_input_without_any_axis_may_come_first(tmp_path: Path, asked: Recorder) -> None:
    """As the sampling rate of a model of speech does."""
    rate, wave, out = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("rate", ()), ("wave", ("batch", 4)), ("out", ("batch", 4)))
    )
    node = helper.make_node("Mul", ["wave", "rate"], ["out"])
    graph = helper.make_graph([node], "scaled", [rate, wave], [out])
    path = tmp_path / "scaled.onnx"
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[opset]), path)
    assert ", batch 3, 20" in bench_onnx(path, SETTINGS, batch=3, threads=1).conditions
    assert list(asked.feeds) == ["rate", "wave"]


def test_an_onnx_file_that_is_missing_or_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no such file. Pass a bundle or an ONNX file"):
        bench_onnx(tmp_path / "nothing.onnx", SETTINGS)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(LoadError, match="cannot be read as an ONNX model"):
        bench_onnx(tmp_path / "broken.onnx", SETTINGS)
