"""The NVIDIA GPU of this machine, by its driver's own tool; CUDA is not loaded for it."""

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass

_CUDA = re.compile(r"CUDA Version\s*:\s*([\d.]+)")
_TIMEOUT_S = 20
_STATE_FIELDS = (
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "temperature.gpu",
)
_REASONS_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""The name of now, and the one of drivers before 535."""
_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
}
"""Bits of NVML's ``nvmlClocksEventReason``."""


@dataclass(frozen=True)
class GpuFacts:
    """What decides whether an engine runs on a GPU.

    Attributes:
        name: as the driver calls it.
        driver: version of the NVIDIA driver.
        capability: compute capability, such as ``8.9``.
        cuda: the newest CUDA that the driver offers; None: it does not say.
    """

    name: str
    driver: str
    capability: str
    cuda: str | None = None

    @property
    def target(self) -> str:
        """The compute capability as TensorRT writes it: ``SM89``."""
        return f"SM{self.capability.replace('.', '')}"


@dataclass(frozen=True)
class GpuState:
    """What of a GPU moves while it works; None where its driver does not say.

    Attributes:
        sm_mhz, memory_mhz: clocks now; `max_sm_mhz`: the most that the first may be.
        watts: drawn now.
        celsius: of the GPU itself.
        reasons: why its clocks are not higher, by the driver's names; empty: for no reason.
    """

    sm_mhz: float | None
    max_sm_mhz: float | None
    memory_mhz: float | None
    watts: float | None
    celsius: float | None
    reasons: tuple[str, ...] | None


def read_gpu_state() -> GpuState | None:
    """The state of the first GPU, now; None where there is none, or no working driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    for reasons in _REASONS_FIELDS:
        query = f"--query-gpu={','.join((*_STATE_FIELDS, reasons))}"
        row = _ask(tool, query, "--format=csv,noheader,nounits", "-i", "0")
        values = [value.strip() for value in (row or "").partition("\n")[0].split(",")]
        if len(values) == len(_STATE_FIELDS) + 1:
            sm, most, memory, watts, celsius = map(_read_number, values[:-1])
            return GpuState(sm, most, memory, watts, celsius, _read_reasons(values[-1]))
    return None


@functools.cache
def read_gpu() -> GpuFacts | None:
    """Facts of the first GPU; None where there is none, or no working driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    row = _ask(tool, "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader")
    fields = [field.strip() for field in (row or "").partition("\n")[0].split(",")]
    if len(fields) != 3:
        return None
    found = _CUDA.search(_ask(tool, "-q", "-i", "0") or "")
    name, driver, capability = fields
    return GpuFacts(name, driver, capability, found.group(1) if found else None)


def _read_number(text: str) -> float | None:
    """What a GPU does not tell reads ``[N/A]``, ``[Not Supported]`` and the like."""
    try:
        return float(text)
    except ValueError:
        return None


def _read_reasons(text: str) -> tuple[str, ...] | None:
    """Names of the bits that are set."""
    try:
        bits = int(text, 16)
    except ValueError:
        return None
    known = tuple(name for bit, name in _REASONS.items() if bits & bit)
    rest = bits & ~sum(_REASONS)
    return (*known, f"{rest:#x}") if rest else known


def _ask(tool: str, *arguments: str) -> str | None:
    """What the tool prints; None where it fails."""
    try:
        answer = subprocess.run(
            [tool, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
