"""The ladder ends at the first rung that passes, at its top, or when its time is over."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import pytest
import torch
from built_nets import Net
from nets import randomize_norms
from torch import nn

from deploy.candidates.schemes import choose_scheme
from deploy.judging.gates import Verdict
from deploy.judging.parity import ParityAccumulator
from deploy.search.recovery import STEPS, Climb, Judged, Step, Tools, climb
from export.artifacts import OnnxModel
from export.fusion import fuse
from export.onnx.exporter import to_onnx
from quantize.calibration.calibrate import calibrate
from quantize.int8.adjustments import Adjustments
from quantize.sensitivity.by_block import Quantizer

IMAGES = np.random.default_rng(0).standard_normal((48, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    net = randomize_norms(Net(), seed=4).eval()
    program = fuse(net, torch.zeros(2, 3, 16, 16)).program
    path = tmp_path_factory.mktemp("ladder") / "model.onnx"
    return to_onnx(program, path, input_names=["x"], output_names=["y"], opset=20)


@pytest.fixture(scope="module")
def quantizer(model: OnnxModel) -> Quantizer:
    ranges = calibrate(model, [{"x": IMAGES[:32]}], observer="minmax")
    return Quantizer(model, ranges, choose_scheme("onnxruntime"))


def make_judge(model: OnnxModel, least: float) -> Callable[[Path, str], Judged]:
    """Really runs the file on images that calibration has not seen."""

    def run(path: Path) -> dict[str, np.ndarray[Any, Any]]:
        return {"y": onnxruntime.InferenceSession(str(path)).run(None, {"x": IMAGES[32:]})[0]}

    exact = run(model.path)

    def judge(file: Path, precision: str) -> Judged:
        parity = ParityAccumulator(("y",))
        parity.update(exact, run(file), rows=16)
        report = parity.result()
        passed = report.sqnr_db >= least
        reason = None if passed else f"SQNR {report.sqnr_db:.1f} dB"
        return Judged(file, report, Verdict(passed, f"SQNR at least {least} dB", reason))

    return judge


def run_ladder(
    quantizer: Quantizer,
    folder: Path,
    least: float,
    expired: Callable[[], bool] = lambda: False,
    *,
    judge: Callable[[Path, str], Judged] | None = None,
    allowed: tuple[Step, ...] = STEPS,
) -> Climb:
    judge = judge or make_judge(quantizer.model, least)
    tools = Tools(
        judge=judge,
        batches=lambda: iter([{"x": IMAGES[:32]}]),
        calibrate=lambda model: calibrate(model, [{"x": IMAGES[:32]}], observer="minmax"),
        orders=lambda quantizer: (quantizer.blocks(10),),
        folder=folder,
        steps=allowed,
        expired=expired,
    )
    plain = judge(quantizer.write(folder / "plain.onnx").path, "int8")
    return climb(quantizer, plain, tools)


def steps(climbed: Climb) -> list[str]:
    return [rung.step for rung in climbed.rungs]


def test_the_climb_ends_at_the_first_rung_that_passes(quantizer: Quantizer, tmp_path: Path) -> None:
    plain = run_ladder(quantizer, tmp_path, 0.0).rungs[0].sqnr_db
    assert plain is not None
    climbed = run_ladder(quantizer, tmp_path, plain + 1.0)
    assert climbed.passed
    assert climbed.best is not None
    assert climbed.best.parity.sqnr_db >= plain + 1.0
    assert [rung.passed for rung in climbed.rungs] == [False] * (len(climbed.rungs) - 1) + [True]


def test_a_gate_out_of_reach_is_tried_with_everything(quantizer: Quantizer, tmp_path: Path) -> None:
    climbed = run_ladder(quantizer, tmp_path, 150.0)
    assert not climbed.passed
    assert steps(climbed) == ["plain", "bias", "rounding", "equalization", "fallback"]
    assert climbed.best is not None
    plain = climbed.rungs[0].sqnr_db
    assert plain is not None
    assert climbed.best.parity.sqnr_db > plain


def test_nothing_is_begun_when_the_time_is_over(quantizer: Quantizer, tmp_path: Path) -> None:
    climbed = run_ladder(quantizer, tmp_path, 150.0, expired=lambda: True)
    assert steps(climbed) == ["plain", "bias", "rounding", "equalization", "fallback"]
    assert [rung.begun for rung in climbed.rungs] == [True, False, False, False, False]
    assert climbed.rungs[1].reason == "not tried: the time of the search was over"
    assert climbed.best is not None
    assert climbed.best.file.name == "plain.onnx"


def test_a_fallback_cut_short_keeps_the_best_that_passed(tmp_path: Path) -> None:
    """Of seven blocks the bisection asks about three, then about one."""
    net = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()) for _ in range(7)))
    program = fuse(net.eval(), torch.zeros(2, 3, 16, 16)).program
    path = tmp_path / "model.onnx"
    model = to_onnx(program, path, input_names=["x"], output_names=["y"], opset=20)
    ranges = calibrate(model, [{"x": IMAGES[:32]}], observer="minmax")
    quantizer = Quantizer(model, ranges, choose_scheme("onnxruntime"))
    plain = make_judge(model, 150.0)(quantizer.write(tmp_path / "plain.onnx").path, "int8")
    tools = Tools(
        judge=make_judge(model, 0.0),  # whatever leaves int8 will do
        batches=lambda: iter([{"x": IMAGES[:32]}]),
        calibrate=lambda model: ranges,
        orders=lambda quantizer: (quantizer.blocks(10),),
        folder=tmp_path,
        steps=("fallback",),
    )
    assert len(climb(quantizer, plain, tools).kept_float) == 1
    asked = itertools.count()
    cut = climb(quantizer, plain, replace(tools, expired=lambda: next(asked) >= 2))
    assert cut.passed
    assert len(cut.kept_float) == 3


def test_what_is_corrected_already_is_not_corrected_again(
    quantizer: Quantizer, tmp_path: Path
) -> None:
    from dataclasses import replace

    climbed = run_ladder(replace(quantizer, adjustments=Adjustments()), tmp_path, 150.0)
    assert steps(climbed) == ["plain", "rounding", "equalization", "fallback"]
    assert climbed.rungs[0].words.endswith("corrected biases")


def test_nothing_is_calibrated_anew_where_no_channels_can_be_equalized(tmp_path: Path) -> None:
    """SiLU is not homogeneous."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3)).eval()
    program = fuse(net, torch.zeros(2, 3, 16, 16)).program
    path = tmp_path / "model.onnx"
    model = to_onnx(program, path, input_names=["x"], output_names=["y"], opset=20)
    ranges = calibrate(model, [{"x": IMAGES[:32]}], observer="minmax")
    quantizer = Quantizer(model, ranges, choose_scheme("onnxruntime"))
    calibrated: list[OnnxModel] = []
    tools = Tools(
        judge=make_judge(model, 150.0),
        batches=lambda: iter([{"x": IMAGES[:32]}]),
        calibrate=lambda model: calibrated.append(model) or ranges,  # type: ignore[func-returns-value]
        orders=lambda quantizer: (quantizer.blocks(10),),
        folder=tmp_path,
        steps=("rounding", "equalization"),
    )
    plain = tools.judge(quantizer.write(tmp_path / "plain.onnx").path, "int8")
    climbed = climb(quantizer, plain, tools)
    assert steps(climbed) == ["plain", "rounding", "equalization"]
    assert "no layer has channels" in str(climbed.rungs[2].reason)
    assert calibrated == []
    assert climbed.best is not None
    assert climbed.best.file.name == "rounding.onnx"


def test_what_passes_is_the_best_though_its_noise_is_no_less(
    quantizer: Quantizer, tmp_path: Path
) -> None:
    """By labels a model may pass that is farther from the reference than one that fails."""
    judge = make_judge(quantizer.model, 150.0)

    def by_labels(file: Path, precision: str) -> Judged:
        judged = judge(file, precision)
        passed = file.stem == "rounding"
        worse = judge(worst, "int8").parity if passed else judged.parity
        return Judged(file, worse, Verdict(passed, "accuracy"))

    worst = quantizer.write(tmp_path / "worst.onnx").path
    model = onnx.load(worst)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale"):
            scale = 1.5 * onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(scale, tensor.name))
    onnx.save(model, worst)
    climbed = run_ladder(quantizer, tmp_path, 150.0, judge=by_labels)
    assert steps(climbed) == ["plain", "bias", "rounding"]
    assert climbed.passed
    assert climbed.best is not None
    assert climbed.best.file.name == "rounding.onnx"
    assert climbed.rungs[-1].sqnr_db < climbed.rungs[0].sqnr_db


def test_what_was_chosen_for_other_weights_does_not_outlast_equalization(
    quantizer: Quantizer, tmp_path: Path
) -> None:
    corrected = replace(quantizer, adjustments=Adjustments())
    judge = make_judge(quantizer.model, 150.0)

    def after(file: Path, precision: str) -> Judged:
        judged = judge(file, precision)
        return replace(judged, verdict=Verdict(file.stem == "equalization", "accuracy"))

    climbed = run_ladder(corrected, tmp_path, 150.0, judge=after, allowed=("equalization",))
    assert steps(climbed) == ["plain", "equalization"]
    assert climbed.passed
    assert climbed.quantizer.model != quantizer.model
    assert climbed.quantizer.adjustments is None
