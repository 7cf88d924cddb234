"""How much memory is in use: of this process, and of the GPU; and what many runs add to it."""

import resource
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any


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


@dataclass(frozen=True)
class Growth:
    """MiB that were added: of the host and the GPU by runs, and of the GPU by openings after."""

    host_mib: float
    gpu_mib: float
    reopened_mib: float


def watch_growth(
    opened: Callable[[], AbstractContextManager[Any]],
    feeds: Sequence[dict[str, Any]],
    *,
    runs: int = 10_000,
    openings: int,
) -> Growth:
    """Run an engine on `feeds` in turn after 500 runs that warm it, then open it again and again.

    Args:
        opened: opens the engine.
    """
    with opened() as engine:
        for index in range(500):
            engine(feeds[index % len(feeds)])
        before = read_use()
        for index in range(runs):
            engine(feeds[index % len(feeds)])
        after = read_use()
    for _ in range(openings):
        with opened() as engine:
            engine(feeds[0])
    reopened = read_use().gpu_mib - before.gpu_mib
    return Growth(after.host_mib - before.host_mib, after.gpu_mib - before.gpu_mib, reopened)
