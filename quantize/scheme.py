"""What int8 means on a target, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class QuantScheme:
    """How numbers become int8 for one target.

    ``real = scale * (code - zero_point)``. Weights are symmetric int8 (zero point 0), one
    scale an output channel.

    Attributes:
        name: of the target.
        placement: the rule table in `quantize.placement.rules` that says where Q/DQ go.
        unsigned_activations: uint8 activations with a free zero point; otherwise symmetric int8
            with zero point 0. One scale a tensor either way.
        integer_bias: biases become int32 with scale ``s_x * s_w``; otherwise they stay float.
        keep_float: names of nodes that stay float although they could be int8: what a search
            over layers varies, with `dataclasses.replace`.
        per_channel_weights: one scale an output channel; otherwise all channels share the largest,
            which is what plain per-tensor quantization does.
        guards_float_layers: the target quantizes by itself, with one scale a tensor, the weights of
            a float Conv, ConvTranspose or Gemm that reads a tensor dequantized with one scale; so
            float layers read it with a scale a channel, all of them the same.
        moves_transposes: the target brings a Transpose from images to its integer convolution, past
            what takes a constant a channel off them; see `placement.pixels.shift_by_planes`.
        needs_bias: the target answers wrongly where an integer Conv without a bias, or with one of
            zeros, is read by several, and the size of the batch or of another axis is not known
            when it compiles; so each has a bias that changes no sum.
        weight_levels: codes of weights run from minus this to this: 127, or `NARROW` where the
            target's kernels add up two products in 16 bits, which would not hold them. So does the
            second operand of a product of two activations, over what was seen of it.
    """

    name: str
    placement: str
    unsigned_activations: bool
    integer_bias: bool
    keep_float: frozenset[str] = frozenset()
    per_channel_weights: bool = True
    guards_float_layers: bool = False
    moves_transposes: bool = False
    needs_bias: bool = False
    weight_levels: int = 127


NARROW = 63
"""Two products of it with 255, the largest activation, stay below 2^15."""

PRESETS: Mapping[str, QuantScheme] = MappingProxyType(
    {
        "onnxruntime": QuantScheme(
            "onnxruntime",
            "onnxruntime",
            unsigned_activations=True,
            integer_bias=True,
            guards_float_layers=True,
            moves_transposes=True,
        ),
        "openvino": QuantScheme(
            "openvino",
            "openvino",
            unsigned_activations=True,
            integer_bias=False,
            needs_bias=True,
        ),
        "tensorrt": QuantScheme(
            "tensorrt", "tensorrt", unsigned_activations=False, integer_bias=False
        ),
    }
)
"""onnxruntime, openvino: on x86 CPUs. tensorrt: TensorRT and TensorRT for RTX."""
