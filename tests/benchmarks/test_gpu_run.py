"""A run of `benchmarks/gpu.py` keeps what it has, whatever becomes of single peers. No GPU is used:
the peers are those of `gpu_stand_in.py`."""

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(Path(__file__).parent)]

import gpu  # noqa: E402
from gpu_run import Run, Settings, make_entry, measure_network  # noqa: E402
from gpu_table import BASELINE, make_table  # noqa: E402

from export.errors import EngineError  # noqa: E402
from export.gpu import GpuFacts  # noqa: E402

H100 = GpuFacts("NVIDIA H100", "580.159", "9.0", "13.0")
SETTINGS = Settings(
    networks=("net",),
    peers=(BASELINE, "eager fp32 (control)", "not installed", "no memory", "dies", "hangs"),
    batches=(1, 2),
    rounds=3,
    patience=8,
)


@pytest.fixture(autouse=True)
def _no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu_run.is_installed", lambda name: name == "tensorrt_rtx")


def make_run(folder: Path, settings: Settings, **fields: Any) -> tuple[Run, list[str]]:
    """A run, and what is saved of it."""
    saved: list[str] = []
    entry = make_entry()

    def save() -> None:
        saved.append(json.dumps(entry, allow_nan=False))

    return Run("net", folder, settings, entry, save, module="gpu_stand_in", **fields), saved


@pytest.mark.thorough
def test_peers_that_fail_are_lines_and_the_rest_is_measured_and_saved_batch_by_batch(
    tmp_path: Path,
) -> None:
    run, saved = make_run(tmp_path, SETTINGS)
    measure_network(run, H100)
    assert set(run.entry["batches"]["1"]) == {*SETTINGS.peers} - {"not installed", "hangs"}
    assert set(run.entry["batches"]["2"]) == {BASELINE, "eager fp32 (control)"}
    assert run.failed["not installed"].endswith("it is not there")
    assert "did not answer within" in run.failed["hangs"]
    assert "out of memory" in run.failed["no memory, batch 2"]
    assert "exit code 7" in run.failed["dies, batch 2"]
    assert run.failed["tensorrt_rtx"] == "not run: TensorRT for RTX has no target SM90"
    first, second, third, _ = (json.loads(text) for text in saved)
    assert first["parity"]
    assert not first["batches"]
    assert list(second["batches"]) == ["1"]
    assert list(third["batches"]) == ["1", "2"]
    for entry in (first, second, third):
        table = make_table({"networks": {"net": entry}})
        assert f"| net | {BASELINE} |" in table
        assert "net: not installed: not run: " in table


def test_where_the_time_is_over_no_batch_is_begun_and_the_answers_are_kept(tmp_path: Path) -> None:
    settings = replace(SETTINGS, peers=(BASELINE,))
    run, saved = make_run(tmp_path, settings, until=time.monotonic())
    measure_network(run, H100)
    assert run.failed["batch 1 and above"] == "the time that was given is over"
    assert run.entry["batches"] == {}
    assert json.loads(saved[-1])["parity"][BASELINE]["max_rel_float64"] == 0


def test_json_and_table_are_written_whole_and_a_network_that_cannot_be_made_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_it(*values: Any) -> Run:
        return Run(*values, module="gpu_stand_in")

    monkeypatch.setattr(gpu, "Run", make_it)
    settings = replace(SETTINGS, networks=("none", "net"), peers=(BASELINE,), minutes=math.inf)
    result = gpu.describe_run(H100, settings)
    gpu.measure_all(result, H100, settings, tmp_path / "gpu.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert list(written["networks"]["net"]["batches"]) == ["1", "2"]
    table = (tmp_path / "gpu.md").read_text()
    assert "none: all: not run: The engine failed: ValueError: there is no such network" in table
    assert f"| net | {BASELINE} | identical |" in table
    assert "NVIDIA H100 (compute capability 9.0" in table


def test_without_its_network_nothing_is_measured(tmp_path: Path) -> None:
    run, saved = make_run(tmp_path, SETTINGS)
    run.network = "none"
    with pytest.raises(EngineError, match="no such network"):
        measure_network(run, H100)
    assert saved == []
