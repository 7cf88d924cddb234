"""A build whose baseline runs on the GPU: what of it can be followed without one.

Eager is opened on the CPU in place of the GPU, and all around it is as it would be there.
"""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from built_nets import QUICK
from torch import nn

import deploy
import deploy.pipeline
from deploy.bundle.folder import Bundle
from deploy.config import BuildConfig
from deploy.engines.base import EngineSpec
from deploy.report import load_schema
from deploy.source import Problem
from export.errors import EngineError

pytestmark = pytest.mark.usefixtures("onnxruntime_alone")

CONFIG = BuildConfig(inputs=("2x8",), measure_seconds=QUICK, threads=1)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager is asked for on the GPU, and runs on the CPU."""
    plain = Problem.baseline_spec

    def open_here(problem: Problem, threads: int, device: str = "cpu") -> EngineSpec:
        return plain(problem, threads)

    monkeypatch.setattr(deploy.pipeline, "choose_device", lambda asked: "cuda")
    monkeypatch.setattr(Problem, "baseline_spec", open_here)


def build(folder: Path, **changes: Any) -> Bundle:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    torch.manual_seed(0)
    config = BuildConfig(**{**vars(CONFIG), **changes})
    return deploy.build(net, config, output=folder / "net.deploy")


@pytest.mark.thorough
@pytest.mark.usefixtures("on_gpu")
def test_the_report_says_where_eager_ran_and_how_far_it_is_from_the_reference(
    tmp_path: Path,
) -> None:
    report = build(tmp_path).report()
    jsonschema.validate(report, load_schema())
    assert report["measurement"]["device"] == "cuda"
    parity = report["baseline"]["parity"]
    assert parity["passed"]
    assert parity["gate"] == "none: the baseline"
    assert parity["outputs"][0]["max_abs"] == 0  # it is the reference here
    assert "torch" not in {row["name"] for row in report["candidates"]}


@pytest.mark.thorough
def test_a_model_that_does_not_run_there_is_measured_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch has a GPU here, and the model runs there")
    monkeypatch.setattr(deploy.pipeline, "choose_device", lambda asked: "cuda")
    report = build(tmp_path).report()
    assert report["measurement"]["device"] == "cpu"
    assert report["baseline"]["parity"] is None
    assert any("so eager ran on the CPU" in warning for warning in report["warnings"])
    with pytest.raises(EngineError, match="--device cuda: the model does not run on the GPU"):
        build(tmp_path, device="cuda", remeasure=True)
