"""Biases are corrected from data, for every target, once; never from inputs that are made up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from built_nets import Net
from nets import randomize_norms

from deploy.cache import Cache
from deploy.candidates.calibration import Calibrator
from deploy.candidates.corrections import Corrections
from deploy.candidates.schemes import choose_scheme
from deploy.config import BuildConfig
from deploy.source import open_problem
from export.artifacts import OnnxModel
from export.errors import QuantizeError
from export.fusion import fuse
from export.onnx.exporter import to_onnx
from export.progress import Progress
from quantize.int8.insertion import quantize_int8
from quantize.scheme import PRESETS


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Positive, as after a ReLU, so that errors of rounding weights have a mean."""
    rng = np.random.default_rng(0)
    return np.abs(rng.standard_normal((96, 3, 16, 16))).astype(np.float32)


@pytest.fixture(scope="module")
def calibrator(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Calibrator:
    folder = tmp_path_factory.mktemp("corrections")
    np.savez(folder / "data.npz", x=images[:32], calibration_x=images[32:])
    config = BuildConfig(data=str(folder / "data.npz"))
    problem = open_problem(randomize_norms(Net(), seed=1).eval(), config, folder)
    return Calibrator(problem, config, threads=1, cache=Cache(folder / "cache"))


@pytest.fixture(scope="module")
def model(calibrator: Calibrator, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    program = fuse(calibrator.problem.module, torch.zeros(2, 3, 16, 16)).program
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    return to_onnx(program, path, input_names=["x"], output_names=["y"], opset=20)


@pytest.fixture(scope="module")
def corrections(calibrator: Calibrator, model: OnnxModel) -> Corrections:
    return Corrections(calibrator, model, calibrator(model))


def mean_errors(
    corrections: Corrections, images: np.ndarray, path: Path, *, corrected: bool
) -> np.ndarray:
    """Mean over samples of int8 - float, of every output."""
    assert not isinstance(corrections.ranges, QuantizeError)
    quantize_int8(
        corrections.model,
        corrections.ranges,  # type: ignore[arg-type]
        choose_scheme("onnxruntime"),
        path,
        adjustments=corrections("onnxruntime") if corrected else None,
    )
    exact, ours = (
        onnxruntime.InferenceSession(str(file)).run(None, {"x": images})[0]
        for file in (corrections.model.path, path)
    )
    return (ours - exact).mean(axis=0)


def test_the_mean_error_on_samples_never_seen_shrinks(
    corrections: Corrections, images: np.ndarray, tmp_path: Path
) -> None:
    held_out = images[:32]
    plain = mean_errors(corrections, held_out, tmp_path / "plain.onnx", corrected=False)
    after = mean_errors(corrections, held_out, tmp_path / "after.onnx", corrected=True)
    assert np.square(after).sum() < 0.5 * np.square(plain).sum()


@pytest.mark.parametrize("target", sorted(PRESETS))
def test_every_layer_of_every_target_has_its_bias(corrections: Corrections, target: str) -> None:
    adjustments = corrections(target)
    assert adjustments is not None
    assert len(adjustments.layers) == 3
    assert all(layer.codes is None for layer in adjustments.layers.values())


def test_an_earlier_build_s_biases_are_taken_over_to_the_bit(corrections: Corrections) -> None:
    first = corrections("openvino")
    assert first is not None

    def refuse(progress: Progress) -> None:
        raise AssertionError(f"{progress.stage} was run again")

    again = replace(corrections.calibrator, progress=refuse)
    second = Corrections(again, corrections.model, corrections.ranges)("openvino")
    assert second is not None
    for name, layer in first.layers.items():
        np.testing.assert_array_equal(layer.bias, second.layers[name].bias)
    assert first.skipped == second.skipped


@pytest.mark.parametrize("recover", [("none",), ("rounding", "fallback")])
def test_nothing_is_corrected_where_recovery_leaves_it_out(
    corrections: Corrections, recover: tuple[str, ...]
) -> None:
    config = replace(corrections.calibrator.config, recover=recover)  # type: ignore[arg-type]
    calibrator = replace(corrections.calibrator, config=config)
    assert Corrections(calibrator, corrections.model, corrections.ranges)("openvino") is None


def test_inputs_that_are_made_up_correct_nothing(corrections: Corrections, tmp_path: Path) -> None:
    config = BuildConfig(inputs=("1x3x16x16",))
    problem = open_problem(Net().eval(), config, tmp_path)
    calibrator = replace(corrections.calibrator, problem=problem, config=config)
    assert Corrections(calibrator, corrections.model, corrections.ranges)("openvino") is None
