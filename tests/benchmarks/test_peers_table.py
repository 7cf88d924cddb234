"""The numbers and the tables of `benchmarks/peers.py`, from times that are written down."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from peers_table import (  # noqa: E402
    INT8_PEERS,
    MERGED,
    OURS,
    find_rivals,
    make_quality_table,
    make_table,
    summarize,
)


def entry(**times: float) -> dict[str, object]:
    """What `peers.py` keeps of a network whose blocks all took `times`, in ms."""
    blocks = {name: np.full((12, 2), value / 1e3) for name, value in times.items()}
    build = {"winner": "openvino-int8", "macs": 4_000_000, "census": None}
    reopened = {name: np.full((5, 4, 2), value / 1e3) for name, value in times.items()}
    return summarize(blocks, reopened) | {"build": build, "sqnr_db": {INT8_PEERS[0]: 31.25}}


def test_the_best_peer_is_the_fastest_that_is_not_ours() -> None:
    found = entry(eager=8.0, **{"openvino fp32": 3.0, "onnxruntime fp32": 4.0, OURS: 2.0})
    assert (found["best_peer"], found["ratio"], found["speedup"]) == ("openvino fp32", 0.667, 4.0)
    assert found["ratio_ci95"] == [0.667, 0.667]
    assert found["p50_ms"][OURS] == 2.0  # type: ignore[index]


def test_rivals_are_the_fastest_peers() -> None:
    times = {name: np.full((12, 2), value) for name, value in (("a", 3.0), ("b", 1.0), ("c", 2.0))}
    assert find_rivals(times | {OURS: np.zeros((12, 2))}, 2) == ["b", "c"]


def test_the_ratio_is_of_all_openings_and_its_interval_holds_their_luck() -> None:
    random = np.random.default_rng(0)
    luck = np.exp(0.05 * random.standard_normal((3, 5, 1, 1)))
    noise = np.exp(0.001 * random.standard_normal((3, 5, 4, 2)))
    ours, first, second = luck * noise
    names = (OURS, "onnxruntime fp32", "openvino fp32")
    reopened = dict(zip(names, (ours, first, 2 * second), strict=True))
    once = {name: np.full((12, 2), 1.0) for name in ("eager", *names)}
    found = summarize(once | {"onnxruntime fp32": np.full((12, 2), 3.0)}, reopened)
    assert found["best_peer"] == "onnxruntime fp32"
    assert found["ratio"] == pytest.approx(np.median(ours) / np.median(first), abs=0.02)
    low, high = found["ratio_ci95"]
    assert low < 0.97 * found["ratio"] < 1.03 * found["ratio"] < high
    assert low < 1 < high
    low, high = found["speedup_ci95"]
    assert found["speedup"] == 1
    assert low < 0.9 < 1.1 < high


def test_the_table_has_every_network_and_the_mean_of_its_ratios() -> None:
    slow, fast = entry(eager=4.0, **{OURS: 2.0}), entry(eager=16.0, **{OURS: 2.0})
    result = {"networks": {MERGED[0]: slow, "resnet18": fast}, "peaks_gmacs": {"int8": 10.0}}
    table = make_table(result)
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["| network", "| ---", f"| {MERGED[0]}", "| resnet18"]
    assert rows[2][-1] == "20% |"  # 4 MMAC in 2 ms of 10 GMAC/s
    assert rows[2][3] == "-"  # a peer that was not there
    assert f"merged: {0.5:.3f}" in table
    assert f"the rest: {0.125:.3f}" in table
    assert f"all: {math.sqrt(0.5 * 0.125):.3f}" in table


@pytest.mark.parametrize(("share", "told"), [(None, "0%"), (0.75, "75%")])
def test_the_quality_table_tells_the_share_in_int8(share: float | None, told: str) -> None:
    found = entry(eager=4.0, **{OURS: 2.0})
    if share is not None:
        parts = [{"precision": "int8", "share_of_macs": share}]
        found["build"]["census"] = {"precisions": parts}  # type: ignore[index]
    last = make_quality_table({"networks": {"resnet18": found}}).splitlines()[-1]
    assert last.split(" | ")[1] == "31.2"
    assert last.endswith(f"| {told} |")
