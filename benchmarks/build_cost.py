"""What `deploy build` itself costs: wall time and peak memory, on a ResNet-50 without data.

    python benchmarks/build_cost.py

Memory is the proportional set size of the process and all its children together, sampled five times
a second. Prints one JSON object.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

HERE = Path(__file__).parent


def main() -> None:
    """Save random weights, build them, watch."""
    sys.path.insert(0, str(HERE))
    from resnet50 import make_net

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "resnet50.pt"
        torch.save(make_net().state_dict(), weights)
        command = [sys.executable, "-m", "deploy", "build", str(weights), "--input", "1x3x224x224"]
        seconds, peak = run_and_watch([*command, "--model", "resnet50:make_net"])
        report = json.loads((Path(folder) / "resnet50.deploy" / "report.json").read_text())
    print(
        json.dumps(
            {
                "seconds": round(seconds, 1),
                "peak_memory_mib": round(peak / 2**20),
                "machine": report["machine"]["cpu"],
                "threads": report["machine"]["threads"],
                "versions": report["machine"]["versions"],
                "created": report["created"],
                "winner": report["winner"],
                "verdict": report["verdict"],
                "control": report["control"],
                "stages": {s["name"]: round(s["seconds"], 1) for s in report["stages"]},
                "candidates": [
                    {
                        "name": row["name"],
                        "status": row["status"],
                        "reason": row["reason"],
                        "p50_ms": row["latency"] and round(row["latency"]["p50_ms"], 3),
                        "speedup": row["latency"] and round(row["latency"]["speedup"], 2),
                    }
                    for row in report["candidates"]
                ],
            },
            indent=2,
        )
    )


def run_and_watch(command: list[str]) -> tuple[float, int]:
    """Wall seconds of `command` and the peak memory of its process tree, in bytes."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, cwd=HERE, stdout=subprocess.DEVNULL) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, tree_memory(root))
            time.sleep(0.2)
    if process.returncode != 0:
        sys.exit(f"the build ended with {process.returncode}")
    return time.monotonic() - started, peak


def tree_memory(root: psutil.Process) -> int:
    """Proportional set size of a process and its descendants, in bytes."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total


if __name__ == "__main__":
    main()
