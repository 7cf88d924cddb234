"""int8 that fails its gate is recovered or mixed with float; the report says how far it went."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nets import randomize_norms
from tiny import hide_engines
from torch import nn

import deploy
from deploy.bundle.folder import Bundle
from deploy.config import BuildConfig
from deploy.search.recovery import STEPS

pytestmark = [pytest.mark.long, pytest.mark.thorough]

QUICK = 0.5


class Net(nn.Module):
    """Four convolutions, one of them pointwise; 3 channels of 16x16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1),
            nn.BatchNorm2d(24),
            nn.ReLU(),
            nn.Conv2d(24, 24, 1),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores, [N, 5]."""
        return self.head(self.pool(self.body(self.stem(x))).flatten(1))


Build = Callable[..., Bundle]


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(3)
    return randomize_norms(Net(), seed=3).eval()


@pytest.fixture(scope="module")
def build(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds the net on unlabelled data, in a cache of its own."""
    folder = tmp_path_factory.mktemp("search")
    rng = np.random.default_rng(0)
    images = rng.standard_normal((96, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "data.npz", x=images[:64], calibration_x=images[64:])

    def run(name: str = "net", **options: Any) -> Bundle:
        config = BuildConfig(
            data=str(folder / "data.npz"), measure_seconds=QUICK, min_agreement=0.0, **options
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DEPLOY_CACHE", str(folder / "cache"))
            hide_engines(patch, "tensorrt_rtx", "tensorrt")
            return deploy.build(net, config, output=folder / f"{name}.deploy")

    return run


@pytest.fixture(scope="module")
def plain(build: Build) -> dict[str, Any]:
    """The report of a build in which int8 passes as it is."""
    return build("plain", min_sqnr=5.0).report()


def sqnr(candidate: dict[str, Any]) -> float:
    return min(output["sqnr_db"] for output in candidate["parity"]["outputs"])


def find(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in report["candidates"] if c["name"] == name)


def test_int8_that_passes_is_left_as_it_is(plain: dict[str, Any]) -> None:
    for engine in ("onnxruntime", "openvino"):
        assert find(plain, f"{engine}-int8")["recovery"] == []
    assert plain["search"]["effort"] == "normal"


def test_every_block_of_the_chart_has_its_noise_and_its_times(plain: dict[str, Any]) -> None:
    blocks = plain["search"]["blocks"]
    assert [block["name"] for block in blocks] == ["stem.0", "body.0", "body.3", "head"]
    assert sum(block["layers"] for block in blocks) == 4
    assert all(block["sqnr_db"] is None or block["sqnr_db"] > 5 for block in blocks)
    assert any(block["int8_seconds"] and block["float_seconds"] for block in blocks)


@pytest.fixture(scope="module")
def strict(build: Build, plain: dict[str, Any]) -> tuple[Bundle, float]:
    """A build whose gate lies above plain int8, and that gate in dB."""
    least = max(sqnr(find(plain, f"{e}-int8")) for e in ("onnxruntime", "openvino")) + 3.0
    return build("strict", min_sqnr=least, effort="quick"), least


def test_int8_below_the_gate_is_brought_over_it(strict: tuple[Bundle, float]) -> None:
    bundle, least = strict
    report = bundle.report()
    for engine in ("onnxruntime", "openvino"):
        int8 = find(report, f"{engine}-int8")
        steps = [rung["step"] for rung in int8["recovery"]]
        assert steps[0] == "plain"
        assert "corrected biases" in int8["recovery"][0]["words"]
        assert steps[1:] == list(STEPS)[1 : len(steps)]
        assert not int8["recovery"][0]["passed"]
        if int8["parity"]["passed"]:
            assert int8["recovery"][-1]["passed"]
            assert sqnr(int8) >= least
            continue
        mixed = find(report, f"{engine}-mixed")
        assert mixed["recovery"][-1] == {
            **mixed["recovery"][-1],
            "step": "fallback",
            "passed": True,
        }
        assert mixed["kept_float"]
        assert sqnr(mixed) >= least


def test_what_was_recovered_runs_from_the_bundle(strict: tuple[Bundle, float]) -> None:
    bundle, least = strict
    x = np.random.default_rng(1).standard_normal((3, 3, 16, 16)).astype(np.float32)
    entries = bundle.manifest.engines.items()
    engines = [n for n, e in entries if e.precision in ("int8", "mixed") and e.not_run is None]
    assert engines
    with deploy.load(bundle.path, engine="onnxruntime-fp32") as reference:
        expected = next(iter(reference({"x": x}).values()))
    for name in engines:
        with deploy.load(bundle.path, engine=name) as engine:
            ours = next(iter(engine({"x": x}).values()))
        error = np.square(ours - expected).sum() / np.square(expected).sum()
        assert -10 * np.log10(error) > least - 6


@pytest.mark.slow
def test_a_gate_that_no_step_can_hold_leaves_float(build: Build) -> None:
    steps = ("bias", "rounding")
    report = build("impossible", min_sqnr=110.0, recover=steps, effort="quick").report()
    assert report["winner"] in ("onnxruntime-fp32", "openvino-fp32", "torch")
    int8 = find(report, "onnxruntime-int8")
    assert not int8["parity"]["passed"]
    assert "tried in vain: clipping and adaptive rounding" in int8["reason"]
    assert [rung["step"] for rung in int8["recovery"]] == ["plain", "rounding"]
    assert not any(rung["passed"] for rung in int8["recovery"])
