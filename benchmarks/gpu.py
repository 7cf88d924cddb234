"""Engines of TensorRT on this machine's NVIDIA GPU, beside what a user would run there instead.

    python benchmarks/gpu.py [-o gpu.json] [--short] [timm network ...]
    python benchmarks/gpu.py --table gpu.json

For each network (random weights, BN statistics of a few training batches, 224x224): the peers of
`gpu_peers.py`, and the engines that a build makes with NVIDIA TensorRT and TensorRT for RTX in
TF32, fp16, bf16 and int8. Each runs in a process of its own, in short blocks in random order, at
batch 1 to 256. Timed are the GPU's own work, by CUDA events, and the whole call with both copies,
by the host's clock. Answers are held against float64 on the CPU and against eager float32 on the
GPU. Clocks, power, temperature and what holds the clocks back are read before and after. A second
eager float32 is the A/A control. Prints one table; what cannot run is said in a line. Without a
GPU: one line.
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
FOLDERS = (str(HERE), str(HERE.parent), str(HERE.parent / "tests"))
"""The root comes before the tests, whose folder `deploy` would stand for the package alone."""
sys.path[:0] = FOLDERS

from gpu_table import BASELINE, make_table, measure_parity, state_json, summarize  # noqa: E402

from deploy.engines.base import EngineSpec  # noqa: E402
from deploy.engines.process import ChildProcess, call_in_child  # noqa: E402
from deploy.measuring.machine import describe_machine, usable_cores  # noqa: E402
from export.artifacts import OnnxModel  # noqa: E402
from export.errors import DeployError  # noqa: E402
from export.gpu import GpuFacts, read_gpu, read_gpu_state  # noqa: E402
from export.optional import is_installed  # noqa: E402
from export.tensorrt import BuildOptions, SizeRange  # noqa: E402
from export.tensorrt.products import PRODUCTS  # noqa: E402

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
)
SLOW_PEERS = ("torch.compile reduce-overhead TF32", "torch.compile max-autotune AMP fp16")
"""A compiler works at every batch size anew; a short run has one peer of that kind."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SAMPLES, SEED = 32, 0
BLOCKS, BLOCK_SECONDS, MIN_CALLS = 2, 0.05, 3
PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "timm")
_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        minutes: after these, no further batch and no further network is begun.
    """

    networks: tuple[str, ...] = NETWORKS
    peers: tuple[str, ...] = PEERS
    batches: tuple[int, ...] = BATCHES
    rounds: int = 10
    minutes: float = math.inf

    @property
    def profiles(self) -> tuple[SizeRange, ...]:
        """One for the smallest batch alone, one for all of them."""
        least, most = self.batches[0], self.batches[-1]
        return SizeRange(1, 1, 1), SizeRange(1, max(least, min(32, most)), max(most, SAMPLES))


SHORT = Settings(
    networks=("resnet50",),
    peers=tuple(peer for peer in PEERS if peer not in SLOW_PEERS),
    batches=(1, 32),
    rounds=5,
    minutes=5,
)


@dataclass
class Run:
    """One network that is being measured: who runs, and why the others do not."""

    network: str
    folder: Path
    settings: Settings
    runners: dict[str, ChildProcess] = field(default_factory=dict)
    clocks: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    states: list[dict[str, Any]] = field(default_factory=list)

    def call(self, name: str, function: str, **kwargs: Any) -> Any:
        """Call a function of `gpu_peers` in an engine's process."""
        target = f"gpu_peers:{function}"
        return self.runners[name].request("call", target, kwargs, timeout=_TIMEOUT_S)

    def note_state(self, when: str) -> None:
        """Ask the driver."""
        self.states.append(state_json(when, read_gpu_state()))

    def give_up(self, name: str, reason: object) -> None:
        """An engine that fails is out; the rest go on."""
        self.failed[name] = str(reason)
        self.runners.pop(name).close()


def main() -> int:
    """The table, whatever of it can be had here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--short", action="store_true", help="one network, two batches, minutes")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print that of an earlier run")
    given = parser.parse_args()
    if given.table is not None:
        print(make_table(json.loads(given.table.read_text(encoding="utf-8"))))
        return 0
    gpu = read_gpu()
    if gpu is None:
        print("not_run: no NVIDIA GPU")
        return 0
    settings = SHORT if given.short else Settings()
    if given.networks:
        settings = Settings(**{**vars(settings), "networks": tuple(given.networks)})
    os.environ["PYTHONPATH"] = os.pathsep.join((*FOLDERS, os.environ.get("PYTHONPATH", "")))
    started = time.monotonic()
    result = describe_run(gpu, settings)
    for network in settings.networks:
        if time.monotonic() - started > settings.minutes * 60:
            print(f"{network}: not begun, {settings.minutes:g} minutes are over", file=sys.stderr)
            continue
        deadline = started + settings.minutes * 60
        with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
            result["networks"][network] = measure_network(
                Run(network, Path(folder), settings), gpu, deadline
            )
        given.output.write_text(
            json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
    print(describe_conditions(result), make_table(result), sep="\n\n")
    return 0


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


def measure_network(run: Run, gpu: GpuFacts, deadline: float) -> dict[str, Any]:
    """Weights and exact answers, then everybody's, then their times at every batch."""
    say(run, "making the network and its exact answers")
    arguments = {"network": run.network, "folder": str(run.folder)}
    model = in_child("make_network", **arguments, seed=SEED, samples=SAMPLES)
    with np.load(run.folder / "data.npz") as arrays:
        images, exact = arrays["x"], arrays["exact"]
    with open_runners(run, build_ours(run, gpu, model)):
        answers = {}
        for name in list(run.runners):
            try:
                answers[name] = run.call(name, "run_peer", x=images)
            except DeployError as error:
                run.give_up(name, error)
        parity = measure_parity(exact, answers)
        batches = {}
        for batch in run.settings.batches:
            if time.monotonic() > deadline:
                run.failed[f"batch {batch} and above"] = "the time that was given is over"
                break
            say(run, f"batch {batch}")
            batches[str(batch)] = measure_batch(run, np.resize(images, (batch, *images.shape[1:])))
    return {
        "parity": parity,
        "batches": batches,
        "clocks": run.clocks,
        "failed": run.failed,
        "states": run.states,
    }


def build_ours(run: Run, gpu: GpuFacts, model: OnnxModel) -> dict[str, EngineSpec]:
    """Every engine of both products that can be built for this GPU; the rest with the reason."""
    specs = {}
    for product in PRODUCTS:
        if not is_installed(product):
            run.failed[product] = f"not run: {product} is not installed"
            continue
        say(run, f"building with {product}")
        try:
            graphs = in_child(
                "make_graphs",
                model=model,
                folder=str(run.folder),
                engine=product,
                batch=run.settings.profiles,
            )
        except DeployError as error:
            run.failed[product] = f"not run: {error}"
            continue
        options = BuildOptions(batch=run.settings.profiles, targets=(gpu.target,))
        for precision, graph in graphs.items():
            name = f"{product} {precision}"
            try:
                if isinstance(graph, str):
                    raise DeployError(graph)
                built = call_in_child(
                    "export.tensorrt:build_engine",
                    model=graph,
                    path=run.folder / name.replace(" ", "-") / "model.engine",
                    engine=product,
                    options=options,
                )
            except DeployError as error:
                run.failed[name] = f"not run: {error}"
                continue
            specs[name] = EngineSpec(
                product, precision, str(built.path), usable_cores(), record=built.record
            )
    join_failures(run.failed)
    return specs


def join_failures(failed: dict[str, str]) -> None:
    """One line for a product that refuses the GPU in every precision alike."""
    for product in (*PRODUCTS, "onnxruntime CUDA"):
        mine = [name for name in failed if name.startswith(f"{product} ")]
        if len(mine) > 1 and len({failed[name] for name in mine}) == 1:
            reason = failed[mine[0]]
            for name in mine:
                del failed[name]
            failed[product] = reason


@contextlib.contextmanager
def open_runners(run: Run, ours: dict[str, EngineSpec]) -> Iterator[None]:
    """Every engine that opens, each in a process that ends with the block."""
    try:
        for name in (*run.settings.peers, *ours):
            run.runners[name] = ChildProcess(threads=usable_cores())
            try:
                if name in ours:
                    run.clocks[name] = run.call(name, "open_ours", spec=ours[name])
                else:
                    place = {"folder": str(run.folder), "network": run.network}
                    run.clocks[name] = run.call(name, "open_peer", kind=name, **place)
            except DeployError as error:
                run.give_up(name, f"not run: {error}")
        join_failures(run.failed)
        yield
    finally:
        for process in run.runners.values():
            process.close()


def measure_batch(run: Run, x: np.ndarray) -> dict[str, Any]:
    """Block medians of everybody, in turns of random order; by both clocks."""
    clocks = ("time_compute", "time_wall")
    calls: dict[tuple[str, str], int] = {}
    for name in list(run.runners):
        try:
            run.call(name, "prepare_peer", x=x)
            for clock in clocks:
                usual = float(np.median(run.call(name, clock, calls=MIN_CALLS)))
                calls[name, clock] = max(MIN_CALLS, math.ceil(BLOCK_SECONDS / max(usual, 1e-6)))
        except DeployError as error:
            run.failed[f"{name}, batch {len(x)}"] = str(error)
            calls = {key: count for key, count in calls.items() if key[0] != name}
    run.note_state(f"before batch {len(x)}")
    times = run_rounds(run, calls, seed=SEED + len(x))
    run.note_state(f"after batch {len(x)}")
    compute, wall = (
        {name: blocks for (name, kind), blocks in times.items() if kind == clock}
        for clock in clocks
    )
    whole = {name: blocks for name, blocks in compute.items() if name in wall}
    return summarize(whole, wall, batch=len(x), seed=SEED)


def run_rounds(
    run: Run, calls: dict[tuple[str, str], int], *, seed: int
) -> dict[tuple[str, str], np.ndarray]:
    """Medians of blocks in seconds, [rounds, blocks], by engine and clock."""
    order = random.Random(seed)
    times = {key: np.empty((run.settings.rounds, BLOCKS)) for key in calls}
    for turn in range(run.settings.rounds):
        blocks = [(key, block) for key in times for block in range(BLOCKS)]
        order.shuffle(blocks)
        for (name, clock), block in blocks:
            if (name, clock) not in times:
                continue
            try:
                seconds = run.call(name, clock, calls=calls[name, clock])
            except DeployError as error:
                run.failed[name] = str(error)
                times = {key: found for key, found in times.items() if key[0] != name}
                continue
            times[name, clock][turn, block] = np.median(seconds)
    return times


def in_child(function: str, **kwargs: Any) -> Any:
    """Call a function of `gpu_peers` in a process of its own, with all its memory."""
    with ChildProcess(threads=usable_cores()) as child:
        return child.request("call", f"gpu_peers:{function}", kwargs, timeout=_TIMEOUT_S)


def say(run: Run, what: str) -> None:
    """Progress, beside what is printed in the end."""
    print(f"{run.network}: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
