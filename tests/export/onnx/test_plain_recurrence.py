"""``nn.RNN`` as one operator a layer, with its states."""

import copy
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from combinations import combine
from torch import Tensor, nn

from deploy.engines.openvino_core import open_core
from export.capture.program import capture
from export.onnx.exporter import to_onnx


class Stateful(nn.Module):
    """A recurrent net that is given its first state and returns all that its layers return."""

    def __init__(self, layer: nn.RNN) -> None:
        super().__init__()
        self.layer = layer
        self.rows = layer.num_layers * (2 if layer.bidirectional else 1)

    def forward(self, x: Tensor, start: Tensor) -> tuple[Tensor, ...]:
        hidden = start.reshape(-1, self.rows, 9).transpose(0, 1).contiguous()
        out, h = self.layer(x, hidden)
        return out, h.transpose(0, 1)


def assert_exported(net, feeds, path, operator, layers):
    """In both engines, at batches 1 and 3, against torch in float64."""
    net = net.eval()
    program = capture(net, feeds, keyword=False, dynamic_batch=True)
    with torch.no_grad():
        results = net(*feeds.values())
    count = len(results) if isinstance(results, tuple) else 1
    names = [f"y{number}" for number in range(count)]
    model = to_onnx(program, path / "m.onnx", input_names=list(feeds), output_names=names)
    kinds = Counter(node.op_type for node in onnx.load(model.path).graph.node)
    assert kinds[operator] == layers
    session = onnxruntime.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    compiled = open_core().compile_model(
        str(model.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for batch in (1, 3):
        given = {name: torch.randn(batch, *value.shape[1:]) for name, value in feeds.items()}
        with torch.no_grad():
            exact = copy.deepcopy(net).double()(*(value.double() for value in given.values()))
        exact = exact if isinstance(exact, tuple) else (exact,)
        arrays = {name: value.numpy() for name, value in given.items()}
        answers = compiled(arrays)
        for name, one, wanted in zip(names, session.run(None, arrays), exact, strict=True):
            for found in (one, answers[name]):
                assert found.shape == wanted.shape
                assert np.abs(found - wanted.numpy()).max() < 2e-5


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("layers", "bias", "nonlinearity"), combine([1, 2], [True, False], ["tanh", "relu"])
)
def test_plain_recurrence_is_one_operator_a_layer(layers, bias, nonlinearity, tmp_path):
    torch.manual_seed(0)
    options = {"bias": bias, "bidirectional": layers == 2, "batch_first": True}
    layer = nn.RNN(5, 9, layers, nonlinearity=nonlinearity, **options)
    rows = layers * (2 if layers == 2 else 1)
    feeds = {"x": torch.randn(2, 6, 5), "start": torch.randn(2, 9 * rows)}
    assert_exported(Stateful(layer), feeds, tmp_path, "RNN", layers)
