"""What every graph rewrite and placement rule gains: with it against without, engine by engine.

    python benchmarks/rewrites.py FOLDER [--build | --cpu-time] [case ...]

Random weights with batch norms set by two batches in training mode, batch 1, 224x224, all cores.
The files of each case are made in FOLDER once (``--build`` does only that) and then timed: each
engine in a process of its own, blocks in turn in random order. The ratio is that of the medians,
without over with: above 1 the rewrite pays. Prints one JSON object.

On a machine that others use, ``--cpu-time`` takes the CPU time of one thread instead, both files by
turns in one process; it has no interval.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from conditions import describe_conditions
from fusion import compare
from torch import Tensor, nn

from deploy.engines import EngineSpec, open_engine
from deploy.measuring.machine import usable_cores
from export.artifacts import OnnxModel
from export.capture.program import capture
from export.fusion.conv_bn import fold_conv_bn
from export.fusion.draft import Draft
from export.fusion.options import FusionOptions
from export.onnx.exporter import to_onnx
from export.onnx.files import read_model
from export.onnx.graph import node_label
from export.onnx.tensor_types import float_tensors
from quantize.calibration.calibrate import Ranges, calibrate
from quantize.int8.insertion import quantize_int8
from quantize.placement.rules import RULES, OpRule
from quantize.scheme import PRESETS, QuantScheme

_CPU_BLOCKS, _CPU_CALLS = 15, 4

ORT, OPENVINO = PRESETS["onnxruntime"], PRESETS["openvino"]


class Network:
    """One network of timm: its ONNX files and ranges, made when they are asked for."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._calibrated: dict[str, tuple[OnnxModel, Ranges]] = {}

    def float_file(self, kind: str = "model") -> Path:
        """``model``, or ``plain``: without the rewrite to tokens."""
        path = self.folder / f"{kind}.onnx"
        return path if path.exists() else self._calibrate(kind)[0].path

    def int8_file(self, name: str, scheme: QuantScheme, kind: str = "model") -> Path:
        """A Q/DQ file for `scheme`."""
        path = self.folder / f"{name}.onnx"
        if not path.exists():
            model, ranges = self._calibrate(kind)
            quantize_int8(model, ranges, scheme, path)
        return path

    def gates(self) -> frozenset[str]:
        """Names of the convolutions in squeeze-excite blocks."""
        nodes = read_model(self.float_file(), weights=False).graph.node
        convolutions = (node for node in nodes if node.op_type == "Conv")
        return frozenset(node.name for node in convolutions if ".se." in node_label(node))

    def _calibrate(self, kind: str) -> tuple[OnnxModel, Ranges]:
        if kind not in self._calibrated:
            path = self.folder / f"{kind}.onnx"
            plain = mock.patch("export.onnx.exporter.flatten_tokens", return_value=0)
            with plain if kind == "plain" else nullcontext():
                model = _export(self.name, path)
            batches = [{"x": draw(4, seed).numpy()} for seed in (1, 2)]
            ranges = calibrate(model, batches, tensors=float_tensors(path))
            self._calibrated[kind] = model, ranges
        return self._calibrated[kind]


Measured = Iterator[tuple[str, str, Path, Path]]
"""Engine, precision, the file without and the file with."""


def pool_in_int8(net: Network) -> Measured:
    """GlobalAveragePool for ReduceMean (`quantize.placement.pooling`)."""
    for scheme in (ORT, OPENVINO):
        with mock.patch("quantize.int8.insertion.use_global_pooling", return_value={}):
            without = net.int8_file(f"mean_{scheme.name}", scheme)
        yield scheme.name, "int8", without, net.int8_file(scheme.name, scheme)


def flatten_tokens(net: Network) -> Measured:
    """Channel-last chains over rank 3 (`export.onnx.tokens`)."""
    for scheme in (ORT, OPENVINO):
        yield scheme.name, "fp32", net.float_file("plain"), net.float_file()
        without = net.int8_file(f"plain_{scheme.name}", scheme, "plain")
        yield scheme.name, "int8", without, net.int8_file(scheme.name, scheme)


def own_table(net: Network) -> Measured:
    """Q/DQ where the engine itself wants them, against where the other one does."""
    files = net.int8_file("onnxruntime", ORT), net.int8_file("openvino", OPENVINO)
    yield "openvino", "int8", files[0], files[1]
    yield "onnxruntime", "int8", files[1], files[0]


def no_pairs_behind_moves(net: Network) -> Measured:
    """No Q/DQ behind Transpose, Reshape and their like."""
    rules = RULES["openvino"]
    copies = {name: replace(rule, output="always") for name, rule in rules.items()}
    copies = {name: rule for name, rule in copies.items() if rule.role == "copy"}
    with _changed_table(copies):
        without = net.int8_file("pairs_behind_moves", OPENVINO)
    yield "openvino", "int8", without, net.int8_file("openvino", OPENVINO)


def products_in_int8(net: Network) -> Measured:
    """The products of attention."""
    with _changed_table({"MatMul": replace(RULES["openvino"]["MatMul"], products=False)}):
        without = net.int8_file("float_products", OPENVINO)
    yield "openvino", "int8", without, net.int8_file("openvino", OPENVINO)


def gates_in_int8(net: Network) -> Measured:
    """The convolutions of squeeze-excite."""
    for scheme in (ORT, OPENVINO):
        without = net.int8_file(
            f"float_gates_{scheme.name}", replace(scheme, keep_float=net.gates())
        )
        yield scheme.name, "int8", without, net.int8_file(scheme.name, scheme)


def scaling_in_float(net: Network) -> Measured:
    """The multiplication by a squeeze-excite gate."""
    with _changed_table({"Mul": OpRule("join", output="if_read", pulls=True)}):
        without = net.int8_file("int8_scaling", OPENVINO)
    yield "openvino", "int8", without, net.int8_file("openvino", OPENVINO)


CASES: Mapping[Callable[[Network], Measured], tuple[str, ...]] = {
    pool_in_int8: ("mobilenetv3_large_100", "efficientnet_b0"),
    flatten_tokens: ("convnext_tiny",),
    own_table: ("mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "resnet18"),
    no_pairs_behind_moves: ("vit_small_patch16_224",),
    products_in_int8: ("vit_small_patch16_224",),
    gates_in_int8: ("mobilenetv3_large_100", "efficientnet_b0"),
    scaling_in_float: ("mobilenetv3_large_100", "efficientnet_b0"),
}


def main() -> None:
    """Make the files, time them, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("cases", nargs="*")
    options = parser.parse_args()
    rows = []
    networks: dict[str, Network] = {}
    for case, names in CASES.items():
        if options.cases and case.__name__ not in options.cases:
            continue
        for name in names:
            net = networks.setdefault(name, Network(name, options.folder))
            for engine, precision, without, with_it in case(net):
                row = {"case": case.__name__, "network": name, "engine": engine}
                files = (without, with_it)
                if not options.build:
                    time_them = time_cpu if options.cpu_time else time_files
                    row |= {"precision": precision} | time_them(engine, precision, files)
                rows.append(row)
                print(row, file=sys.stderr)
    conditions = describe_conditions("torch", "openvino", "onnxruntime", "timm")
    print(json.dumps({**conditions, "rows": [] if options.build else rows}, indent=2))


def time_files(engine: str, precision: str, files: tuple[Path, Path]) -> dict[str, Any]:
    """Medians in ms without and with, and their ratio with its interval."""
    specs = [EngineSpec(engine, precision, str(path), usable_cores()) for path in files]
    found = compare(specs[0], specs[1], draw(1, 0).numpy())
    return {
        "without_ms": found["unmerged_ms"],
        "with_ms": found["merged_ms"],
        "ratio": found["ratio"],
        "ci95": found["ci95"],
    }


def time_cpu(engine: str, precision: str, files: tuple[Path, Path]) -> dict[str, Any]:
    """Medians over blocks of the CPU milliseconds of one call, one thread."""
    feeds = {"x": draw(1, 0).numpy()}
    spent: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        specs = [EngineSpec(engine, precision, str(path), 1) for path in files]
        engines = [stack.enter_context(open_engine(spec)) for spec in specs]
        for engine_ in engines:
            for _ in range(3):
                engine_(feeds)
        for _ in range(_CPU_BLOCKS):
            for engine_, blocks in zip(engines, spent, strict=True):
                started = time.process_time()
                for _ in range(_CPU_CALLS):
                    engine_(feeds)
                blocks.append((time.process_time() - started) / _CPU_CALLS * 1e3)
    without, with_it = (statistics.median(blocks) for blocks in spent)
    return {
        "without_ms": round(without, 3),
        "with_ms": round(with_it, 3),
        "ratio": round(without / with_it, 3),
    }


def draw(samples: int, seed: int) -> Tensor:
    """Images of noise at several scales."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(samples, 3, 224, 224)
    for size in (7, 28, 112, 224):
        noise = torch.randn(samples, 3, size, size, generator=generator)
        total += nn.functional.interpolate(noise, size=(224, 224), mode="bilinear")
    return total / 2


@contextmanager
def _changed_table(rules: Mapping[str, OpRule]) -> Iterator[None]:
    with mock.patch.dict(RULES, {"openvino": {**RULES["openvino"], **rules}}):  # type: ignore[arg-type]
        yield


def make_net(name: str) -> nn.Module:
    """A network of timm with random weights; its batch norms have seen two batches."""
    import timm_zoo  # declares what timm's import needs beside a torch for CPUs

    torch.manual_seed(0)
    net = timm_zoo.timm.create_model(name)
    with torch.no_grad():
        for child in net.modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                child.momentum = 0.7
            for parameter, value in child.named_parameters(recurse=False):
                if parameter == "gamma":  # layer scales are near zero when they are new
                    value.fill_(0.2)
        for seed in (100, 101):
            net.train()(draw(4, seed))
    made: nn.Module = net.eval()
    return made


def _export(name: str, path: Path) -> OnnxModel:
    program = capture(make_net(name), {"x": draw(2, 0)}, keyword=False, dynamic_batch=True)
    draft = Draft(program)
    fold_conv_bn(draft, FusionOptions())
    return to_onnx(draft.finish(), path, input_names=["x"], output_names=["y"], opset=20)


if __name__ == "__main__":
    main()
