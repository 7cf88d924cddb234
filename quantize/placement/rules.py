"""Which operators take part in int8, and how: one rule table a target, as plain data.

ONNX Runtime runs an operator in int8 when it stands between DequantizeLinear and QuantizeLinear, so
there the outputs are quantized as well, and the tensors that an int8 operator made are read
quantized by everybody. OpenVINO computes an int8 operator from its quantized inputs, and takes
whatever follows (an activation, the next QuantizeLinear) into the same kernel; a pair in between
would only round once more. TensorRT wants Q/DQ on the inputs of its weighted operators, and on the
one operand of a residual Add that the convolution does not produce itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OpRule:
    """How one operator takes part.

    Attributes:
        role: ``weighted``: has constant weights, starts int8. ``join``: int8 when all its inputs
            are. ``residual``: one operand is quantized when the other comes from a convolution.
            ``average``: int8 when its input was made in int8. ``copy``: the same, and input and
            output share scale and zero point.
        output: whether a Q/DQ pair follows; ``if_read``: only where an int8 operator reads it.
        folds: a Relu or Clip(0, c) that alone reads the output belongs to the operator.
        pulls: int8 as well when an int8 operator reads its output; what it reads is then
            quantized for it. An ``average`` only where it alone reads its input: a gate
            (squeeze-excite) would pull down what it scales as well.
        products: int8 as well where both operands are computed, as in attention; they are then
            quantized symmetrically.
        inner: stays float where its result only leaves the graph: what is put together there may
            differ in scale (boxes and scores), and no int8 operator gains by one scale for all.
    """

    role: Literal["weighted", "join", "residual", "average", "copy"]
    output: Literal["always", "if_read", "never"] = "never"
    folds: bool = False
    pulls: bool = False
    products: bool = False
    inner: bool = False


RULES: Mapping[str, Mapping[str, OpRule]] = {
    "onnxruntime": {
        "Conv": OpRule("weighted", output="always", folds=True),
        "Gemm": OpRule("weighted", output="if_read", folds=True),
        "MatMul": OpRule("weighted", output="if_read"),
        "Add": OpRule("join", output="always", folds=True),
        "Concat": OpRule("join", output="always", inner=True),
        "GlobalAveragePool": OpRule("average", output="always"),
        "AveragePool": OpRule("average", output="always"),
        "MaxPool": OpRule("copy", output="always"),
        "Flatten": OpRule("copy", output="always"),
        "Reshape": OpRule("copy", output="always"),
        "Transpose": OpRule("copy", output="always"),
        "Squeeze": OpRule("copy", output="always"),
        "Unsqueeze": OpRule("copy", output="always"),
    },
    "openvino": {
        "Conv": OpRule("weighted", output="if_read", folds=True),
        "ConvTranspose": OpRule("weighted", output="if_read", folds=True),
        "Gemm": OpRule("weighted", output="if_read", folds=True),
        "MatMul": OpRule("weighted", output="if_read", products=True),
        "Add": OpRule("join", output="if_read", folds=True, pulls=True),
        "Concat": OpRule("join", output="if_read", pulls=True),
        "GlobalAveragePool": OpRule("average", output="if_read", pulls=True),
        "AveragePool": OpRule("average", output="if_read", pulls=True),
        "MaxPool": OpRule("copy", pulls=True),
        "Flatten": OpRule("copy", pulls=True),
        "Reshape": OpRule("copy", pulls=True),
        "Transpose": OpRule("copy", pulls=True),
        "DepthToSpace": OpRule("copy", pulls=True),
        "Pad": OpRule("copy", pulls=True),
        "Resize": OpRule("copy", pulls=True),
        "Slice": OpRule("copy", pulls=True),
        "Split": OpRule("copy", pulls=True),
        "Squeeze": OpRule("copy", pulls=True),
        "Unsqueeze": OpRule("copy", pulls=True),
    },
    "tensorrt": {
        "Conv": OpRule("weighted"),
        "ConvTranspose": OpRule("weighted"),
        "Gemm": OpRule("weighted"),
        "MatMul": OpRule("weighted"),
        "Add": OpRule("residual"),
    },
}
"""Rule table by `QuantScheme.placement`, rules by operator; operators not named stay float."""
