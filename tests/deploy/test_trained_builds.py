"""`deploy build` of really trained nets that plain int8 ruins: within half a point of float.

How plain per-tensor int8 ruins them is in tests/quantize/recover/test_recovery_ladder.py.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from trained import MobileNet, RepVGG, Task, Training, digits, shapes, train_once

import deploy
from deploy.config import BuildConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("sklearn") is None,
        reason="the nets are trained on scikit-learn's digits",
    ),
]

HALF_A_POINT = 0.005
SAMPLES = 256


def repvgg() -> nn.Module:
    """Its identity branches saw channels of tiny variance."""
    return RepVGG(1, 10, quiet=1 / 64)


def mobilenet() -> nn.Module:
    """For 24 classes."""
    return MobileNet(3, 24, activation=nn.SiLU)


@pytest.mark.parametrize(
    ("name", "make", "task", "settings"),
    [
        ("repvgg-quiet", repvgg, digits, Training(epochs=6, norm_rate=0.003)),
        ("shapes-silu", mobilenet, shapes, Training(epochs=6)),
    ],
)
def test_int8_comes_within_half_a_point(
    name: str,
    make: Callable[[], nn.Module],
    task: Callable[[], Task],
    settings: Training,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    samples = task()
    cache = Path(request.config.cache.mkdir("trained"))
    net = train_once(name, make, samples, settings, cache)
    data = tmp_path / "data.npz"
    np.savez(data, x=samples.test_x, y=samples.test_y, calibration_x=samples.train_x[:SAMPLES])
    config = BuildConfig(data=str(data), max_drop=HALF_A_POINT, measure_seconds=5)
    report = deploy.build(net, config, output=tmp_path / "net.deploy").report()
    rows = {row["name"]: row for row in report["candidates"]}
    for engine in ("onnxruntime", "openvino"):
        few = [rows[n] for n in (f"{engine}-int8", f"{engine}-mixed") if n in rows]
        held = [row for row in few if row["parity"] is not None and row["parity"]["passed"]]
        assert held, [row["reason"] for row in few]
        for row in held:
            accuracy = row["parity"]["accuracy"]
            assert accuracy["reference"] - accuracy["candidate"] <= HALF_A_POINT + 1e-9
