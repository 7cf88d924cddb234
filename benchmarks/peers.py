"""The product's answer beside what a user would pick instead, in one run.

    pip install 'deploykit[peers]'
    python benchmarks/peers.py [-o peers.json] [timm network ...]

For each network (random weights, BN statistics of a few training batches, all cores, batch 1,
224x224): every peer of `peer_engines.py`, then `deploy build` with generated images, whose int8 is
to be as accurate as that of the worse int8 peer, or 20 dB. Its winner and the peers run each in a
process of its own, interleaved in short blocks in random order. Then ours and the fastest peers are
opened anew, several times, and timed by themselves: two processes that run the same differ by some
percent for as long as they live, so the ratio to the best peer is of the medians of all openings,
with a 95% interval that holds their luck. SQNR is against eager in float32 on held-out images.
Writes JSON after every network and prints the tables of docs/benchmarks.md.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conditions import describe_conditions
from peers_table import (
    INT8_PEERS,
    OURS,
    PEERS,
    SEED,
    find_rivals,
    make_quality_table,
    make_table,
    summarize,
)

from deploy.bundle.folder import read_bundle
from deploy.engines.base import EngineSpec
from deploy.engines.process import ChildProcess, EngineProcess
from deploy.judging.output_parity import decibels
from deploy.measuring.machine import usable_cores
from deploy.measuring.peaks import measure_peaks
from export.errors import DeployError

HERE = Path(__file__).parent
FOLDERS = (str(HERE), str(HERE.parent), str(HERE.parent / "tests"))
"""The root comes before the tests, whose folder `deploy` would stand for the package alone."""
NETWORKS = (
    "resnet18",
    "resnet50",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "repvgg_a0",
    "mobileone_s1",
    "convnext_tiny",
    "vit_small_patch16_224",
)
TRANSFORMERS = ("vit_small_patch16_224",)
LEAST_SQNR = 20.0
"""dB that our int8 must reach, or what the worse int8 peer reaches, where that is less.

Networks with random weights lose more to int8 than trained ones do; at the usual gate of 20 dB ours
would leave int8 where no peer does, and would not be compared at the same precision.
"""
CALIBRATION, EVALUATION = 64, 64
ROUNDS, BLOCKS, BLOCK_SECONDS = 12, 2, 0.12
RIVALS, OPENINGS, ROUNDS_OF_OPENING = 3, 5, 4
"""How many peers are opened anew, how often, and the rounds of each time."""


@dataclass
class Runner:
    """One engine of the run, ours or a peer's, with the same three questions."""

    name: str
    process: ChildProcess
    ours: bool

    def prepare(self, feeds: dict[str, np.ndarray]) -> None:
        """Hand over the feeds that are timed."""
        if self.ours:
            self.process.request("prepare", feeds)
        else:
            self._call("time_peer", feeds=feeds, calls=1, warmup=2)

    def time(self, calls: int, warmup: int = 1) -> np.ndarray:
        """Seconds of each call."""
        if self.ours:
            return self.process.request("time", calls, warmup)
        return self._call("time_peer", feeds=None, calls=calls, warmup=warmup)

    def run(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        """The first output."""
        outputs = (
            self.process.request("run", feeds) if self.ours else self._call("run_peer", feeds=feeds)
        )
        return next(iter(outputs.values()))

    def _call(self, name: str, **kwargs: Any) -> Any:
        return self.process.request("call", f"peer_engines:{name}", kwargs, timeout=900)


def main() -> None:
    """One entry a network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("-o", "--output", type=Path, default=Path("peers.json"))
    parser.add_argument("--effort", default="normal")
    options = parser.parse_args()
    sys.path[:0] = FOLDERS
    os.environ["PYTHONPATH"] = os.pathsep.join((*FOLDERS, os.environ.get("PYTHONPATH", "")))
    packages = ("torch", "onnxruntime", "openvino", "nncf", "timm", "onnx")
    result: dict[str, Any] = {
        **describe_conditions(*packages),
        "peaks_gmacs": measure_peaks(threads=usable_cores()),
        "networks": {},
    }
    for name in options.networks:
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            result["networks"][name] = measure_network(name, Path(folder), options.effort)
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(make_table(result), make_quality_table(result), sep="\n\n")


def measure_network(name: str, folder: Path, effort: str) -> dict[str, Any]:
    """Files of all, then their answers, then their times."""
    print(f"{name}: making the files", file=sys.stderr, flush=True)
    in_child("peers:make_network", name=name, folder=str(folder))
    with np.load(folder / "data.npz") as arrays:
        calibration, evaluation = arrays["calibration_x"], arrays["x"]
    reasons: dict[str, str] = {}
    static = {"source": str(folder / "plain.onnx"), "samples": calibration}
    recipes = {
        "quantize_static": {"target": str(folder / "static.onnx")},
        "quantize_nncf": {
            "target": str(folder / "nncf.xml"),
            "transformer": name in TRANSFORMERS,
        },
    }
    for recipe, more in recipes.items():
        try:
            in_child(f"peer_engines:{recipe}", **static, **more)
        except DeployError as error:
            reasons[recipe] = str(error)
    runners = open_peers(folder, reasons)
    try:
        expected = answers(runners["eager"], evaluation)
        quality = {
            name: round(sqnr(expected, answers(runner, evaluation)), 2)
            for name, runner in runners.items()
            if name != "eager"
        }
        gate = min(LEAST_SQNR, *(quality[peer] for peer in INT8_PEERS if peer in quality))
        print(f"{name}: deploy build, at least {gate} dB", file=sys.stderr, flush=True)
        build = build_ours(folder, effort, gate)
        quality.update(measure_int8(folder, expected, evaluation))
        spec = open_bundle(folder)
        runners[OURS] = Runner(OURS, EngineProcess(spec), ours=True)
        quality[OURS] = round(sqnr(expected, answers(runners[OURS], evaluation)), 2)
        times = measure_all(runners, evaluation[:1], ROUNDS)
    finally:
        close(runners)
    print(f"{name}: ours and the fastest peers anew", file=sys.stderr, flush=True)
    reopened = measure_openings(folder, spec, find_rivals(times, RIVALS), evaluation[:1])
    summary = summarize(times, reopened)
    return {**summary, "sqnr_db": quality, "failed": reasons, "build": build}


def make_network(name: str, folder: str) -> None:
    """In a child: the network with BN statistics, its plain ONNX file, and generated images."""
    import timm_zoo
    import torch

    torch.manual_seed(SEED)
    net = timm_zoo.Portable(timm_zoo.timm.create_model(name))
    images = make_images(CALIBRATION + EVALUATION)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # what is left of its start fades signals
            layer.momentum = None  # the mean of all batches
    with torch.no_grad():
        net.train()
        for start in range(0, 32, 8):
            net(torch.from_numpy(images[start : start + 8]))
    net.eval()
    torch.save(net, Path(folder) / "net.pt")
    np.savez(Path(folder) / "data.npz", calibration_x=images[:CALIBRATION], x=images[CALIBRATION:])
    torch.onnx.export(
        net,
        (torch.from_numpy(images[:2]),),
        Path(folder) / "plain.onnx",
        dynamo=True,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes={"x": {0: torch.export.Dim.DYNAMIC}},
        external_data=False,
        verbose=False,
    )


def make_images(count: int) -> np.ndarray:
    """Smooth random images with noise, normalized as ImageNet's are: [count, 3, 224, 224]."""
    rng = np.random.default_rng(SEED)
    images = np.zeros((count, 3, 224, 224), np.float32)
    for cells in (2, 4, 7, 14, 28, 56):
        coarse = rng.standard_normal((count, 3, cells, cells), dtype=np.float32)
        images += coarse.repeat(224 // cells, axis=2).repeat(224 // cells, axis=3)
    images += 0.3 * rng.standard_normal(images.shape, dtype=np.float32)
    return images / images.std()


def build_ours(folder: Path, effort: str, gate: float) -> dict[str, Any]:
    """`deploy build`, as a user runs it; what it says of itself."""
    command = [sys.executable, "-m", "deploy", "build", "net.pt", "--trust-all"]
    command += ["--data", "data.npz", "--min-agreement", "0", "--effort", effort]
    command += ["--min-sqnr", str(gate)]
    command += ["--calibration-samples", str(CALIBRATION)]
    environment = {**os.environ, "DEPLOY_CACHE": str(folder / "cache")}  # nothing found before
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"deploy build failed:\n{done.stdout}\n{done.stderr}")
    report = json.loads((folder / "net.deploy" / "report.json").read_text())
    winner = next(row for row in report["candidates"] if row["name"] == report["winner"])
    return {
        "winner": report["winner"],
        "seconds": {stage["name"]: round(stage["seconds"], 1) for stage in report["stages"]},
        "macs": report["model"]["macs"],
        "census": winner.get("census"),
        "candidates": {
            row["name"]: row["latency"] and round(row["latency"]["p50_ms"], 3)
            for row in report["candidates"]
        },
    }


def open_peers(
    folder: Path, reasons: dict[str, str], names: Iterable[str] = PEERS
) -> dict[str, Runner]:
    """Those of `names` that can be opened; `reasons` takes those that cannot."""
    runners: dict[str, Runner] = {}
    for name in names:
        file = PEERS[name]
        if not (folder / file).is_file():
            continue
        process = ChildProcess(threads=usable_cores())
        try:
            arguments = {"kind": name, "path": str(folder / file), "threads": usable_cores()}
            process.request("call", "peer_engines:open_peer", arguments, timeout=900)
        except DeployError as error:
            reasons[name] = str(error)
            process.close()
            continue
        runners[name] = Runner(name, process, ours=False)
    return runners


def open_bundle(folder: Path) -> EngineSpec:
    """The winner of our build."""
    bundle = read_bundle(folder / "net.deploy")
    return bundle.spec(bundle.winner, trust=("*",))


def measure_int8(folder: Path, expected: np.ndarray, images: np.ndarray) -> dict[str, float]:
    """SQNR of our engines whose precision is int8, where they passed their gate."""
    bundle, found = read_bundle(folder / "net.deploy"), {}
    for name, entry in bundle.manifest.engines.items():
        if entry.precision == "int8" and entry.not_run is None and not entry.variant:
            with EngineProcess(bundle.spec(name)) as process:
                runner = Runner(name, process, ours=True)
                found[f"{OURS} {name}"] = round(sqnr(expected, answers(runner, images)), 2)
    return found


def answers(runner: Runner, images: np.ndarray) -> np.ndarray:
    """The outputs of all images, one at a time."""
    return np.concatenate([runner.run({"x": image[None]}) for image in images])


def sqnr(expected: np.ndarray, ours: np.ndarray) -> float:
    """Signal to noise in dB."""
    exact = expected.astype(np.float64)
    return decibels(float(np.square(exact).sum()), float(np.square(ours - exact).sum()))


def close(runners: dict[str, Runner]) -> None:
    """End their processes."""
    for runner in runners.values():
        runner.process.close()


def measure_openings(
    folder: Path, ours: EngineSpec, rivals: list[str], x: np.ndarray
) -> dict[str, np.ndarray]:
    """Block medians in seconds, [openings, rounds, blocks], of ours and of these peers."""
    openings = []
    for opening in range(OPENINGS):
        failed: dict[str, str] = {}
        runners = open_peers(folder, failed, rivals)
        if failed:
            raise SystemExit(f"Opened once, and not again: {failed}")
        try:
            runners[OURS] = Runner(OURS, EngineProcess(ours), ours=True)
            openings.append(measure_all(runners, x, ROUNDS_OF_OPENING, seed=opening))
        finally:
            close(runners)
    return {name: np.stack([each[name] for each in openings]) for name in openings[0]}


def measure_all(
    runners: dict[str, Runner], x: np.ndarray, rounds: int, seed: int = SEED
) -> dict[str, np.ndarray]:
    """Block medians in seconds, [rounds, blocks], of all, in turns of random order."""
    order = random.Random(seed)
    calls: dict[str, int] = {}
    for name, runner in runners.items():
        runner.prepare({"x": x})
        usual = float(np.median(runner.time(5, warmup=5)))
        calls[name] = max(3, math.ceil(BLOCK_SECONDS / usual))
    times = {name: np.empty((rounds, BLOCKS)) for name in runners}
    for turn in range(rounds):
        blocks = [(name, block) for name in runners for block in range(BLOCKS)]
        order.shuffle(blocks)
        for name, block in blocks:
            times[name][turn, block] = np.median(runners[name].time(calls[name], warmup=2))
    return times


def in_child(function: str, /, **kwargs: Any) -> Any:
    """Call a function in a process of its own, with all its memory."""
    with ChildProcess(threads=usable_cores()) as child:
        return child.request("call", function, kwargs, timeout=1800)


if __name__ == "__main__":
    main()
