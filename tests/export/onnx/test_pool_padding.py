"""Padding by minus infinity, which TensorFlow's "same" puts in front of a max pool."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.artifacts import OnnxModel
from export.capture.program import capture
from export.onnx.exporter import to_onnx
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.scheme import NARROW, PRESETS


class Net(nn.Module):
    def __init__(self, pad: tuple[int, ...], value: float, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pad, self.value, self.options = pad, value, options
        self.before, self.behind = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.before(x), self.pad, value=self.value)
        return self.behind(F.max_pool2d(y, **{"kernel_size": 3, "stride": 2, **self.options}))


class Shared(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.before(x), self.pad, value=self.value)
        return F.max_pool2d(y, 3, 2), F.max_pool2d(y.abs(), 3, 2)


X = torch.randn(3, 3, 14, 15, generator=torch.Generator().manual_seed(1))


def export(net: nn.Module, path: Path, outputs: int = 1) -> OnnxModel:
    program = capture(net, {"x": X}, keyword=False, dynamic_batch=True)
    names = [f"y{index}" for index in range(outputs)]
    return to_onnx(program, path / "model.onnx", input_names=["x"], output_names=names)


def count(model: OnnxModel) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(model.path).graph.node)


def run(model: OnnxModel, x: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})


@pytest.mark.parametrize(
    ("pad", "options"),
    [((0, 1, 0, 1), {}), ((1, 2, 0, 2), {}), ((0, 1, 1, 0), {"padding": 1, "kernel_size": 4})],
)
def test_padding_belongs_to_the_pool(pad: tuple[int, ...], options: dict, tmp_path: Path) -> None:
    net = Net(pad, -float("inf"), **options)
    model = export(net, tmp_path)
    assert count(model) == {"Conv": 2, "MaxPool": 1}
    assert {t.name for t in onnx.load(model.path).graph.initializer} == {*net.state_dict()}
    for batch in (1, 3):
        expected = net.double()(X[:batch].double()).detach().numpy()
        net.float()
        np.testing.assert_allclose(run(model, X[:batch])[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pad", "value", "options"),
    [
        ((0, 1, 0, 1), 0.0, {}),
        ((0, 3, 0, 1), -float("inf"), {}),
        ((0, -1, 0, 1), -float("inf"), {}),
        ((0, 1, 0, 1), -float("inf"), {"ceil_mode": True}),
    ],
)
def test_other_padding_stays(
    pad: tuple[int, ...], value: float, options: dict, tmp_path: Path
) -> None:
    net = Net(pad, value, **options)
    model = export(net, tmp_path)
    assert count(model)["Pad"] >= 1
    expected = net.double()(X.double()).detach().numpy()
    np.testing.assert_array_equal(np.isfinite(run(model, X)[0]), np.isfinite(expected))


def test_padding_that_somebody_else_reads_stays(tmp_path: Path) -> None:
    net = Shared((0, 1, 0, 1), -float("inf"))
    model = export(net, tmp_path, outputs=2)
    assert count(model)["Pad"] == 1
    for found, expected in zip(run(model, X), net(X), strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_padded_pool_goes_int8(target: str, tmp_path: Path) -> None:
    net = Net((0, 1, 0, 1), -float("inf"))
    model = export(net, tmp_path)
    ranges = calibrate(model, [{"x": X.numpy()}])
    scheme = replace(PRESETS[target], weight_levels=NARROW)  # any CPU computes these exactly
    result = quantize_int8(model, ranges, scheme, tmp_path / "int8.onnx")
    assert len(result.quantized) == 3
    found, expected = run(result.model, X)[0], net(X).detach().numpy()
    assert 10 * np.log10((expected**2).mean() / ((found - expected) ** 2).mean()) > 20
