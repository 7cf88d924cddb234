"""What the CPU of this machine computes exactly in 8 bits."""

import functools
import platform
from pathlib import Path

FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Instruction sets that decide a latency, or a result."""
_X86 = ("x86_64", "AMD64")
_EXACT = ("avx_vnni", "avx512_vnni", "amx_int8")
"""Instructions that add up products of 8 bits in 32."""


def read_cpuinfo() -> dict[str, str]:
    """The pairs of ``/proc/cpuinfo``, those of the last core; empty where there is no such file."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    pairs = (line.partition(":") for line in path.read_text().splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


@functools.cache
def cpu_features() -> tuple[str, ...]:
    """Those of `FEATURES` that the CPU has."""
    flags = read_cpuinfo().get("flags", "").split()
    return tuple(feature for feature in FEATURES if feature in flags)


def saturates_int8(machine: str | None = None, features: tuple[str, ...] | None = None) -> bool:
    """Whether two products of uint8 and int8 are added up in 16 bits, where they saturate.

    On x86 CPUs without VNNI the kernels of ONNX Runtime and OpenVINO do so, and say nothing.

    Args:
        machine: as `platform.machine` calls it; None: this one.
        features: of its CPU; None: those of this one.
    """
    features = cpu_features() if features is None else features
    return (machine or platform.machine()) in _X86 and not set(features) & set(_EXACT)
