"""How much memory is in use: of this process, and of the GPU."""

import resource
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Use:
    """Memory in MiB: the most that this process has had, and what all have of the GPU now."""

    host_mib: float
    gpu_mib: float


def read_use() -> Use:
    """Ask the kernel and the driver."""
    query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    answer = subprocess.run(
        ["nvidia-smi", "-i", "0", *query], capture_output=True, text=True, check=True, timeout=60
    )
    return Use(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, float(answer.stdout))
