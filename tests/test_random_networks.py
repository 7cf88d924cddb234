"""Networks that nobody designed: fused, exported, quantized and run as what they were."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_networks.network import make_network

SLOW = ("0-35", "1000-1011", "2000-2011", "2500-2519")
KNOWN = {
    (1009, "openvino fp32"): "it refuses an LSTM behind a turned mean of one channel",
    (1009, "int8 openvino"): "the same",
}
"""What is left of the slow ones, by seed and stage, and why."""
ROOT = Path(__file__).parent.parent


def check(*seeds: str) -> dict[int, list[list[str]]]:
    """What is wrong with the networks of `seeds`, in processes of their own."""
    found = subprocess.run(
        [sys.executable, "-m", "random_networks", *seeds],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
        },
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    networks = [json.loads(line) for line in found.stdout.splitlines()]
    return {network["seed"]: network["wrong"] for network in networks}


def test_a_seed_is_always_the_same_network() -> None:
    for seed in (*range(6), 1000, 1001, *range(2000, 2012), 2500):
        first, second = make_network(seed), make_network(seed)
        assert str(first.module) == str(second.module)
        states = (made.module.state_dict().values() for made in (first, second))
        pairs = zip(*states, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_many_random_networks_are_right_in_every_form() -> None:
    found = check(*SLOW)
    assert len(found) == 36 + 12 + 12 + 20
    stages = {(seed, stage) for seed, wrong in found.items() for stage, _ in wrong}
    assert stages <= set(KNOWN), found
