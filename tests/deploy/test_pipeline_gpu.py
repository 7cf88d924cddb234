"""A build on a machine with a GPU, and what is done with its bundle. Written where there was none;
see docs/gpu.md."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built_nets import QUICK, Net, make_data, train
from tiny import Cli
from torch import nn

import deploy
from deploy.bundle.folder import Bundle
from deploy.config import BuildConfig
from deploy.engines.base import EngineSpec
from deploy.engines.process import EngineProcess
from deploy.report import load_schema
from export.artifacts import TensorSpec
from export.errors import EngineError
from export.optional import is_installed
from export.tensorrt.products import PRODUCTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch has no CUDA"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "data.npz")


@pytest.fixture(scope="module")
def net(data: Path) -> Net:
    return train(data)


@pytest.fixture(scope="module")
def bundle(net: Net, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A whole build with the baseline on the GPU."""
    config = BuildConfig(data=str(data), measure_seconds=QUICK, device="cuda")
    target = tmp_path_factory.mktemp("build") / "net.deploy"
    return deploy.build(net, config, output=target)


def test_the_report_has_eager_on_the_gpu_and_whatever_ran_beside_it(bundle: Bundle) -> None:
    report = bundle.report()
    if is_installed("jsonschema"):
        import jsonschema

        jsonschema.validate(report, load_schema())
    assert report["measurement"]["device"] == "cuda"
    assert report["machine"]["gpu"] is not None
    assert report["baseline"]["parity"]["outputs"][0]["sqnr_db"] > 40
    by_name = {row["name"]: row for row in report["candidates"]}
    assert by_name["onnxruntime-fp32"]["parity"] is not None
    for row in report["candidates"]:
        if row["engine"] in PRODUCTS and row["status"] == "ok":
            assert row["latency"]["peak_fraction"] is None
            assert row["census"]["status"] == "ok", row["census"]["reason"]
        if row["engine"] in PRODUCTS and row["status"] != "ok":
            assert row["reason"], row["name"]


def test_the_bundle_answers_as_the_module_does(bundle: Bundle, net: Net, data: Path) -> None:
    with np.load(data) as arrays:
        x = arrays["x"][:8]
    with torch.inference_mode():
        expected = net(torch.from_numpy(x)).numpy()
    with deploy.load(bundle.path, trust=("*",)) as engine:
        (got,) = engine({name.name: x for name in engine.inputs}).values()
    assert float(np.abs(got - expected).max()) < 0.1 * float(np.abs(expected).max())


def test_verify_bench_and_debug_run_on_what_was_built(bundle: Bundle, data: Path, cli: Cli) -> None:
    code, out, err = cli("verify", bundle.path, "--trust-all")
    assert code == 0, out + err
    code, out, err = cli("verify", bundle.path, "--trust-all", "--data", data)
    assert code == 0, out + err
    code, out, err = cli("bench", bundle.path, "--trust-all", "--measure-seconds", "0.5")
    assert code == 0, out + err
    assert bundle.winner in out
    code, out, err = cli("debug", "precision", bundle.path, "--precision", "fp16", "--builds", "5")
    assert code in (0, 1), out + err


def test_a_second_build_of_the_same_keeps_the_bundle(bundle: Bundle, net: Net, data: Path) -> None:
    config = BuildConfig(data=str(data), measure_seconds=QUICK, device="cuda")
    assert deploy.build(net, config, output=bundle.path).reused


class Stubborn(nn.Module):
    """Keeps a tensor where it was made, as modules do that forget to register a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.scale = torch.full((8,), 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 8] to [N, 4]."""
        return torch.relu(self.linear(x * self.scale))


def test_a_model_that_stays_on_the_cpu_is_told_and_measured_there(tmp_path: Path) -> None:
    config: dict[str, Any] = {"inputs": ("2x8",), "measure_seconds": QUICK, "threads": 1}
    path = tmp_path / "net.deploy"
    report = deploy.build(Stubborn().eval(), BuildConfig(**config), output=path).report()
    assert report["measurement"]["device"] == "cpu"
    assert any("so eager ran on the CPU" in warning for warning in report["warnings"])
    with pytest.raises(EngineError, match="--device cuda: the model does not run"):
        deploy.build(Stubborn().eval(), BuildConfig(**config, device="cuda"), output=path)


def test_children_that_use_the_gpu_come_from_a_parent_that_uses_it(tmp_path: Path) -> None:
    """CUDA does not live through a fork; children are started anew."""
    torch.ones(1, device="cuda")
    torch.save(nn.Linear(4, 3).eval(), tmp_path / "model.pt")
    names = {"inputs": ("x", 4), "outputs": ("y", 3)}
    signature = {
        key: (TensorSpec(name, ("batch", size), "float32"),) for key, (name, size) in names.items()
    }
    spec = EngineSpec("torch", "fp32", str(tmp_path / "model.pt"), 1, **signature, variant="cuda")
    with EngineProcess(spec) as process:
        assert process({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 3)
