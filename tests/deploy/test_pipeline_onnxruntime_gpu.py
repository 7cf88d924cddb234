"""A build with ONNX Runtime on a real GPU. Written where there was none; see docs/gpu.md."""

from pathlib import Path

import jsonschema
import pytest
import torch
from built_nets import QUICK, make_data, train
from tiny import hide_engines

import deploy
from deploy.commands.verification import verify
from deploy.config import BuildConfig
from deploy.engines.onnxruntime_cuda import has_cuda_provider
from deploy.report import load_schema

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_cuda_provider(), reason="this ONNX Runtime has no CUDA provider"),
]


def test_onnxruntime_on_the_gpu_is_judged_and_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_engines(monkeypatch, "openvino", "tensorrt_rtx", "tensorrt")
    data = make_data(tmp_path / "data.npz")
    device = "cuda" if torch.cuda.is_available() else "auto"
    config = BuildConfig(data=str(data), measure_seconds=QUICK, device=device)
    bundle = deploy.build(train(data), config, output=tmp_path / "net.deploy")
    report = bundle.report()
    jsonschema.validate(report, load_schema())
    rows = {row["name"]: row for row in report["candidates"] if "-cuda" in row["name"]}
    assert set(rows) == {
        "onnxruntime-tf32-cuda",
        "onnxruntime-fp16-cuda",
        "onnxruntime-fp16-cuda-nhwc",
        "onnxruntime-tf32-cuda-graphs",
        "onnxruntime-fp16-cuda-graphs",
    }
    for name, row in rows.items():
        assert row["device"] == "cuda"
        assert row["parity"]["passed"], row["reason"]
        assert row["latency"]["peak_fraction"] is None
        assert row["census"]["status"] == "ok", row["census"]["reason"]
        assert not any(place.get("on_cpu") for place in row["census"]["remainder"])
        assert bundle.manifest.engines[name].variant == name.split("-", 2)[2]
    assert all(result.holds for result in verify(bundle, threads=1))
