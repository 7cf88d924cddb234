"""Calibration sees what inputs of other sizes bring."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.cache import Cache
from deploy.candidates.calibration import Calibrator
from deploy.config import BuildConfig
from deploy.inputs.dataset import VALUE_BYTES
from deploy.source import open_problem
from export.artifacts import TensorSpec
from export.capture.program import capture
from export.onnx.exporter import to_onnx
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.audit import Finding
from quantize.calibration.ranges import Ranges


class Summed(nn.Module):
    """What it holds grows with the area of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.sum((2, 3)))


def calibrate_on(
    x: np.ndarray, given: str, folder: Path, progress: ProgressCallback = ignore_progress
) -> tuple[Ranges, tuple[Finding, ...]]:
    """The ranges, and what the audit says of the data."""
    np.savez(folder / "data.npz", x=x[:4], calibration_x=x[4:])
    config = BuildConfig(data=str(folder / "data.npz"), inputs=(given,), observer="minmax")
    problem = open_problem(Summed().eval(), config, folder)
    spec: TensorSpec = problem.signature.inputs[0]
    program = capture(
        problem.module,
        {"x": torch.from_numpy(x[:2])},
        keyword=False,
        dynamic_batch=True,
        inputs=[spec],
    )
    model = to_onnx(
        program,
        folder / "model.onnx",
        input_names=["x"],
        output_names=["y"],
        opset=20,
        axes=problem.signature.axis_names,
    )
    calibrator = Calibrator(
        problem, config, threads=1, cache=Cache(folder / "cache"), progress=progress
    )
    ranges = calibrator(model)
    return ranges, calibrator.audit(model, ranges)


def test_ranges_hold_at_both_ends_of_a_dynamic_axis(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(1, 2, (36, 3, 8, 8)).astype(np.float32)
    sums = x[4:].sum((2, 3))
    for given, factor in (("1x3x8x8", 1.0), ("1x3x8:8:16x8", 2.0)):
        folder = tmp_path / given.replace(":", "_")
        folder.mkdir()
        found = calibrate_on(x, given, folder)[0].ranges.values()
        assert any(np.isclose(high, factor * sums.max(), rtol=0.1) for _, high in found), given


def test_samples_that_come_again_at_other_sizes_are_counted_once(tmp_path: Path) -> None:
    """They make the ranges twice as wide, which more samples would not mend."""
    x = np.random.default_rng(0).uniform(1, 2, (36, 3, 8, 8)).astype(np.float32)
    ranges, findings = calibrate_on(x, "1x3x8:8:16x8", tmp_path)
    assert (ranges.earlier_samples, ranges.samples) == (16, 32)
    widened = [
        ranges.ranges[name][1] / high for name, (_, high) in ranges.settled.items() if high > 1
    ]
    assert max(widened) == pytest.approx(2, rel=0.1)
    assert "convergence" not in {finding.kind for finding in findings}


@pytest.mark.parametrize("given", ["1x3x8x8", "1x3x8:8:16x8"])
def test_progress_ends_where_it_said(given: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(1, 2, (24, 3, 8, 8)).astype(np.float32)
    seen: list[Progress] = []
    calibrate_on(x, given, tmp_path, seen.append)
    last = [each for each in seen if each.stage == "calibrate"][-1]
    assert last.done == last.total


def test_a_network_of_large_values_is_calibrated_on_few_samples_at_a_time(tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(1, 2, (36, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x[:4], calibration_x=x[4:])
    config = BuildConfig(data=str(tmp_path / "data.npz"), inputs=("1x3x8x8",))
    problem = open_problem(Summed().eval(), config, tmp_path)
    for row_bytes, most in ((0, 8), (VALUE_BYTES // 3, 3), (2 * VALUE_BYTES, 1)):
        large = replace(problem, row_bytes=row_bytes)
        calibrator = Calibrator(large, config, threads=1, cache=Cache(tmp_path / "cache"))
        batches = [batch["x"] for batch in calibrator.batches()]
        assert max(map(len, batches)) == most
        np.testing.assert_array_equal(np.concatenate(batches), x[4:])
