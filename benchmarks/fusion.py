"""What merging branches gains: RepVGG-A0 merged against unmerged, engine by engine, interleaved.

    python benchmarks/fusion.py [timm network ...]

Random weights, batch 1, 224x224, all cores. Unmerged has its batch norms folded, as every runtime
does by itself; only the branches are kept. Each engine runs in a process of its own; blocks take
turns in random order, and the ratio is that of the medians, with a 95% interval from resampling
rounds. The time and memory of the fusion itself come first. Prints one JSON object.
"""

import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conditions import describe_conditions
from torch import nn

from deploy.candidates.files import build_candidates
from deploy.engines.base import EngineSpec
from deploy.engines.process import EngineProcess
from deploy.measuring.bootstrap import estimate_ratio
from deploy.measuring.machine import usable_cores
from deploy.source import write_module
from export.artifacts import OnnxModel, TensorSpec
from export.capture.program import capture
from export.fusion import fuse
from export.fusion.conv_bn import fold_conv_bn
from export.fusion.draft import Draft
from export.fusion.options import FusionOptions
from export.onnx.exporter import to_onnx
from export.onnx.tensor_types import float_tensors
from quantize.calibration.calibrate import calibrate

ROOT = Path(__file__).parents[1]
FOLDERS = (str(ROOT), str(ROOT / "tests"))  # tests/deploy alone would stand for deploy
sys.path[:0] = FOLDERS
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (*FOLDERS, os.environ.get("PYTHONPATH"))))

ENGINES = ("torch-fp32", "openvino-fp32", "openvino-bf16", "openvino-int8", "onnxruntime-int8")
SHAPE = (1, 3, 224, 224)
ROUNDS = 15
BLOCKS = 2
BLOCK_SECONDS = 0.15
SEED = 0


def main() -> None:
    """One entry a network."""
    names = sys.argv[1:] or ["repvgg_a0"]
    result = {
        **describe_conditions("torch", "openvino", "onnxruntime", "timm"),
        "networks": {name: measure_network(name) for name in names},
    }
    print(json.dumps(result, indent=2))


def measure_network(name: str) -> dict[str, Any]:
    """Cost of the fusion, then the ratio for every engine."""
    import timm_zoo  # declares what timm's import needs beside a torch for CPUs
    from nets import randomize_norms

    torch.manual_seed(SEED)
    net = randomize_norms(timm_zoo.Portable(timm_zoo.timm.create_model(name))).eval()
    x = torch.randn(SHAPE)
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.weight.mul_(0.3)
    fuse(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)).eval(), x)  # torch loads its parts
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    result = fuse(net, x)
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    weights = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    model = result.certificate.model
    with tempfile.TemporaryDirectory() as folder:
        unmerged = make_specs(net, net, Path(folder) / "unmerged")
        merged = make_specs(net, result.module, Path(folder) / "merged")
        ratios = {
            engine: compare(unmerged[engine], merged[engine], x.numpy())
            for engine in ENGINES
            if engine in unmerged and engine in merged
        }
    return {
        "fuse_seconds": round(seconds, 1),
        "weights_mib": round(weights / 2**20),
        "peak_over_weights": round((grown + weights) / weights, 2),
        "layers": [model.layers_before, model.layers_after],
        "macs": [model.macs_before, model.macs_after],
        "error_float32": model.error_float32,
        "noise_float32": model.noise_float32,
        "engines": ratios,
    }


def make_specs(net: nn.Module, runs: nn.Module, folder: Path) -> dict[str, EngineSpec]:
    """Every engine's spec of `net`, whose eager form is `runs`."""
    folder.mkdir()
    x = torch.randn(2, *SHAPE[1:])
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    if runs is net:
        draft = Draft(program)
        fold_conv_bn(draft, FusionOptions())
        program = draft.finish()
    else:
        program = fuse(net, x).program
    onnx = to_onnx(program, folder / "model.onnx", input_names=["x"], output_names=["y"], opset=20)
    batches = [{"x": torch.randn(4, *SHAPE[1:]).numpy()} for _ in range(4)]
    tensors = float_tensors(onnx.path)
    ranges = calibrate(onnx, batches, observer="minmax", tensors=tensors, total=16)
    specs = {"torch-fp32": _eager_spec(runs, onnx, folder)}
    for candidate in build_candidates(onnx, ranges, stage=folder, scratch=folder):
        if candidate.status == "built":
            specs[candidate.name] = candidate.spec(usable_cores())
    return specs


def _eager_spec(module: nn.Module, onnx: OnnxModel, folder: Path) -> EngineSpec:
    inputs: tuple[TensorSpec, ...] = onnx.inputs
    return EngineSpec(
        engine="torch",
        precision="fp32",
        path=str(write_module(module, folder)),
        threads=usable_cores(),
        trust=("*",),
        inputs=inputs,
        outputs=onnx.outputs,
    )


def compare(unmerged: EngineSpec, merged: EngineSpec, x: np.ndarray) -> dict[str, Any]:
    """Medians in ms and the ratio unmerged over merged with its interval."""
    order = random.Random(SEED)
    times = np.empty((2, ROUNDS, BLOCKS))
    with EngineProcess(unmerged) as first, EngineProcess(merged) as second:
        processes = (first, second)
        for process in processes:
            process.prepare({"x": x})
        usual = [float(np.median(process.time(5, warmup=5))) for process in processes]
        calls = [max(3, int(BLOCK_SECONDS / seconds)) for seconds in usual]
        for turn in range(ROUNDS):
            blocks = [(which, block) for which in (0, 1) for block in range(BLOCKS)]
            for which, block in order.sample(blocks, len(blocks)):
                block_times = processes[which].time(calls[which], warmup=1)
                times[which, turn, block] = np.median(block_times)
    ratio, (low, high) = estimate_ratio(times[:1], times[1:2], seed=SEED)
    return {
        "unmerged_ms": round(float(np.median(times[0])) * 1e3, 3),
        "merged_ms": round(float(np.median(times[1])) * 1e3, 3),
        "ratio": round(ratio, 3),
        "ci95": [round(low, 3), round(high, 3)],
    }


if __name__ == "__main__":
    main()
