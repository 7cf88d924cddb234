"""A build on a machine with a GPU. Written where there was none; see docs/gpu.md."""

from pathlib import Path

import jsonschema
import pytest
import torch
from built_nets import QUICK, make_data, train

import deploy
from deploy.config import BuildConfig
from deploy.report import load_schema
from export.optional import is_installed
from export.tensorrt.products import PRODUCTS

pytestmark = pytest.mark.gpu


def test_engines_that_fit_are_judged_beside_eager_on_the_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    if not any(map(is_installed, PRODUCTS)):
        pytest.skip("neither TensorRT nor TensorRT for RTX is installed")
    data = make_data(tmp_path / "data.npz")
    config = BuildConfig(data=str(data), measure_seconds=QUICK, device="cuda")
    report = deploy.build(train(data), config, output=tmp_path / "net.deploy").report()
    jsonschema.validate(report, load_schema())
    assert report["measurement"]["device"] == "cuda"
    assert report["baseline"]["parity"]["outputs"][0]["sqnr_db"] > 40
    for row in report["candidates"]:
        if row["engine"] in PRODUCTS and row["status"] == "ok":
            assert row["latency"]["peak_fraction"] is None
            assert row["census"]["status"] == "ok", row["census"]["reason"]
