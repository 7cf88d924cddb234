"""The schema accepts every sample and nothing that lacks or adds a key."""

import copy
import json
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from samples import SAMPLES, labelled_report

from deploy.report import SCHEMA_VERSION, load_schema


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = load_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", SAMPLES)
def test_accepts_every_sample_as_json(
    name: str, validator: jsonschema.Draft202012Validator
) -> None:
    validator.validate(json.loads(json.dumps(SAMPLES[name](), allow_nan=False)))


def test_every_sample_has_the_current_version() -> None:
    assert all(make()["schema_version"] == SCHEMA_VERSION for make in SAMPLES.values())


def _reason_missing(report: dict[str, Any]) -> None:
    next(c for c in report["candidates"] if c["status"] == "rejected")["reason"] = None


def _reason_empty(report: dict[str, Any]) -> None:
    next(c for c in report["candidates"] if c["status"] == "failed")["reason"] = ""


def _baseline_rejected(report: dict[str, Any]) -> None:
    report["baseline"].update(status="rejected", reason="slow")


MUTATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "rejected without a reason": _reason_missing,
    "failed with an empty reason": _reason_empty,
    "baseline not ok": _baseline_rejected,
    "unknown key at the top": lambda r: r.update(extra=1),
    "unknown key in a latency": lambda r: r["baseline"]["latency"].update(p95_ms=1.0),
    "unknown engine": lambda r: r["candidates"][0].update(engine="tvm"),
    "unknown precision": lambda r: r["candidates"][0].update(precision="int5"),
    "unknown status": lambda r: r["candidates"][0].update(status="lost"),
    "newer version": lambda r: r.update(schema_version=2),
    "interval of one number": lambda r: r["baseline"]["latency"].update(p50_ci95=[1.0]),
    "negative time": lambda r: r["baseline"]["latency"].update(p50_ms=-1.0),
    "accuracy above one": lambda r: r["candidates"][1]["parity"]["accuracy"].update(candidate=97),
    "time zone missing": lambda r: r.update(created="2026-11-24T03:00:00"),
    "hash too short": lambda r: r["model"].update(sha256="9f2c"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_rejects(name: str, validator: jsonschema.Draft202012Validator) -> None:
    report = labelled_report()
    MUTATIONS[name](report)
    assert not validator.is_valid(report)


OPTIONAL = {"census", "device"}
"""Keys that a report of before does not have."""


def _tables(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every key of every table in `value`, but for maps from names of one's own."""
    if path[-1:] in (("versions",), ("peak_gmacs",), ("min_sqnr_db",)):
        return []
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in ((*path, k), *_tables(v, (*path, k)))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in _tables(v, (*path, i))]
    return []


@pytest.mark.thorough
def test_rejects_a_report_without_any_one_of_its_keys(
    validator: jsonschema.Draft202012Validator,
) -> None:
    whole = labelled_report()
    for *parents, key in _tables(whole):
        if key in OPTIONAL:
            continue
        report = copy.deepcopy(whole)
        table: Any = report
        for parent in parents:
            table = table[parent]
        del table[key]
        assert not validator.is_valid(report), (*parents, key)
