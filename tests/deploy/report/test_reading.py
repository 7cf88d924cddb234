"""Reading a report back: what is not a report is refused with the file, the key and the fix."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import SAMPLES, labelled_report

from deploy.report import SCHEMA_VERSION, read_report
from export.errors import BundleError


def _write(folder: Path, report: Any) -> Path:
    file = folder / "report.json"
    file.write_text(json.dumps(report), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", SAMPLES)
def test_reads_back_what_was_written(name: str, tmp_path: Path) -> None:
    file = _write(tmp_path, SAMPLES[name]())
    assert read_report(file) == SAMPLES[name]() == read_report(tmp_path)


def test_missing_file_names_the_path_and_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"report\.json does not exist.*folder of a bundle"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"", b"\xff\xfe\x00", b"[" * 100_000),
        *(b"1" * 5000, b"NaN", b"[Infinity]", rb'["\ud800"]'),
    ],
)
def test_invalid_json_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(content)
    with pytest.raises(BundleError, match="not valid JSON"):
        read_report(file)


@pytest.mark.parametrize("content", [[], "report", 3, None, {}, {"model": "x"}])
def test_json_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a report of deploy"):
        read_report(_write(tmp_path, content))


def test_newer_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    report = labelled_report() | {"schema_version": SCHEMA_VERSION + 1}
    with pytest.raises(BundleError, match="pip install --upgrade deploykit"):
        read_report(_write(tmp_path, report))


@pytest.mark.parametrize("version", ["1", None, 0, True, 1.0])
def test_version_that_is_no_number_is_refused(version: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="schema_version is"):
        read_report(_write(tmp_path, labelled_report() | {"schema_version": version}))


DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "candidates": lambda r: r.pop("candidates"),
    "model.name": lambda r: r["model"].pop("name"),
    "baseline.latency.p50_ci95": lambda r: r["baseline"]["latency"].update(p50_ci95=[1.0]),
    "candidates[1].status": lambda r: r["candidates"][1].update(status=None),
    "candidates[0]": lambda r: r.update(candidates=["torch"]),
    "candidates[1].parity.accuracy.drop": lambda r: r["candidates"][1]["parity"]["accuracy"].pop(
        "drop"
    ),
    "candidates[1].parity.gate": lambda r: r["candidates"][1]["parity"].update(gate=[None]),
    "candidates[1].parity.batches_checked.0": lambda r: r["candidates"][1]["parity"].update(
        batches_checked=["fp32"]
    ),
    "candidates[1].latency.p50_ms": lambda r: r["candidates"][1]["latency"].update(p50_ms=10**400),
    "candidates[1].latency.p50_ci95": lambda r: r["candidates"][1]["latency"].update(
        p50_ci95=[1.0, 10**400]
    ),
    "control.ratio": lambda r: r["control"].pop("ratio"),
    "model.outputs[0].dtype": lambda r: r["model"]["outputs"][0].pop("dtype"),
    "model.outputs[0]": lambda r: r["model"].update(outputs=["logits"]),
    "winner": lambda r: r.update(winner="tvm-int8"),
}


@pytest.mark.parametrize("key", DAMAGE)
def test_damage_is_refused_by_its_key(key: str, tmp_path: Path) -> None:
    report = labelled_report()
    DAMAGE[key](report)
    with pytest.raises(BundleError) as caught:
        read_report(_write(tmp_path, report))
    assert key in str(caught.value)
    assert "report.json" in str(caught.value)
    assert "again" in str(caught.value)
