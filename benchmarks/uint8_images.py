"""uint8 images into the engine against floats that the caller prepares with numpy, side by side.

    python benchmarks/uint8_images.py FOLDER [--build] [--seconds S] [network ...]

Random weights with batch norms set by two batches in training mode, 224x224, batch 1, all cores.
Two builds of each network: one takes normalized floats, [N, 3, H, W], and its caller divides,
subtracts, divides and transposes in numpy (float32, as most servers do); the other takes the uint8
image, [N, H, W, 3], with ``--image-input`` of ImageNet. What is timed is what the caller waits for:
preparation and call. Each side runs in a process of its own, in short blocks in random order. The
ratio is floats over images: above 1 images pay. ``prepare_ms`` is numpy's share of the first side.
The files are made in FOLDER once (``--build`` does only that). Prints one JSON object.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conditions import describe_conditions
from rewrites import draw, make_net
from torch import nn

from deploy.candidates.schemes import choose_scheme
from deploy.engines import EngineSpec, open_engine
from deploy.engines.base import Array, Feeds
from deploy.measuring.bootstrap import estimate_ratio
from deploy.measuring.machine import usable_cores
from export.artifacts import OnnxModel
from export.capture.image_model import ImageModel
from export.capture.ladder import export_model
from export.capture.signature import describe_call
from export.images import ImageCall, ImageInput
from export.onnx.tensor_types import float_tensors
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8

NETWORKS = ("resnet18", "mobilenetv2_100", "mobilenetv3_large_100", "vit_small_patch16_224")
SIDES = ("floats", "images")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROUNDS, BLOCKS, SEED = 8, 3, 0


def main() -> None:
    """Make the files, time them, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each pair")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("networks", nargs="*")
    options = parser.parse_intermixed_args()
    if options.side:
        return serve_times(json.loads(options.side))
    rows = []
    for name in options.networks or NETWORKS:
        files = make_files(name, options.folder / name)
        for engine, precision in ENGINES if not options.build else ():
            sides = [(engine, precision, str(files[side, engine, precision])) for side in SIDES]
            row = {"network": name, "engine": engine, "precision": precision}
            rows.append(row | compare(sides, options.seconds))
            print(rows[-1], file=sys.stderr)
    conditions = describe_conditions("torch", "openvino", "onnxruntime", "timm", "numpy")
    print(json.dumps({**conditions, "rows": rows}, indent=2))
    return None


ENGINES = tuple((engine, p) for engine in ("onnxruntime", "openvino") for p in ("fp32", "int8"))


def make_files(name: str, folder: Path) -> dict[tuple[str, str, str], Path]:
    """By side, engine and precision."""
    files: dict[tuple[str, str, str], Path] = {}
    for side in SIDES:
        path = folder / side
        for engine, precision in ENGINES:
            file = "model.onnx" if precision == "fp32" else f"{engine}.onnx"
            files[side, engine, precision] = path / file
    if all(file.exists() for file in files.values()):
        return files
    net = make_net(name)
    for side in SIDES:
        model = _export(net, side, folder / side)
        batches = [_feeds(side, draw_images(4, seed)) for seed in (1, 2)]
        ranges = calibrate(model, batches, tensors=float_tensors(model.path))
        for engine in ("onnxruntime", "openvino"):
            path = files[side, engine, "int8"]
            quantize_int8(model, ranges, choose_scheme(engine), path)
    return files


def _export(net: nn.Module, side: str, folder: Path) -> OnnxModel:
    images = ImageCall((ImageInput("x", MEAN, STD),))
    module = ImageModel(net, images, ("x",)) if side == "images" else net
    feeds = {key: torch.from_numpy(value) for key, value in _feeds(side, draw_images(2, 0)).items()}
    signature = describe_call(module, feeds, keyword=False, dynamic_batch=True)
    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"signature": signature, "static_batch": False, "opset": 20}
    return export_model(module, feeds, folder, **options).onnx


def draw_images(samples: int, seed: int) -> Array:
    """Noise at several scales as pixels, [N, H, W, 3]."""
    values = draw(samples, seed).numpy().transpose(0, 2, 3, 1)
    return np.ascontiguousarray(np.clip(values * 60 + 118, 0, 255), dtype=np.uint8)


def _feeds(side: str, images: Array) -> Feeds:
    return {"x": images if side == "images" else prepare(images)}


def prepare(images: Array) -> Array:
    """What the caller does where the engine takes floats."""
    values = images.astype(np.float32)
    values /= 255
    values -= np.float32(MEAN)
    values /= np.float32(STD)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def serve_times(side: dict[str, Any]) -> None:
    """The child: medians of as many calls as each line of the input asks for."""
    images = draw_images(1, 3)
    spec = EngineSpec(side["engine"], side["precision"], side["path"], usable_cores())
    with open_engine(spec) as engine:
        for line in sys.stdin:
            whole, preparing = [], []
            for _ in range(int(line)):
                started = time.perf_counter()
                feeds = _feeds(side["side"], images)
                prepared = time.perf_counter()
                engine(feeds)
                whole.append(time.perf_counter() - started)
                preparing.append(prepared - started)
            print(json.dumps([float(np.median(whole)), float(np.median(preparing))]), flush=True)


class Side:
    """One side in its process."""

    def __init__(self, name: str, engine: str, precision: str, path: str) -> None:
        side = {"side": name, "engine": engine, "precision": precision, "path": path}
        command = [sys.executable, __file__, "-", "--side", json.dumps(side)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def time(self, calls: int) -> tuple[float, float]:
        """Median seconds of a call, and of the preparation in it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        whole, preparing = json.loads(self._process.stdout.readline())
        return whole, preparing

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(sides: list[tuple[str, str, str]], seconds: float) -> dict[str, Any]:
    """Medians in ms, and floats over images with the interval."""
    order, times = random.Random(SEED), np.empty((2, ROUNDS, BLOCKS))
    children = [Side(name, *side) for name, side in zip(SIDES, sides, strict=True)]
    share = seconds / (2 * ROUNDS * BLOCKS)
    preparing = []
    try:
        calls = []
        for child in children:
            child.time(5)
            calls.append(max(3, int(share / child.time(5)[0])))
        for turn in range(ROUNDS):
            blocks = [(which, block) for which in (0, 1) for block in range(BLOCKS)]
            for which, block in order.sample(blocks, len(blocks)):
                times[which, turn, block], part = children[which].time(calls[which])
                if which == 0:
                    preparing.append(part)
    finally:
        for child in children:
            child.close()
    ratio, (low, high) = estimate_ratio(times[:1], times[1:2], seed=SEED)
    return {
        "floats_ms": round(float(np.median(times[0])) * 1e3, 3),
        "images_ms": round(float(np.median(times[1])) * 1e3, 3),
        "prepare_ms": round(float(np.median(preparing)) * 1e3, 3),
        "ratio": round(ratio, 3),
        "ci95": [round(low, 3), round(high, 3)],
    }


if __name__ == "__main__":
    main()
