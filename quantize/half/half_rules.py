"""What TensorRT takes in a 16-bit float less than ONNX does: one table, as plain data.

Each operator was built alone with TensorRT for RTX 1.7.1, in float32 and in either 16-bit float;
what is named here is built in float32 and refused in the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class HalfRule:
    """Operators that one 16-bit float has no engine for.

    Attributes:
        float32: stay in float32, between Casts.
        refused: cannot be built so either: TensorRT runs them as loops, and fails on the Casts
            around them.
    """

    float32: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()


HALF_RULES: Mapping[str, HalfRule] = {
    "fp16": HalfRule(),
    "bf16": HalfRule(
        float32=frozenset(
            {"ConvTranspose", "GlobalLpPool", "HardSwish", "LpNormalization", "LpPool", "Mish"}
        ),
        refused=frozenset({"GRU"}),
    ),
}
"""By the name of the 16-bit float."""
