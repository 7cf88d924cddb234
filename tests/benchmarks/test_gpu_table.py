"""The numbers and the table of `benchmarks/gpu.py`, from times that are written down."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_table import (  # noqa: E402
    BASELINE,
    HEADS,
    compare,
    describe_states,
    make_table,
    measure_parity,
    state_json,
    summarize,
)

from export.gpu import GpuState  # noqa: E402

BUSY = GpuState(1410, 1980, 2619, 312.5, 64, ("power cap",))
IDLE = GpuState(300, 1980, 2619, None, 41, ("idle",))


def blocks(milliseconds: float) -> np.ndarray:
    """[rounds, blocks] in seconds, 1% around a median."""
    return milliseconds / 1e3 * (1 + 0.01 * np.linspace(-1, 1, 10).reshape(5, 2))


def entry() -> dict:
    """A network at two batch sizes: an engine that wins, and a peer that has no memory at 64."""
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((4, 10))
    eager = (exact + 1e-6 * rng.standard_normal(exact.shape)).astype(np.float32)
    ours = (exact + 1e-2 * rng.standard_normal(exact.shape)).astype(np.float32)
    compute = {BASELINE: blocks(8.0), "tensorrt fp16": blocks(2.0), "eager TF32": blocks(6.0)}
    wall = {BASELINE: blocks(9.0), "tensorrt fp16": blocks(3.0), "eager TF32": blocks(7.0)}
    late = {name: 16 * values for name, values in compute.items() if name != "eager TF32"}
    answers = {BASELINE: eager, "tensorrt fp16": ours, "eager TF32": eager}
    return {
        "parity": measure_parity(exact, answers),
        "batches": {
            "1": summarize(compute, wall, batch=1, seed=0),
            "64": summarize(late, wall, batch=64, seed=0),
        },
        "clocks": {"tensorrt fp16": "events"},
        "failed": {"tensorrt_rtx": "not run: it has no target 'SM90'"},
        "states": [state_json("before batch 1", IDLE), state_json("after batch 1", BUSY)],
    }


def test_sqnr_and_relative_error_are_those_of_the_definition() -> None:
    exact = np.array([3.0, -4.0])
    found = compare(exact, np.array([3.0, -3.6], np.float32))
    assert found["sqnr_db"] == pytest.approx(10 * np.log10(25 / 0.16), abs=1e-4)
    assert found["max_rel"] == pytest.approx(0.1)


def test_every_engine_is_held_against_float64_and_against_eager() -> None:
    parity = entry()["parity"]
    assert parity[BASELINE]["sqnr_db_float64"] > 110
    assert parity["tensorrt fp16"]["sqnr_db_float64"] == pytest.approx(40, abs=3)
    assert parity["tensorrt fp16"]["sqnr_db_eager"] == pytest.approx(40, abs=3)
    assert parity["eager TF32"]["sqnr_db_eager"] is None
    assert parity["eager TF32"]["max_rel_eager"] == 0
    assert compare(np.ones(2), np.array([1, np.nan])) == {"sqnr_db": None, "max_rel": None}


def test_medians_throughput_and_speed_up_follow_from_the_blocks() -> None:
    ours = entry()["batches"]["64"]["tensorrt fp16"]
    assert ours["compute_ms"] == pytest.approx(32)
    assert ours["images_per_s"] == pytest.approx(64 / 0.032)
    assert ours["compute_speedup"] == pytest.approx(4)
    low, high = ours["compute_speedup_ci95"]
    assert low <= 4 <= high
    assert entry()["batches"]["1"]["tensorrt fp16"]["wall_speedup"] == pytest.approx(3)


def test_the_table_survives_json_and_has_a_row_an_engine() -> None:
    result = {"networks": {"resnet50": json.loads(json.dumps(entry(), allow_nan=False))}}
    lines = make_table(result).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert rows[0] == list(HEADS)
    cells = dict(zip(HEADS, next(row for row in rows if row[1] == "tensorrt fp16"), strict=True))
    assert cells["batch"] == "1"
    assert (cells["compute, ms"], cells["with copies, ms"]) == ("2.000", "3.000")
    assert cells["against eager fp32"].startswith("4.00x (")
    assert cells["most images/s"] == "2,000 at 64"
    peer = dict(zip(HEADS, next(row for row in rows if row[1] == "eager TF32"), strict=True))
    assert (peer["SQNR eager, dB"], peer["most images/s"]) == ("identical", "167 at 1")
    assert "resnet50: tensorrt_rtx: not run: it has no target 'SM90'" in lines


def test_a_network_on_which_nothing_ran_still_has_its_reasons() -> None:
    nothing = {
        "parity": {},
        "batches": {"1": {}},
        "clocks": {},
        "failed": {"tensorrt": "not run: tensorrt is not installed"},
        "states": [],
    }
    table = make_table({"networks": {"resnet50": nothing}})
    assert "resnet50: tensorrt: not run: tensorrt is not installed" in table
    assert table.count("\n| ") == 1  # the heads' rule alone


def test_what_held_the_clocks_back_is_said() -> None:
    (line,) = describe_states([state_json("before", IDLE), state_json("after", BUSY)])
    assert line == (
        "300 to 1410 MHz, 312.5 to 312.5 W, 41 to 64 °C (at most 1980 MHz); clocks were held back "
        "by power cap"
    )
    (line,) = describe_states([state_json("before", IDLE)])
    assert line.endswith("held back by nothing")
    assert "neither clocks" in describe_states([state_json("before", None)])[0]


def test_one_line_for_a_product_that_refuses_the_gpu_in_every_precision() -> None:
    from gpu_run import join_failures

    failed = {f"tensorrt_rtx {kind}": "no target 'SM90'" for kind in ("tf32", "fp16")}
    failed |= {"tensorrt fp16": "a", "tensorrt int8": "b"}
    join_failures(failed)
    assert failed == {
        "tensorrt_rtx": "no target 'SM90'",
        "tensorrt fp16": "a",
        "tensorrt int8": "b",
    }


def test_without_a_gpu_it_says_so_in_one_line_and_succeeds(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--short"]
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "not_run: no NVIDIA GPU\n")
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_an_earlier_run_is_printed_again(tmp_path: Path) -> None:
    from gpu import main

    path = tmp_path / "gpu.json"
    path.write_text(json.dumps({"networks": {"resnet50": entry()}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gpu.py", "--table", str(path)])
        assert main() == 0
