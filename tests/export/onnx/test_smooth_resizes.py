"""Resizes that smooth, in both engines against torch in float64."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.engines.base import EngineSpec
from deploy.engines.process import EngineProcess
from export.capture.program import capture
from export.onnx.exporter import to_onnx

X = torch.randn(3, 2, 11, 9, generator=torch.Generator().manual_seed(0))


class Resized(nn.Module):
    def __init__(self, **how) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, antialias=True, **self.how)


@pytest.mark.parametrize(
    "how",
    [
        {"size": (5, 12), "mode": "bilinear"},
        {"size": (4, 3), "mode": "bicubic", "align_corners": True},
        {"scale_factor": (0.45, 1.3), "mode": "bilinear"},
    ],
    ids=lambda how: how["mode"],
)
def test_both_engines_answer_as_torch_at_every_batch(how, tmp_path):
    program = capture(Resized(**how).eval(), {"x": X[:2]}, keyword=False, dynamic_batch=True)
    path: Path = tmp_path / "model.onnx"
    to_onnx(program, path, input_names=["x"], output_names=["y"])
    assert Counter(node.op_type for node in onnx.load(path).graph.node) == {"MatMul": 2}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with EngineProcess(EngineSpec("openvino", "fp32", str(path), 1)) as engine:
        for rows in (1, 3):
            wanted = F.interpolate(X[:rows].double(), antialias=True, **how).numpy()
            feeds = {"x": X[:rows].numpy()}
            for found in (session.run(None, feeds)[0], engine(feeds)["y"]):
                assert found.shape == wanted.shape
                np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_images_of_uint8_are_resized_as_such(tmp_path):
    """What smooths those rounds to whole numbers, and a matrix of them would be zeros."""
    drawn = torch.randint(0, 256, (3, 3, 11, 9), generator=torch.Generator().manual_seed(0))
    x, how = drawn.to(torch.uint8), {"size": (5, 12), "mode": "bilinear"}
    program = capture(Resized(**how).eval(), {"x": x[:2]}, keyword=False, dynamic_batch=True)
    path: Path = tmp_path / "model.onnx"
    to_onnx(program, path, input_names=["x"], output_names=["y"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (1, 3):
        (found,) = session.run(None, {"x": x[:rows].numpy()})
        wanted = F.interpolate(x[:rows].double(), antialias=True, **how).numpy()
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found, wanted, atol=1.01)
