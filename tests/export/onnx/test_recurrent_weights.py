"""Recurrent layers whose weights are stored as ONNX has them."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from combinations import combine
from torch import Tensor, nn

from export.capture.program import capture
from export.onnx.exporter import to_onnx

WIDTH = 64
"""Its matrices have more elements than the exporter folds by itself."""


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], directions: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = kind(8, WIDTH, 2, batch_first=True, bidirectional=directions == 2)
        self.head = nn.Linear(WIDTH * directions, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0].mean(1))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kind", "directions"), combine([nn.LSTM, nn.GRU, nn.RNN], [2, 1], together=1)
)
def test_weights_of_recurrent_layers_are_stored_in_order(kind, directions, tmp_path):
    net = Recurrent(kind, directions).eval()
    program = capture(net, {"x": torch.randn(2, 5, 8)}, keyword=False, dynamic_batch=True)
    names = {"input_names": ["x"], "output_names": ["y"]}
    model = to_onnx(program, tmp_path / "model.onnx", **names)
    proto = onnx.load(model.path)
    stored = {item.name for item in proto.graph.initializer}
    layers = [node for node in proto.graph.node if node.op_type == kind.__name__]
    assert len(layers) == 2
    assert all(set(node.input[1:4]) <= stored for node in layers)
    numbers = sum(int(np.prod(item.dims)) for item in proto.graph.initializer)
    assert numbers <= sum(p.numel() for p in net.parameters()) + 100
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = torch.randn(batch, 5, 8)
        (found,) = session.run(None, {"x": x.numpy()})
        exact = net.double()(x.double()).detach().numpy()
        net.float()
        assert np.abs(found - exact).max() < 1e-5
