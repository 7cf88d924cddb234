"""What waited for hardware is held against the float32 engine, measured, and takes its place."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny import answer, draw

from deploy.bundle.folder import GOLDEN, Bundle, load, read_bundle
from deploy.bundle.golden import read_golden
from deploy.bundle.manifest import BundledEngine, write_manifest
from deploy.commands.finishing import _still_waiting, finish
from deploy.commands.verification import verify
from deploy.config import BuildConfig
from deploy.engines.base import Array
from deploy.results import candidate_json
from export.errors import BundleError, EngineError
from export.gpu import read_gpu
from export.images import ImageCall
from export.tensorrt.options import BuildOptions

QUICK = BuildConfig(measure_seconds=0.5, threads=1, min_sqnr=20.0)
UNBUILT = BundledEngine(
    "tensorrt",
    "fp16",
    "model.onnx",
    2e-2,
    not_run="no NVIDIA GPU",
    source="model.onnx",
    recipe=BuildOptions(),
)
"""An engine that only a machine with a GPU can build."""
SCHEMA = Path(__file__).parents[3] / "deploy" / "report" / "schema.json"
IMAGES = ImageCall((), keyword=True)
"""Of no input, since none takes images; it stands for what a bundle keeps for its readers."""


def remake(
    path: Path,
    changes: dict[str, BundledEngine],
    winner: str | None = None,
    *,
    old: Bundle | None = None,
) -> Path:
    """The bundle with other entries; `old` is what it was before files were added."""
    old = old or read_bundle(path)
    engines = {**old.manifest.engines, **changes}
    manifest = old.manifest
    write_manifest(
        path,
        created=manifest.created,
        model=manifest.model,
        winner=winner or manifest.winner,
        engines=engines,
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        structure=manifest.structure,
        machine=manifest.machine,
        input_ranges={"x": (-3.0, 3.0)},
        images=IMAGES,
    )
    return path


def waiting(path: Path, name: str, **changes: object) -> Path:
    """A bundle whose engine `name` was never run."""
    entry = read_bundle(path).manifest.engines[name]
    winner = "onnxruntime-fp32" if name != "onnxruntime-fp32" else None
    return remake(path, {name: replace(entry, not_run="no such CPU", **changes)}, winner)


def spoil(path: Path) -> None:
    """Other weights, so that the answers are wrong."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        wrong = np.roll(numpy_helper.to_array(tensor), 1, axis=-1)
        tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
    onnx.save(model, path)


@pytest.mark.thorough
def test_an_engine_that_waited_is_judged_measured_and_recorded(bundle_path: Path) -> None:
    path = waiting(bundle_path, "openvino-fp32")
    pytest.importorskip("openvino", reason="needs OpenVINO")
    found = finish(path, QUICK)
    (result,) = found.results
    assert (result.name, result.parity_holds) == ("openvino-fp32", True)
    assert result.latency is not None
    assert found.latency is not None
    assert found.winner_before == "onnxruntime-fp32"
    bundle = read_bundle(path)
    assert (bundle.manifest.images, bundle.manifest.input_ranges) == (IMAGES, {"x": (-3.0, 3.0)})
    assert bundle.manifest.engines["openvino-fp32"].not_run is None
    recorded = read_golden(path / GOLDEN)
    np.testing.assert_allclose(
        recorded.outputs["openvino-fp32"]["logits"], answer(recorded.inputs["x"]), rtol=1e-4
    )
    assert all(item.holds for item in verify(bundle))
    report = bundle.report()
    jsonschema.validate(report, json.loads(SCHEMA.read_text()))
    assert report["finish"]["baseline"] == "onnxruntime-fp32"
    assert report["finish"]["batch"] == 1
    (row,) = report["finish"]["candidates"]
    assert row["name"] == "openvino-fp32"
    rate = report["model"]["macs"] / row["latency"]["p50_ms"] / 1e6
    assert row["latency"]["gmacs_per_s"] == pytest.approx(rate)
    page = (path / "report.html").read_text()
    assert "Finished later" in page
    kept = found.bundle.winner == "onnxruntime-fp32"
    assert ("stays the winner" if kept else "openvino-fp32 is the winner now") in page


def test_what_fails_its_parity_leaves_the_bundle_with_its_files(bundle_path: Path) -> None:
    entry = BundledEngine("onnxruntime", "fp16", "late/model.onnx", 1e-2, not_run="no such CPU")
    old = read_bundle(bundle_path)
    source = bundle_path / "late" / "model.onnx"
    source.parent.mkdir()
    source.write_bytes((bundle_path / "model.onnx").read_bytes())
    spoil(source)
    path = remake(bundle_path, {"onnxruntime-fp16": entry}, "onnxruntime-fp32", old=old)
    found = finish(path, QUICK)
    assert [(r.name, r.status) for r in found.results] == [("onnxruntime-fp16", "rejected")]
    assert "SQNR" in str(found.results[0].reason)
    assert found.latency is None
    bundle = read_bundle(path)
    assert "onnxruntime-fp16" not in bundle.manifest.engines
    assert not (path / "late").exists()
    assert (path / "model.onnx").is_file()
    with load(path, threads=1) as engine:
        x = draw(3)
        np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
def test_int8_is_not_passed_without_data_and_is_with_it(bundle_path: Path, tmp_path: Path) -> None:
    path = waiting(bundle_path, "onnxruntime-int8")
    data = tmp_path / "data.npz"
    x: Array = draw(64, seed=3)
    np.savez(data, x=x)
    found = finish(path, replace(QUICK, data=str(data), min_agreement=0.9))
    (result,) = found.results
    assert result.parity_holds
    assert result.parity is not None
    assert result.parity.samples == 64


def test_int8_without_data_is_rejected(bundle_path: Path) -> None:
    path = waiting(bundle_path, "onnxruntime-int8")
    (result,) = finish(path, QUICK).results
    assert result.status == "rejected"
    assert "no calibration data" in str(result.reason)
    assert "onnxruntime-int8" not in read_bundle(path).manifest.engines


def test_what_cannot_be_finished_here_is_said_and_changes_nothing(bundle_path: Path) -> None:
    if read_gpu() is not None:
        pytest.skip("there is a GPU")
    other = replace(UNBUILT, precision="bf16")
    path = remake(bundle_path, {"tensorrt-fp16": UNBUILT, "tensorrt-bf16": other})
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    named = "tensorrt-fp16, tensorrt-bf16: no NVIDIA GPU. Run deploy finish on the machine"
    with pytest.raises(EngineError, match=named):
        finish(path, QUICK)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert read_bundle(path).manifest.engines["tensorrt-fp16"] == UNBUILT


@pytest.mark.thorough
def test_the_rest_waits_on_where_one_can_be_finished(bundle_path: Path) -> None:
    if read_gpu() is not None:
        pytest.skip("there is a GPU")
    remake(bundle_path, {"tensorrt-fp16": UNBUILT})
    path = waiting(bundle_path, "openvino-fp32")
    pytest.importorskip("openvino", reason="needs OpenVINO")
    statuses = {result.name: result.status for result in finish(path, QUICK).results}
    assert statuses["tensorrt-fp16"] == "not_run"
    assert read_bundle(path).manifest.engines["tensorrt-fp16"] == UNBUILT


def test_what_waits_for_a_gpu_is_still_reported_as_one_for_it(bundle_path: Path) -> None:
    entry = read_bundle(bundle_path).manifest.engines["onnxruntime-fp32"]
    on_gpu = replace(entry, variant="cuda-nhwc")
    row = candidate_json(
        _still_waiting("onnxruntime-fp32-cuda-nhwc", on_gpu, "no NVIDIA GPU"),
        kind="synthetic",
        macs=1,
        peaks={},
    )
    assert (row["status"], row["device"]) == ("not_run", "cuda")


def test_a_bundle_without_anything_that_waits_is_refused(bundle_path: Path) -> None:
    with pytest.raises(BundleError, match="is finished"):
        finish(bundle_path, QUICK)


@pytest.mark.thorough
def test_the_command_prints_what_became_of_each(cli, bundle_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs OpenVINO")
    path = waiting(bundle_path, "openvino-fp32")
    code, out, err = cli("finish", path, "--measure-seconds", "0.5", "--threads", "1")
    assert code == 0, err
    assert "openvino-fp32" in out
    assert "Winner: " in out
    assert cli("finish", path)[0] == 2  # nothing waits any more
