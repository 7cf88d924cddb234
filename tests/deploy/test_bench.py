"""What is measured against what, and on which inputs; the measuring itself is test_latency's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import draw

import deploy.bench
from deploy.bench import bench_bundle, bench_onnx
from deploy.bundle import Bundle, read_bundle
from deploy.engines import EngineSpec, Feeds
from deploy.latency import LatencyReport, LatencySettings
from deploy.manifest import BundledEngine
from export.artifacts import TensorSpec
from export.errors import BundleError, EngineError, LoadError

SETTINGS = LatencySettings(seconds=1.0, seed=3)
EMPTY = LatencyReport({}, {}, None, None, 0, 2, 0.0)


class Recorder:
    """Stands in for `measure`: what it was asked."""

    def __call__(
        self, baseline: EngineSpec, others: Sequence[EngineSpec], feeds: Feeds, *rest: object
    ) -> LatencyReport:
        self.baseline, self.others, self.feeds, self.rest = baseline, list(others), feeds, rest
        return EMPTY


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(deploy.bench, "measure", recorder)
    return recorder


def with_engines(bundle: Bundle, **changes: BundledEngine) -> Bundle:
    engines = {**bundle.manifest.engines, **changes}
    return replace(bundle, manifest=replace(bundle.manifest, engines=engines))


TORCH = BundledEngine("torch", "fp32", "model.pt", 1e-4)


def test_every_engine_of_a_bundle_is_measured_on_its_golden_inputs(
    pristine: Path, asked: Recorder
) -> None:
    baseline, _ = bench_bundle(read_bundle(pristine), SETTINGS, batch=6, threads=2)
    assert baseline == asked.baseline.name == "onnxruntime-fp32"
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
    monkeypatch.setattr(deploy.bench, "is_installed", lambda module: installed)
    bundle = with_engines(read_bundle(pristine), torch=TORCH)
    assert bench_bundle(bundle, SETTINGS, trust=("nets",))[0] == baseline
    measured = {spec.name: spec for spec in (asked.baseline, *asked.others)}
    assert measured["torch"].trust == ("nets",)  # absent, it is listed as failed with the reason
    assert len(measured) == 4


def test_a_static_batch_is_kept(pristine: Path, asked: Recorder) -> None:
    bundle = read_bundle(pristine)
    inputs = (TensorSpec("x", (2, 4), "float32"),)
    bundle = replace(bundle, manifest=replace(bundle.manifest, inputs=inputs))
    bench_bundle(bundle, SETTINGS)
    assert asked.feeds["x"].shape == (2, 4)


def test_what_was_not_run_is_not_measured(pristine: Path, asked: Recorder) -> None:
    gpu = BundledEngine("tensorrt", "fp16", "x.engine", 0.1, not_run="no GPU")
    bench_bundle(with_engines(read_bundle(pristine), tensorrt=gpu), SETTINGS)
    assert "tensorrt-fp16" not in [spec.name for spec in asked.others]


def test_a_bundle_with_nothing_to_run_is_refused(pristine: Path, asked: Recorder) -> None:
    bundle = read_bundle(pristine)
    bundle = replace(bundle, manifest=replace(bundle.manifest, engines={}))
    with pytest.raises(BundleError, match="no engine that can be run"):
        bench_bundle(bundle, SETTINGS)


def test_an_onnx_file_is_measured_in_all_that_can_open_it(tiny_onnx: Path, asked: Recorder) -> None:
    baseline, _ = bench_onnx(tiny_onnx, SETTINGS, batch=5, threads=1)
    assert baseline == "onnxruntime-fp32"
    assert [spec.name for spec in asked.others] == ["openvino-fp32", "openvino-bf16"]
    first = asked.feeds["x"]
    assert first.shape == (5, 4)
    bench_onnx(tiny_onnx, SETTINGS, batch=5, threads=1)
    np.testing.assert_array_equal(asked.feeds["x"], first)


def test_an_onnx_file_that_is_missing_or_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no such file. Pass a bundle or an ONNX file"):
        bench_onnx(tmp_path / "nothing.onnx", SETTINGS)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(EngineError, match="cannot open"):
        bench_onnx(tmp_path / "broken.onnx", SETTINGS)
