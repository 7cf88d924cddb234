"""The bundle that `benchmarks/serving.py` serves."""

import sys
from pathlib import Path

import numpy as np

import deploy

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from serving_models import write_identity  # noqa: E402


def test_it_is_a_bundle_whose_engine_answers_with_its_input(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "echo.deploy", (3, 4))
    x = np.random.default_rng(1).standard_normal((5, 3, 4), dtype=np.float32)
    with deploy.load(path) as engine:
        np.testing.assert_array_equal(engine({"x": x})["y"], x)


def test_its_report_is_one_that_deploy_reads(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "echo.deploy", (4,))
    report = deploy.read_bundle(path).report()
    assert [tensor["name"] for tensor in report["model"]["outputs"]] == ["y"]
