"""Facts of this machine: what a figure was measured on."""

import importlib.metadata
import math
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export.cpu import cpu_features, read_cpuinfo
from export.gpu import read_gpu

_PACKAGES = (
    "deploykit",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
)


@dataclass(frozen=True)
class Machine:
    """What decides a latency, apart from the model. Memory in GiB."""

    cpu: str
    cores: int
    memory_gb: float
    features: tuple[str, ...]
    gpu: str | None
    os: str
    python: str
    versions: dict[str, str]
    load_average: float
    affinity: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "features": list(self.features),
            "affinity": list(self.affinity),
        }


def describe_machine() -> Machine:
    """Look at this machine, now."""
    info = read_cpuinfo()
    return Machine(
        cpu=info.get("model name", platform.processor() or platform.machine()).strip(),
        cores=usable_cores(),
        memory_gb=round(_memory_bytes() / 2**30, 1),
        features=cpu_features(),
        gpu=find_gpu(),
        os=platform.platform(terse=True),
        python=platform.python_version(),
        versions=installed_versions(),
        load_average=round(os.getloadavg()[0], 2),
        affinity=tuple(sorted(_affinity())),
    )


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by its container's quota."""
    return max(1, min(len(_affinity()), _quota_cores(Path("/sys/fs/cgroup/cpu.max"))))


def find_gpu() -> str | None:
    """Name and driver of the first NVIDIA GPU; None without one."""
    gpu = read_gpu()
    return None if gpu is None else f"{gpu.name}, {gpu.driver}"


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide a result, of those that are installed."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _quota_cores(file: Path) -> int:
    """Whole cores that a cgroup's ``cpu.max`` (quota and period in microseconds) leaves."""
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such control group, or "max": no limit
        return sys.maxsize


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
