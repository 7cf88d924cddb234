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
    make_quality_table,
    make_table,
    summarize,
)


def entry(**times: float) -> dict[str, object]:
    """What `peers.py` keeps of a network whose blocks all took `times`, in ms."""
    blocks = {name: np.full((12, 2), value / 1e3) for name, value in times.items()}
    build = {"winner": "openvino-int8", "macs": 4_000_000, "census": None}
    return summarize(blocks) | {"build": build, "sqnr_db": {INT8_PEERS[0]: 31.25}}


def test_the_best_peer_is_the_fastest_that_is_not_ours() -> None:
    found = entry(eager=8.0, **{"openvino fp32": 3.0, "onnxruntime fp32": 4.0, OURS: 2.0})
    assert (found["best_peer"], found["ratio"], found["speedup"]) == ("openvino fp32", 0.667, 4.0)
    assert found["ratio_ci95"] == [0.667, 0.667]
    assert found["p50_ms"][OURS] == 2.0  # type: ignore[index]


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
