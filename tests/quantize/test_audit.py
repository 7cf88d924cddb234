"""Planted faults in data are found and named; good data is not blamed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_nets import Net

from export.artifacts import OnnxModel
from quantize.audit import Finding, InputProfile, audit_data
from quantize.calibration.calibrate import calibrate


def _model(folder: Path) -> tuple[Net, OnnxModel]:
    """Three layers, the second of which came from the module ``layer1.conv``."""
    net = Net(3, 12, 12)
    x = net.op("Relu", net.conv("x", 3, 8, name="stem"), name="stem_relu")
    x = net.conv(x, 8, 8, name="middle")
    x = net.op("Sigmoid", x, name="gate")
    model = net.save(folder / "m.onnx", net.conv(x, 8, 4, name="last"))
    proto = onnx.load(model.path)
    for node in proto.graph.node:
        if node.name == "middle":
            scopes = "['', 'layer1', 'layer1.conv', 'conv']"
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    onnx.save(proto, model.path)
    return net, model


def _images(count: int, seed: int) -> np.ndarray:
    """Images that differ in brightness as well."""
    random = np.random.default_rng(seed)
    level = random.normal(0, 0.5, (count, 3, 1, 1))
    return (level + random.normal(0, 1, (count, 3, 12, 12))).astype(np.float32)


def _batches(x: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    return ({"x": x[start : start + 8]} for start in range(0, len(x), 8))


def _audit(
    folder: Path, calibration: np.ndarray, evaluation: np.ndarray, observer: str = "minmax"
) -> tuple[Finding, ...]:
    _, model = _model(folder)
    profile = InputProfile()
    batches = profile.watch(_batches(calibration))
    ranges = calibrate(model, batches, observer=observer, total=len(calibration))
    return audit_data(model, ranges, profile, _batches(evaluation))


def _kinds(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.kind for finding in findings}


@pytest.mark.parametrize("observer", ["minmax", "percentile-99.9", "entropy", "auto"])
def test_good_data_is_not_blamed(tmp_path: Path, observer: str) -> None:
    assert _audit(tmp_path, _images(128, 0), _images(64, 1), observer) == ()


def test_one_sample_and_few(tmp_path: Path) -> None:
    for count, words in ((1, "come from one sample:"), (9, "come from 9 samples:")):
        findings = _audit(tmp_path, _images(count, 0), _images(64, 1))
        assert any(words in finding.words for finding in findings)
        few = next(finding for finding in findings if finding.kind == "few samples")
        assert "--calibration-samples" in few.words


def test_black_and_repeated_images(tmp_path: Path) -> None:
    x = _images(64, 0)
    x[5] = x[9] = x[30] = 0
    findings = _audit(tmp_path, x, _images(64, 1))
    assert _kinds(findings) == {"constant samples", "repeated samples"}
    assert "3 of the 64 calibration samples hold one value throughout" in findings[0].words
    assert "2 of the 64 calibration samples repeat others" in findings[1].words


def test_one_of_them_is_no_plural(tmp_path: Path) -> None:
    x, evaluation = _images(64, 0), _images(64, 1)
    x[5], x[8], evaluation[3] = 0, x[7], x[10]
    words = " ".join(finding.words for finding in _audit(tmp_path, x[:48], evaluation))
    assert "1 of the 48 calibration samples holds one value throughout" in words
    assert "1 of the 48 calibration samples repeats others" in words
    assert "1 of the 64 evaluation samples looked at is a calibration sample" in words


def test_samples_of_both_splits(tmp_path: Path) -> None:
    evaluation = _images(64, 1)
    evaluation[:4] = _images(128, 0)[7:11]
    (finding,) = _audit(tmp_path, _images(128, 0), evaluation)
    assert finding.kind == "shared samples"
    assert "4 of the 64 evaluation samples looked at are calibration samples" in finding.words


def test_pixels_of_0_to_255_beside_0_to_1(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (192, 3, 12, 12)).astype(np.float32)
    findings = _audit(tmp_path, pixels[:128] / 255, pixels[128:])
    scale = next(finding for finding in findings if finding.kind == "input scale")
    assert scale.where == "x"
    assert "spans 0 to 1 in calibration and 0 to 255 in evaluation, 25" in scale.words
    assert "saturation" in _kinds(findings)
    reverse = _audit(tmp_path, pixels[:128], pixels[128:] / 255)
    assert {"input scale", "drift"} <= _kinds(reverse)  # ranges of which little is used


def test_pixels_that_were_not_scaled(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (192, 3, 12, 12)).astype(np.float32)
    (finding,) = _audit(tmp_path, pixels[:128], pixels[128:])
    assert finding.kind == "input scale"
    assert "whole numbers from 0 to 255" in finding.words
    assert _audit(tmp_path, pixels[:128] / 255, pixels[128:] / 255) == ()


def test_drift_of_one_channel(tmp_path: Path) -> None:
    evaluation = _images(64, 1)
    evaluation[:, 1] += 1.5
    findings = _audit(tmp_path, _images(128, 0), evaluation)
    drift = next(finding for finding in findings if finding.kind == "drift")
    assert drift.where == "x"
    assert drift.words.startswith("Channel 1 of input 'x' has mean ")
    assert "more channel" not in drift.words


def test_a_wider_spread_is_drift(tmp_path: Path) -> None:
    findings = _audit(tmp_path, _images(128, 0), 3 * _images(64, 1))
    drift = next(finding for finding in findings if finding.kind == "drift")
    assert "and 2 more channels are like it" in drift.words
    saturation = next(finding for finding in findings if finding.kind == "saturation")
    assert "of the evaluation values of" in saturation.words
    assert "--calibration-samples (128 were used)" in saturation.words


def test_saturation_names_the_module_that_makes_the_tensor(tmp_path: Path) -> None:
    net, model = _model(tmp_path)
    profile = InputProfile()
    ranges = calibrate(model, profile.watch(_batches(_images(128, 0))), total=128)
    narrow = {"middle_out": (-0.01, 0.01)}
    ranges = type(ranges)(**{**vars(ranges), "ranges": {**ranges.ranges, **narrow}})
    (finding,) = audit_data(model, ranges, profile, _batches(_images(64, 1)))
    assert (finding.kind, finding.where) == ("saturation", "layer1.conv")
    assert "of the evaluation values of 'layer1.conv' lie outside" in finding.words
    share = int(finding.words.split("%")[0])
    x = net.feed(1)["x"]
    assert x.shape == (1, 3, 12, 12)
    assert share > 90


def test_what_the_observer_clips_by_design_is_no_fault_of_the_data(tmp_path: Path) -> None:
    heavy = np.random.default_rng(0).standard_t(3, (192, 3, 12, 12)).astype(np.float32)
    findings = _audit(tmp_path, heavy[:128], heavy[128:], "percentile-99.9")
    assert "saturation" not in _kinds(findings)


def test_ranges_that_still_grow(tmp_path: Path) -> None:
    x = _images(128, 0)
    x *= np.linspace(0.2, 1, 128).reshape(-1, 1, 1, 1).astype(np.float32)
    findings = _audit(tmp_path, x, _images(64, 1))
    growing = next(finding for finding in findings if finding.kind == "convergence")
    assert "from the first 64 to all 128 calibration samples" in growing.words
    assert "they have not settled" in growing.words


def test_an_outlier_that_only_calibration_has(tmp_path: Path) -> None:
    x = _images(128, 0)
    x[3, 0, 0, 0] = 500
    findings = _audit(tmp_path, x, _images(64, 1))
    unused = next(finding for finding in findings if "coarser than it need be" in finding.words)
    assert unused.kind == "drift"
    assert "--observer auto" in unused.words


def test_a_dead_input_channel(tmp_path: Path) -> None:
    x, evaluation = _images(128, 0), _images(64, 1)
    x[:, 2] = evaluation[:, 2] = 0.25
    (finding,) = _audit(tmp_path, x, evaluation)
    assert (finding.kind, finding.where) == ("dead channels", "x")
    assert "Channel 2 of input 'x' is 0.25 in every calibration sample." in finding.words


def test_channels_that_only_evaluation_wakes(tmp_path: Path) -> None:
    x = _images(128, 0)
    x[:, 2] = 0
    findings = _audit(tmp_path, x, _images(64, 1))
    awake = [finding for finding in findings if "not in evaluation" in finding.words]
    assert [finding.where for finding in awake] == ["x"]
    assert awake[0].words.startswith("1 of the 3 channels of 'x' is 0 in all calibration samples")


def test_constant_data_in_all(tmp_path: Path) -> None:
    black = np.zeros((64, 3, 12, 12), np.float32)
    findings = _audit(tmp_path, black, black)
    assert {"constant samples", "repeated samples", "shared samples"} <= _kinds(findings)


def test_no_evaluation_data_at_all(tmp_path: Path) -> None:
    assert _audit(tmp_path, _images(128, 0), _images(0, 1)) == ()


def test_what_evaluation_alone_makes_infinite_is_named_and_nothing_breaks(tmp_path: Path) -> None:
    net = Net(3, 12, 12)
    pooled = net.op(
        "MaxPool", net.op("Log", "x", name="logarithm"), kernel_shape=[2, 2], strides=[2, 2]
    )
    model = net.save(tmp_path / "m.onnx", net.conv(pooled, 3, 4, name="only"))
    calibration, evaluation = (np.abs(_images(64, seed)) + 0.1 for seed in (0, 1))
    evaluation[40, 1, 3, 3] = 0
    profile = InputProfile()
    ranges = calibrate(model, profile.watch(_batches(calibration)), total=64)
    first = audit_data(model, ranges, profile, _batches(evaluation))[0]
    assert (first.kind, first.where) == ("saturation", "logarithm")
    assert "infinite or NaN" in first.words
    assert "more tensor" not in first.words


def test_values_whose_sum_overflows_are_no_fault(tmp_path: Path) -> None:
    net = Net(3, 12, 12)
    huge = net.op("Mul", "x", net.constant("huge", np.float32(1e37)), name="scaled")
    model = net.save(tmp_path / "m.onnx", net.conv(huge, 3, 4, name="only"))
    calibration, evaluation = (np.abs(_images(64, seed)) + 0.1 for seed in (0, 1))
    profile = InputProfile()
    ranges = calibrate(model, profile.watch(_batches(calibration)), total=64)
    assert audit_data(model, ranges, profile, _batches(evaluation)) == ()
