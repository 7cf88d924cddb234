"""What int8 means on a target, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class QuantScheme:
    """How numbers become int8 for one target.

    ``real = scale * (code - zero_point)``. Weights are symmetric int8 (codes -127 to 127, zero
    point 0), one scale an output channel.

    Attributes:
        name: of the target.
        placement: the rule table in `quantize.placement` that says where Q/DQ go.
        unsigned_activations: uint8 activations with a free zero point; otherwise symmetric int8
            with zero point 0. One scale a tensor either way.
        integer_bias: biases become int32 with scale ``s_x * s_w``; otherwise they stay float.
        keep_float: names of nodes that stay float although they could be int8: what a search
            over layers varies, with `dataclasses.replace`.
    """

    name: str
    placement: str
    unsigned_activations: bool
    integer_bias: bool
    keep_float: frozenset[str] = frozenset()


PRESETS: Mapping[str, QuantScheme] = MappingProxyType(
    {
        "x86": QuantScheme("x86", "x86", unsigned_activations=True, integer_bias=True),
        "tensorrt": QuantScheme(
            "tensorrt", "tensorrt", unsigned_activations=False, integer_bias=False
        ),
    }
)
"""x86: ONNX Runtime and OpenVINO on x86 CPUs. tensorrt: TensorRT and TensorRT for RTX."""
