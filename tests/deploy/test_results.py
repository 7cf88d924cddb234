"""Rows of the report are valid JSON by its schema, whatever was measured."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import deploy.report
from deploy.judging.accuracy import Accuracy
from deploy.judging.gates import Verdict
from deploy.judging.output_parity import OutputParity
from deploy.judging.parity import ParityReport
from deploy.measuring.latency import EngineLatency, LatencyReport
from deploy.measuring.luck import Luck
from deploy.results import (
    CandidateResult,
    candidate_json,
    control_json,
    decibels_json,
    gates_json,
    int8_holds,
    spec_json,
)
from export.artifacts import BATCH, TensorSpec

SCHEMA = json.loads((Path(deploy.report.__file__).parent / "schema.json").read_text())
OUTPUT = OutputParity(
    name="y",
    max_abs=0.1,
    mean_abs=0.01,
    relative_to_range=0.05,
    cosine=0.99,
    sqnr_db=35.5,
    top1_agreement=0.99,
    error_eager=0.02,
    error_float64=0.02,
    noise_float64=1e-7,
    finite=True,
)
ACCURACY = Accuracy(500, 0.9, 0.89, 0.01, (0.0, 0.02), (0.87, 0.92), (0.86, 0.91), 0.1)
PARITY = ParityReport((OUTPUT,), {"y": ACCURACY}, 500, (1, 2, 3, 32), 60.0)
LATENCY = EngineLatency(
    samples=2000,
    first=0.02,
    p50=0.002,
    p50_ci95=(0.0019, 0.0021),
    p90=0.003,
    p90_ci95=(0.0029, 0.0031),
    p99=0.004,
    p99_ci95=(0.0039, 0.0041),
    speedup=2.5,
    speedup_ci95=(2.4, 2.6),
    block_medians=np.ones((2, 5, 2)),
    luck=Luck(0.0, 2, 2),
)
RESULT = CandidateResult(
    name="onnxruntime-int8",
    engine="onnxruntime",
    precision="int8",
    status="ok",
    size_bytes=10,
    parity=PARITY,
    verdict=Verdict(True, "SQNR at least 20 dB"),
    latency=LATENCY,
)


def row(result: CandidateResult, *, kind: Any = "labelled", peak: float | None = 10.0) -> Any:
    value = candidate_json(result, kind=kind, macs=4_000_000, peaks={"int8": peak})
    validator = jsonschema.Draft202012Validator({**SCHEMA["$defs"]["candidate"], **_defs()})
    validator.validate(value)
    return json.loads(json.dumps(value, allow_nan=False))


def _defs() -> dict[str, Any]:
    return {"$defs": SCHEMA["$defs"]}


def test_full_row_is_in_the_units_of_the_report() -> None:
    found = row(RESULT)
    latency, parity = found["latency"], found["parity"]
    assert latency["p50_ms"] == pytest.approx(2)
    assert latency["p50_ci95"] == pytest.approx([1.9, 2.1])
    assert latency["first_ms"] == pytest.approx(20)
    assert latency["p99_ci95"] == pytest.approx([3.9, 4.1])
    assert latency["speedup_ci95"] == [2.4, 2.6]
    assert latency["gmacs_per_s"] == pytest.approx(2.0)  # 4e6 MACs in 2 ms
    assert latency["peak_fraction"] == pytest.approx(0.2)
    assert (parity["passed"], parity["data"], parity["samples"]) == (True, "evaluation", 500)
    assert parity["batches_checked"] == [1, 2, 3, 32]
    assert parity["outputs"][0]["sqnr_db"] == 35.5
    assert parity["accuracy"]["drop_ci95"] == [0.0, 0.02]


@pytest.mark.parametrize(
    "changes", [{"engine": "tensorrt", "name": "tensorrt-int8"}, {"variant": "cuda"}]
)
def test_what_runs_on_a_gpu_is_not_held_against_the_peak_of_the_cpu(
    changes: dict[str, str],
) -> None:
    assert row(replace(RESULT, **changes))["latency"]["peak_fraction"] is None


def test_a_candidate_that_never_ran_is_a_valid_row() -> None:
    result = CandidateResult("tensorrt_rtx-int8", "tensorrt_rtx", "int8", "not_run", "no GPU")
    found = row(result)
    assert (found["parity"], found["latency"], found["size_bytes"]) == (None, None, None)
    assert found["reason"] == "no GPU"


@pytest.mark.parametrize(
    ("decibels", "written"),
    [(math.inf, None), (-math.inf, -300.0), (math.nan, -300.0), (12.5, 12.5)],
)
def test_only_identical_outputs_have_no_sqnr(decibels: float, written: float | None) -> None:
    parity = replace(PARITY, outputs=(replace(OUTPUT, sqnr_db=decibels),))
    found = row(replace(RESULT, parity=parity))
    assert found["parity"]["outputs"][0]["sqnr_db"] == written


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["max_abs", "mean_abs", "cosine", "error_float64"])
def test_what_is_no_number_is_null(name: str, value: float) -> None:
    parity = replace(PARITY, outputs=(replace(OUTPUT, **{name: value}),))
    assert row(replace(RESULT, parity=parity))["parity"]["outputs"][0][name] is None


def test_an_accuracy_that_judges_nothing_is_null() -> None:
    parity = replace(
        PARITY, accuracies={"y": replace(ACCURACY, chance=0.88)}
    )  # within reference_ci95
    assert row(replace(RESULT, parity=parity))["parity"]["accuracy"] is None
    assert row(RESULT)["parity"]["accuracy"]["reference"] == 0.9


def test_missing_facts_are_null() -> None:
    parity = replace(
        PARITY,
        accuracies={},
        outputs=(replace(OUTPUT, top1_agreement=None, error_float64=None, noise_float64=None),),
    )
    latency = replace(LATENCY, p99=None, p99_ci95=None)
    found = row(replace(RESULT, parity=parity, latency=latency), kind="synthetic", peak=None)
    assert found["parity"]["data"] == "synthetic"
    assert found["parity"]["accuracy"] is None
    assert found["latency"]["p99_ms"] is None
    assert found["latency"]["peak_fraction"] is None


@pytest.mark.parametrize("passed", [True, False])
def test_parity_holds_by_its_verdict_and_not_by_the_status(passed: bool) -> None:
    result = replace(RESULT, verdict=Verdict(passed, "gate"), status="rejected", reason="slower")
    assert result.parity_holds is passed
    assert result.ships is passed
    assert row(result)["parity"]["passed"] is passed


def test_without_a_verdict_nothing_holds_or_ships() -> None:
    result = replace(RESULT, verdict=None)
    assert not result.parity_holds
    assert not result.ships


@pytest.mark.parametrize(
    ("status", "file", "ships"),
    [
        ("not_run", Path("engine"), True),
        ("not_run", None, False),
        ("failed", Path("engine"), False),
        ("rejected", Path("engine"), False),
    ],
)
def test_an_unjudged_file_ships_only_where_it_awaits_its_hardware(
    status: Any, file: Path | None, ships: bool
) -> None:
    result = CandidateResult("a", "tensorrt_rtx", "int8", status, "why", file=file)
    assert result.ships is ships


def test_gates_are_those_that_were_applied() -> None:
    assert gates_json(0.01, None) == {
        "max_drop": 0.01,
        "min_sqnr_db": {"tf32": 40.0, "fp16": 40.0, "bf16": 25.0}
        | dict.fromkeys(("int8", "int4", "mixed"), 20.0),
    }
    assert set(gates_json(0.02, 33.0)["min_sqnr_db"].values()) == {33.0}


def test_specs_are_plain_values() -> None:
    specs = (TensorSpec("x", (BATCH, 3), "float32"),)
    assert spec_json(specs) == [{"name": "x", "shape": ["batch", 3], "dtype": "float32"}]


def test_the_control_is_a_ratio_with_its_interval() -> None:
    report = LatencyReport({}, {}, 1.01, (0.99, 1.03), 2, 10, 2, 20.0)
    assert control_json(report) == {"ratio": 1.01, "ci95": [0.99, 1.03]}


@pytest.mark.parametrize(
    ("value", "told"), [(31.5, 31.5), (math.inf, None), (-math.inf, -300.0), (None, None)]
)
def test_decibels_are_numbers_that_json_has(value: float | None, told: float | None) -> None:
    assert decibels_json(value) == told


def test_int8_holds_only_where_it_was_judged_and_passed_everywhere() -> None:
    passed = replace(RESULT, parity=PARITY, verdict=Verdict(True, "gate"))
    failed = replace(RESULT, parity=PARITY, verdict=Verdict(False, "gate"))
    unbuilt = replace(RESULT, parity=None, verdict=None)
    other = replace(failed, precision="fp32")
    assert int8_holds([passed, other, unbuilt])
    assert not int8_holds([passed, failed])
    assert not int8_holds([unbuilt, other])
    assert not int8_holds([])
