"""What int8 is on this machine: the presets of `quantize.scheme`, as its CPU needs them."""

import platform
from dataclasses import replace

from deploy.machine import cpu_features
from quantize.scheme import NARROW, PRESETS, QuantScheme

_X86 = ("x86_64", "AMD64")
_EXACT = ("avx_vnni", "avx512_vnni", "amx_int8")
"""Instructions that add up products of 8 bits in 32."""


def choose_scheme(engine: str) -> QuantScheme:
    """The preset of `engine`, a key of `PRESETS`.

    On an x86 CPU without VNNI the kernels of ONNX Runtime add up two products of uint8 and int8 in
    16 bits, which saturate; weights are kept to 7 bits there, so that they cannot. What is built
    so is right on any CPU.
    """
    scheme = PRESETS[engine]
    if engine == "onnxruntime" and needs_narrow_weights(platform.machine(), cpu_features()):
        return replace(scheme, weight_levels=NARROW)
    return scheme


def needs_narrow_weights(machine: str, features: tuple[str, ...]) -> bool:
    """Whether a CPU of these features saturates where two products are added up."""
    return machine in _X86 and not set(features) & set(_EXACT)
