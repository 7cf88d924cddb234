"""``python -m random_networks SEEDS [--show]``: check networks, each in a process of its own."""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a fork has no threads but its own

import torch
from torch import nn

from export.capture.program import capture
from export.fusion import fuse_program
from export.onnx.exporter import to_onnx
from random_networks.checking import Findings, check_network, in_child
from random_networks.network import make_network


def read_seeds(words: list[str]) -> list[int]:
    """``7 20-22`` as 7, 20, 21, 22."""
    seeds: list[int] = []
    for word in words:
        first, _, last = word.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def check_seed(seed: int) -> Findings:
    """The findings of a seed, whatever becomes of the process that looks."""

    def check() -> Findings:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            return check_network(make_network(seed), Path(folder))

    try:
        return in_child(check, seconds=300)
    except RuntimeError as error:
        return Findings(seed, [("process", str(error))])


def warm_up() -> None:
    """Read once what torch reads at its first export."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    program = capture(net.eval(), {"x": torch.randn(2, 3, 8, 8)}, keyword=False, dynamic_batch=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        fused = fuse_program(program).program
        to_onnx(fused, path, input_names=["x"], output_names=["output"], opset=20)


def main() -> int:
    """One line of JSON a network; with ``--show`` its layers too."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", nargs="+")
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    failed = 0
    warm_up()
    for seed in read_seeds(given.seeds):
        if given.show:
            print(make_network(seed).module, file=sys.stderr)
        findings = check_seed(seed)
        failed += bool(findings.wrong)
        print(json.dumps(asdict(findings), default=str), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
