"""Engines of TensorRT on this machine's NVIDIA GPU, beside what a user would run there instead.

    python benchmarks/gpu.py [-o gpu.json] [--short] [--batches 1,8,64] [timm network ...]
    python benchmarks/gpu.py --table gpu.json

For each network (random weights, BN statistics of a few training batches, 224x224): the peers of
`gpu_peers.py`, and the engines that a build makes with NVIDIA TensorRT and TensorRT for RTX in
TF32, fp16, bf16 and int8. Each runs in a process of its own, in short blocks in random order, at
batch 1 to 256. Timed are the GPU's own work, by CUDA events, and the whole call with both copies,
by the host's clock. Answers are held against float64 on the CPU and against eager float32 on the
GPU. Clocks, power, temperature and what holds the clocks back are read before and after. A second
eager float32 is the A/A control. Prints one table; what cannot run is said in a line. The JSON and
the table (``gpu.md`` beside it) are written after every batch. Without a GPU: one line.
"""

import argparse
import contextlib
import datetime
import functools
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
FOLDERS = (str(HERE), str(HERE.parent), str(HERE.parent / "tests"))
"""The root comes before the tests, whose folder `deploy` would stand for the package alone."""
sys.path[:0] = FOLDERS

from gpu_run import BLOCKS, SAMPLES, Run, Settings, make_entry, measure_network  # noqa: E402
from gpu_table import BASELINE, make_table  # noqa: E402

from deploy.measuring.machine import describe_machine  # noqa: E402
from export.errors import DeployError  # noqa: E402
from export.gpu import GpuFacts, read_gpu  # noqa: E402

NETWORKS = ("resnet50", "mobilenetv2_100", "repvgg_a0", "vit_small_patch16_224")
PEERS = (
    BASELINE,
    "eager fp32 (control)",
    "eager TF32",
    "AMP fp16 channels_last",
    "torch.compile reduce-overhead TF32",
    "torch.compile reduce-overhead AMP fp16",
    "torch.compile max-autotune AMP fp16",
    "onnxruntime CUDA TF32",
    "onnxruntime CUDA fp16",
    "onnxruntime CUDA fp16 channels_last",
    "onnxruntime CUDA TF32 graphs",
    "onnxruntime CUDA fp16 graphs",
)
SLOW_PEERS = ("torch.compile reduce-overhead TF32", "torch.compile max-autotune AMP fp16")
"""A compiler works at every batch size anew; a short run has one peer of that kind."""
PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "timm")

FULL = Settings(networks=NETWORKS, peers=PEERS, batches=(1, 2, 4, 8, 16, 32, 64, 128, 256))
SHORT = Settings(
    networks=("resnet50",),
    peers=tuple(peer for peer in PEERS if peer not in SLOW_PEERS),
    batches=(1, 32),
    rounds=5,
    minutes=4,
    patience=90,
)


def main() -> int:
    """The table, whatever of it can be had here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--short", action="store_true", help="one network, two batches, 4 minutes")
    parser.add_argument("--batches", metavar="N,N", help="in place of 1 to 256")
    parser.add_argument("--minutes", type=float, help="begin nothing after these")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print that of an earlier run")
    given = parser.parse_args()
    if given.table is not None:
        print(make_table(json.loads(given.table.read_text(encoding="utf-8"))))
        return 0
    gpu = read_gpu()
    if gpu is None:
        print("not_run: no NVIDIA GPU")
        return 0
    settings = SHORT if given.short else FULL
    if given.networks:
        settings = replace(settings, networks=tuple(given.networks))
    if given.batches:
        settings = replace(settings, batches=tuple(sorted(map(int, given.batches.split(",")))))
    if given.minutes is not None:
        settings = replace(settings, minutes=given.minutes)
    os.environ["PYTHONPATH"] = os.pathsep.join((*FOLDERS, os.environ.get("PYTHONPATH", "")))
    signal.signal(signal.SIGTERM, stop)
    result = describe_run(gpu, settings)
    try:
        measure_all(result, gpu, settings, given.output)
    finally:  # also of a run that is ended before its time
        save_result(result, given.output)
        print(describe_conditions(result), make_table(result), sep="\n\n", flush=True)
    return 0


def stop(number: int, frame: FrameType | None) -> None:
    """End as after an exception: children are closed, and what was found is printed."""
    sys.exit(128 + number)


def measure_all(result: dict[str, Any], gpu: GpuFacts, settings: Settings, output: Path) -> None:
    """Every network; `output` has what is known after each batch."""
    until = time.monotonic() + settings.minutes * 60
    for network in settings.networks:
        entry = result["networks"][network] = make_entry()
        if time.monotonic() > until:
            entry["failed"]["all"] = f"not begun, {settings.minutes:g} minutes are over"
            continue
        save = functools.partial(save_result, result, output)
        with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
            run = Run(network, Path(folder), settings, entry, save, until)
            try:
                measure_network(run, gpu)
            except DeployError as error:
                entry["failed"]["all"] = f"not run: {error}"


def save_result(result: dict[str, Any], output: Path) -> None:
    """The JSON, and beside it the table as it is so far; each is whole at any time."""
    text = json.dumps(result, indent=2, allow_nan=False)
    table = f"{describe_conditions(result)}\n\n{make_table(result)}"
    for path, content in ((output, text), (output.with_suffix(".md"), table)):
        part = path.with_name(f".{path.name}.part")
        part.write_text(f"{content}\n", encoding="utf-8")
        part.replace(path)


def describe_run(gpu: GpuFacts, settings: Settings) -> dict[str, Any]:
    """What every number of the run holds for."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "gpu": asdict(gpu),
        "cpu": describe_machine().cpu,
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "rounds": settings.rounds,
        "blocks_per_round": BLOCKS,
        "samples": SAMPLES,
        "networks": {},
    }


def describe_conditions(result: dict[str, Any]) -> str:
    """Those, in a line."""
    gpu = result["gpu"]
    packages = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return (
        f"{gpu['name']} (compute capability {gpu['capability']}, driver {gpu['driver']}, CUDA "
        f"{gpu['cuda']}), {result['cpu']}, {packages}, {result['date']}; {result['rounds']} rounds "
        f"of {result['blocks_per_round']} blocks."
    )


if __name__ == "__main__":
    sys.exit(main())
