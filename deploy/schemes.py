"""What int8 is on this machine: the presets of `quantize.scheme`, as its CPU needs them."""

from dataclasses import replace

from export.cpu import saturates_int8
from quantize.scheme import NARROW, PRESETS, QuantScheme


def choose_scheme(engine: str) -> QuantScheme:
    """The preset of `engine`, a key of `PRESETS`.

    Where the kernels of ONNX Runtime and OpenVINO would saturate, weights are kept to 7 bits, so
    that they cannot. What is built so is right on any CPU.
    """
    scheme = PRESETS[engine]
    if scheme.unsigned_activations and saturates_int8():
        return replace(scheme, weight_levels=NARROW)
    return scheme


def choose_levels() -> int:
    """The largest code of weights that meet activations quantized as they come."""
    return choose_scheme("onnxruntime").weight_levels
