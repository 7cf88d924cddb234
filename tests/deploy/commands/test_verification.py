"""Recorded answers are repeated or the difference is named; other data is judged by the gates."""

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from altered import alter_report
from onnx import numpy_helper
from rich.console import Console
from tiny import Lean, answer, draw

from deploy.bundle.folder import GOLDEN, Bundle, read_bundle
from deploy.bundle.golden import Golden, read_golden
from deploy.bundle.manifest import BundledEngine, _make_manifest
from deploy.commands.verification import verify
from deploy.config import BuildConfig
from deploy.inputs import dataset
from deploy.report.tables import print_verification
from export.errors import BundleError, ConfigError, DataError

pytestmark = pytest.mark.long


def spoil(path: Path, factor: float) -> None:
    """Multiply the model's answers by `factor`."""
    model = onnx.load(path)
    weight = next(w for w in model.graph.initializer if w.name == "second")
    array = numpy_helper.to_array(weight) * np.float32(factor)
    weight.CopyFrom(numpy_helper.from_array(array, "second"))
    onnx.save(model, path)


def reload(path: Path) -> Bundle:
    """The bundle with its present files, as if it had been built so."""
    return Bundle(path, _make_manifest(json.loads((path / "manifest.json").read_text())))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """400 labelled samples, labelled by the model itself with a few errors."""
    x = draw(400, seed=9)
    labels = answer(x).argmax(axis=1)
    labels[:20] = (labels[:20] + 1) % 3
    np.savez(tmp_path / "data.npz", x=x, y=labels)
    return tmp_path / "data.npz"


def test_every_engine_repeats_its_answers(pristine: Path) -> None:
    results = verify(read_bundle(pristine))
    assert [result.name for result in results] == [
        "onnxruntime-fp32",
        "onnxruntime-int8",
        "openvino-fp32",
    ]
    for result in results:
        assert (result.golden, result.missing, result.verdict) == (None, None, None)
        assert result.holds


@pytest.mark.parametrize("factor", [1.01, 0.0, -1.0, float("nan")])
def test_wrong_answers_of_one_engine_are_found(bundle_path: Path, factor: float) -> None:
    spoil(bundle_path / "onnx-int8" / "model.onnx", factor)
    results = {result.name: result for result in verify(reload(bundle_path))}
    assert not results["onnxruntime-int8"].holds
    assert "'logits'" in str(results["onnxruntime-int8"].golden)
    assert results["onnxruntime-fp32"].holds


def test_of_a_network_of_large_values_few_samples_are_judged_at_a_time(
    pristine: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "VALUE_BYTES", 160)  # of five values in a hidden layer of eight
    done: list[int] = []
    config = BuildConfig(evaluation_samples=40)
    results = verify(
        read_bundle(pristine),
        data=str(data),
        config=config,
        progress=lambda step: done.append(step.done or 0),
    )
    assert all(result.holds for result in results)
    assert max(np.diff([0, *done])) == 5


def test_swapped_samples_are_found(bundle_path: Path) -> None:
    golden = read_golden(bundle_path / GOLDEN)
    swapped = {name: array[[1, 0, 2, 3]] for name, array in golden.inputs.items()}
    Golden(swapped, golden.outputs).save(bundle_path / GOLDEN)
    assert not any(result.holds for result in verify(reload(bundle_path)))


def test_an_engine_that_does_not_open_is_a_difference_with_its_reason(bundle_path: Path) -> None:
    (bundle_path / "onnx-int8" / "model.onnx").write_bytes(b"no model")
    results = {result.name: result for result in verify(reload(bundle_path))}
    assert "cannot open" in str(results["onnxruntime-int8"].golden)
    assert results["openvino-fp32"].holds


def test_an_engine_without_recorded_answers_does_not_hold(bundle_path: Path) -> None:
    golden = read_golden(bundle_path / GOLDEN)
    outputs = {name: out for name, out in golden.outputs.items() if name != "openvino-fp32"}
    Golden(golden.inputs, outputs).save(bundle_path / GOLDEN)
    results = {result.name: result for result in verify(reload(bundle_path))}
    assert results["openvino-fp32"].golden == "no golden answers were recorded for it"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", None])
def test_golden_answers_that_cannot_be_read_are_said(
    bundle_path: Path, content: bytes | None
) -> None:
    (bundle_path / GOLDEN).unlink()
    if content is not None:
        (bundle_path / GOLDEN).write_bytes(content)
    with pytest.raises(BundleError, match=r"golden\.npz cannot be read"):
        verify(reload(bundle_path))


def test_what_was_not_run_when_built_is_not_run_here(pristine: Path) -> None:
    bundle = read_bundle(pristine)
    bf16 = BundledEngine("openvino", "bf16", "model.onnx", 0.1, not_run="no bf16")
    engines = {**bundle.manifest.engines, "openvino-bf16": bf16}
    bundle = replace(bundle, manifest=replace(bundle.manifest, engines=engines))
    assert "openvino-bf16" not in [result.name for result in verify(bundle)]


def test_labelled_data_is_judged_by_accuracy(pristine: Path, data: Path) -> None:
    results = verify(read_bundle(pristine), data=str(data))
    for result in results:
        assert result.holds, result
        assert result.parity is not None
        (accuracy,) = result.parity.accuracies.values()
        assert accuracy.samples == 400
        assert accuracy.candidate == pytest.approx(0.95)


def test_a_worse_engine_fails_its_gate_on_data(bundle_path: Path, data: Path) -> None:
    spoil(bundle_path / "onnx-int8" / "model.onnx", -1.0)
    results = {r.name: r for r in verify(reload(bundle_path), data=str(data))}
    verdict = results["onnxruntime-int8"].verdict
    assert verdict is not None
    assert not verdict.passed
    assert "accuracy" in str(verdict.reason)
    assert results["openvino-fp32"].holds


@pytest.mark.thorough
def test_the_sample_count_is_that_of_the_options(pristine: Path, data: Path) -> None:
    config = BuildConfig(evaluation_samples=310)
    result = verify(read_bundle(pristine), data=str(data), config=config)[0]
    named = replace(config, data=str(data))
    assert verify(read_bundle(pristine), config=named)[0] == result  # by either name
    assert result.parity is not None
    assert [each.samples for each in result.parity.accuracies.values()] == [310]


def test_data_of_another_shape_is_refused(pristine: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", x=np.zeros((8, 5), np.float32))
    with pytest.raises(DataError):
        verify(read_bundle(pristine), data=str(tmp_path / "wide.npz"))


def test_data_without_a_float32_model_to_compare_with_is_refused(
    pristine: Path, data: Path
) -> None:
    bundle = read_bundle(pristine)
    engines = {"onnxruntime-int8": bundle.manifest.engines["onnxruntime-int8"]}
    bundle = replace(bundle, manifest=replace(bundle.manifest, engines=engines))
    with pytest.raises(BundleError, match="no float32 model to compare with"):
        verify(bundle, data=str(data))


@pytest.mark.thorough
def test_verify_needs_no_torch(pristine: Path, data: Path, lean: Lean) -> None:
    done = lean("-m", "deploy", "verify", pristine, "--data", data)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [re.split(r" {2,}", line.strip()) for line in done.stdout.splitlines()]
    cells = {row[0]: row[1:] for row in rows if len(row) == 5}
    assert cells["onnxruntime-int8"][0] == "same"
    assert cells["onnxruntime-int8"][2:] == ["95.00%", "holds"]
    assert cells["openvino-fp32"] == ["not installed", "-", "-", "-"]
    assert "Verified: every engine that was run" in done.stdout
    assert "pip install 'deploykit[openvino]'" in done.stdout.replace("\n", " ")


def test_the_bundle_is_not_changed_by_verifying(bundle_path: Path) -> None:
    before = Path(shutil.copytree(bundle_path, bundle_path.with_name("before")))
    verify(read_bundle(bundle_path))
    for file in before.rglob("*"):
        if file.is_file():
            assert (bundle_path / file.relative_to(before)).read_bytes() == file.read_bytes()
    assert read_bundle(bundle_path)


def test_labels_that_the_float_model_does_not_know_judge_nothing(
    pristine: Path, tmp_path: Path
) -> None:
    x = draw(600, seed=9)
    labels = np.random.default_rng(0).permutation(answer(x).argmax(axis=1))
    np.savez(tmp_path / "data.npz", x=x, y=labels)
    results = {r.name: r for r in verify(read_bundle(pristine), data=str(tmp_path / "data.npz"))}
    verdict = results["onnxruntime-int8"].verdict
    assert verdict is not None
    assert verdict.passed
    assert "SQNR" in verdict.gate
    assert "the labels judge nothing" in verdict.gate
    said = [warning for result in results.values() for warning in result.warnings]
    assert all("the labels judge nothing, and SQNR" in warning for warning in said)
    assert len(said) == sum(result.parity is not None for result in results.values()) > 1


def test_labels_that_are_too_few_are_said_to_be(pristine: Path, tmp_path: Path) -> None:
    x = draw(24, seed=9)
    np.savez(tmp_path / "data.npz", x=x, y=answer(x).argmax(axis=1))
    results = verify(read_bundle(pristine), data=str(tmp_path / "data.npz"))
    assert any(result.verdict and "SQNR" in result.verdict.gate for result in results)
    for result in results:
        (warning,) = result.warnings
        assert "24 labelled samples are too few to tell whether eager knows the labels" in warning


def test_labels_of_nothing_alone_are_said_to_judge_nothing(
    bundle_path: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", x=draw(40, seed=9), y=np.full((40, 3), -1))
    results = verify(read_bundle(bundle_path), data=str(tmp_path / "data.npz"))
    for result in results:
        assert result.parity is not None
        assert not result.parity.accuracies
        assert "stand for nothing: accuracy is not judged" in result.warnings[0]
    stream = io.StringIO()
    print_verification(results, Console(file=stream, width=200))
    assert stream.getvalue().count("stand for nothing") == 1
    assert "holds its gate on 40 samples of the data" in stream.getvalue()


def test_the_output_of_the_labels_can_be_named_and_must_be_there(
    pristine: Path, data: Path
) -> None:
    bundle = read_bundle(pristine)
    found = verify(bundle, data=str(data), config=BuildConfig(classes="logits"))
    assert all(result.verdict and "classes" not in result.verdict.gate for result in found)
    with pytest.raises(ConfigError, match=r"--classes 'scores'.*It has: logits:batchx3:float32"):
        verify(bundle, data=str(data), config=BuildConfig(classes="scores"))


def test_labels_that_do_not_fit_the_output_of_the_build_are_said_to(
    bundle_path: Path, tmp_path: Path
) -> None:
    """`--classes` is not spoken of: nobody gave it."""
    bundle = alter_report(
        read_bundle(bundle_path),
        lambda report: report["data"].update(classes_of="logits", classes_axis=1),
    )
    np.savez(tmp_path / "data.npz", x=draw(40, seed=9), y=np.zeros((40, 7, 5), int))
    with pytest.raises(DataError, match=r"data.npz: the labels are Nx7x5, .* fit logits:1") as info:
        verify(bundle, data=str(tmp_path / "data.npz"))
    assert "--classes" not in str(info.value)


def test_samples_are_drawn_from_all_over_data_that_is_sorted_by_class(
    pristine: Path, tmp_path: Path
) -> None:
    x = draw(900, seed=9)
    labels = answer(x).argmax(axis=1)
    order = np.argsort(labels)
    np.savez(tmp_path / "sorted.npz", x=x[order], y=labels[order])
    config = BuildConfig(evaluation_samples=300)
    results = verify(read_bundle(pristine), data=str(tmp_path / "sorted.npz"), config=config)
    assert results[0].parity is not None
    (accuracy,) = results[0].parity.accuracies.values()
    assert accuracy.samples == 300
    assert accuracy.above_chance  # of one class alone nothing could be told


@pytest.mark.parametrize("content", ["{}", "no report", '{"schema_version": 1}'])
def test_a_report_that_is_none_is_refused_without_data_as_well(
    bundle_path: Path, content: str
) -> None:
    (bundle_path / "report.json").write_text(content)
    with pytest.raises(BundleError, match=r"report\.json"):
        verify(reload(bundle_path))
