"""TensorRT for RTX, without a GPU: what it builds, and what it says of what it cannot."""

from pathlib import Path

import pytest
import torch
from torch import nn

from export.artifacts import OnnxModel
from export.capture import capture
from export.errors import EngineError
from export.onnx import to_onnx

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is in the rtx extra")

from export.tensorrt import build_engine


class Head(nn.Module):
    """Determinants, which TensorRT has not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 3, 3] to [N]."""
        return torch.det(x)


class Net(nn.Module):
    """Two operators that TensorRT lacks, in modules of their own; [N, 3, 3] to [N]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Head(), Head()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice the determinant, roughly."""
        return self.first(x.relu()) + self.second(x.sigmoid())


def export(net: nn.Module, x: torch.Tensor, path: Path) -> OnnxModel:
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    return to_onnx(program, path, input_names=["x"], output_names=["y"], opset=20)


def test_all_that_is_lacking_is_named_at_once_with_module_and_line(tmp_path: Path) -> None:
    model = export(Net().eval(), torch.randn(2, 3, 3), tmp_path / "model.onnx")
    with pytest.raises(EngineError) as caught:
        build_engine(model, tmp_path / "model.engine", precision="fp32", targets=("SM89",))
    message = str(caught.value)
    line = Head.forward.__code__.co_firstlineno + 2
    assert message.startswith("TensorRT for RTX has no form of 2 nodes of model.onnx: ")
    assert f"Det at first (test_tensorrt.py:{line}); Det at second (" in message
    assert "keep to ONNX Runtime or OpenVINO" in message
    assert not (tmp_path / "model.engine").exists()


def test_a_net_that_it_can_is_built(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    model = export(net, torch.randn(2, 3, 8, 8), tmp_path / "model.onnx")
    engine = build_engine(model, tmp_path / "model.engine", precision="fp32", targets=("SM89",))
    assert engine.path.stat().st_size > 0
    assert engine.target == "SM89"


def test_an_unknown_target_is_refused_with_those_there_are(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3)).eval()
    model = export(net, torch.randn(2, 3, 8, 8), tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="no target 'SM42'; it has SM75, SM80"):
        build_engine(model, tmp_path / "m.engine", precision="fp32", targets=("SM42",))
