"""The NVIDIA GPU of this machine, by its driver's own tool; CUDA is not loaded for it."""

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass

_CUDA = re.compile(r"CUDA Version\s*:\s*([\d.]+)")
_TIMEOUT_S = 20


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


def _ask(tool: str, *arguments: str) -> str | None:
    """What the tool prints; None where it fails."""
    try:
        answer = subprocess.run(
            [tool, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None
