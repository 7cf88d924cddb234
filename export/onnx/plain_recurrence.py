"""``nn.RNN`` as ONNX's RNN; the exporter, which has LSTM and GRU, writes out all of its steps.

    h(t) = f(W x(t) + b + R h(t - 1) + c),    f = tanh or relu

A layer of ONNX has its directions stacked, and the two biases one behind the other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from export.optional import require

aten = torch.ops.aten

_ACTIVATIONS = {aten.rnn_tanh.input: "Tanh", aten.rnn_relu.input: "Relu"}


def list_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By operator of torch what the exporter is to call for it."""
    return {target: _make_translation(name) for target, name in _ACTIVATIONS.items()}


def _make_translation(activation: str) -> Callable[..., Any]:
    op = require("onnxscript.onnx_opset", extra="build").opset18
    number = require("onnxscript.function_libs.torch_lib.tensor_typing", extra="build").TFloat

    def stack(parts: Sequence[Any]) -> Any:
        return op.Concat(*(op.Unsqueeze(part, [0]) for part in parts), axis=0)

    def rnn(
        input: Any,
        hx: Any,
        params: Any,
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        directions, each = (2 if bidirectional else 1), (4 if has_biases else 2)
        how = {
            "activations": [activation] * directions,
            "direction": "bidirectional" if bidirectional else "forward",
            "hidden_size": hx.shape[2],
        }
        value = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        last = []
        for first in range(0, num_layers * directions, directions):
            own = params[first * each : (first + directions) * each]
            weights = [stack(own[0::each]), stack(own[1::each])]
            if has_biases:
                pairs = zip(own[2::each], own[3::each], strict=True)
                weights.append(stack([op.Concat(*pair, axis=0) for pair in pairs]))
            state = op.Slice(hx, [first], [first + directions], [0])
            outputs, end = op.RNN(value, *weights, initial_h=state, **how)
            sizes = op.Constant(value_ints=[0, 0, -1])
            value = op.Reshape(op.Transpose(outputs, perm=[0, 2, 1, 3]), sizes)
            last.append(end)
        result = op.Transpose(value, perm=[1, 0, 2]) if batch_first else value
        return result, op.Concat(*last, axis=0)

    rnn.__annotations__.update(input=number, hx=number, params=Sequence[number])  # type: ignore[valid-type]
    return rnn
