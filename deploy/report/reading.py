"""Reading ``report.json`` back, and the schema it is written to."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from deploy.report.facts import Report, winner_of
from export.errors import BundleError

SCHEMA_VERSION = 1

_NUMBER, _TEXT, _TABLE = (int, float), (str,), (dict,)
_OPTIONAL_NUMBER, _OPTIONAL_TEXT = (int, float, type(None)), (str, type(None))
_OPTIONAL_TABLE = (dict, type(None))
_BEYOND = 1e300
_PAIR = (list,)  # of two numbers, where its key ends in ci95

_REPORT = {
    "created": _TEXT,
    "deploykit": _TEXT,
    "model": _TABLE,
    "machine": _TABLE,
    "data": _TABLE,
    "gates": _TABLE,
    "measurement": _TABLE,
    "control": _OPTIONAL_TABLE,
    "baseline": _TABLE,
    "candidates": (list,),
    "winner": _TEXT,
    "verdict": _TEXT,
    "warnings": (list,),
    "stages": (list,),
}
_SECTIONS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "model": {
        "name": _TEXT,
        "sha256": _OPTIONAL_TEXT,
        "form": _TEXT,
        "parameters": _OPTIONAL_NUMBER,
        "macs": _OPTIONAL_NUMBER,
        "inputs": (list,),
        "outputs": (list,),
        "fused": (list,),
        "skipped": (list,),
        "attempts": (list,),
    },
    "machine": {
        "cpu": _OPTIONAL_TEXT,
        "gpu": _OPTIONAL_TEXT,
        "threads": _OPTIONAL_NUMBER,
        "versions": _TABLE,
        "peak_gmacs": _TABLE,
    },
    "data": {
        "source": _OPTIONAL_TEXT,
        "kind": _TEXT,
        "evaluation_samples": _NUMBER,
        "classes_of": _OPTIONAL_TEXT,
    },
    "gates": {"max_drop": _OPTIONAL_NUMBER, "min_sqnr_db": _TABLE},
    "measurement": {"batch": _NUMBER, "threads": _NUMBER, "seconds": _NUMBER},
}
_CANDIDATE = {
    "name": _TEXT,
    "engine": _TEXT,
    "precision": _TEXT,
    "status": _TEXT,
    "reason": _OPTIONAL_TEXT,
    "parity": _OPTIONAL_TABLE,
    "latency": _OPTIONAL_TABLE,
    "size_bytes": _OPTIONAL_NUMBER,
}
_LATENCY = {"p50_ms": _NUMBER, "p50_ci95": _PAIR, "speedup": _NUMBER, "speedup_ci95": _PAIR}
_PARITY = {
    "passed": (bool,),
    "gate": _TEXT,
    "batches_checked": (list,),
    "outputs": (list,),
    "accuracy": _OPTIONAL_TABLE,
}
_OUTPUT = {
    "name": _TEXT,
    "sqnr_db": _OPTIONAL_NUMBER,
    "max_abs": _OPTIONAL_NUMBER,
    "noise_float64": _OPTIONAL_NUMBER,
}
_ACCURACY = {
    "samples": _NUMBER,
    "reference": _NUMBER,
    "candidate": _NUMBER,
    "drop": _NUMBER,
    "drop_ci95": _PAIR,
    "reference_ci95": _PAIR,
    "candidate_ci95": _PAIR,
}
_ACCURACY_LATER = {"measure": _TEXT, "rmse": (list, type(None)), "f1": _OPTIONAL_TABLE}
"""What reports of earlier versions lack."""
_F1 = {
    "classes": _NUMBER,
    "reference": _NUMBER,
    "candidate": _NUMBER,
    "drop": _NUMBER,
    "drop_ci95": _PAIR,
}
_LABELLED = {"output": _TEXT, "axis": (int, type(None))}
_CONTROL = {"ratio": _NUMBER, "ci95": _PAIR}


def load_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of ``report.json`` at `SCHEMA_VERSION`."""
    text = resources.files("deploy.report").joinpath("schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def read_report(path: Path) -> Report:
    """The report at `path`, a ``report.json`` or the folder of a bundle.

    Raises:
        BundleError: there is no file, it is not JSON, it was written by a newer deploykit, or it is
            not a report; the message names the file and the key.
    """
    file = path / "report.json" if path.is_dir() else path
    report = _read_json(file)
    if not isinstance(report, dict) or "schema_version" not in report:
        raise BundleError(
            f"{file} is not a report of deploy: it has no schema_version. "
            "Name the folder of a bundle, or the report.json inside it."
        )
    version = report["schema_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{file}: schema_version is {version!r}, not a number. Build it again.")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema_version {version}; this deploykit reads up to {SCHEMA_VERSION}. "
            "Upgrade it: pip install --upgrade deploykit."
        )
    _check_report(report, file)
    return report


def _read_json(file: Path) -> Any:
    try:
        report = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        json.dumps(report, ensure_ascii=False).encode()  # half a surrogate pair is no text anywhere
        return report
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{file} does not exist. Name the folder of a bundle, or a report.json."
        ) from error
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}. Check the file.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, no JSON, numbers without end
        raise BundleError(
            f"{file} is not valid JSON: {error}. Name a report.json, or build the bundle again."
        ) from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _check_report(report: Report, file: Path) -> None:
    """Check the keys that reading, printing and comparing depend on."""
    _check_keys(report, _REPORT, "", file)
    for section, needed in _SECTIONS.items():
        _check_keys(report[section], needed, f"{section}.", file)
    if report["control"] is not None:
        _check_keys(report["control"], _CONTROL, "control.", file)
    _check_candidate(report["baseline"], "baseline", file)
    for index, spec in enumerate(report["model"]["outputs"]):
        _check_keys(spec, {"name": _TEXT, "dtype": _TEXT}, f"model.outputs[{index}].", file)
    if "labelled" in report["data"]:
        _check_keys(report["data"], {"labelled": (list,)}, "data.", file)
        for index, each in enumerate(report["data"]["labelled"]):
            _check_keys(each, _LABELLED, f"data.labelled[{index}].", file)
    for index, candidate in enumerate(report["candidates"]):
        _check_candidate(candidate, f"candidates[{index}]", file)
    try:
        winner_of(report)
    except BundleError as error:
        raise BundleError(f"{file}: {error}") from error


def _check_candidate(candidate: Any, where: str, file: Path) -> None:
    _check_keys(candidate, _CANDIDATE, f"{where}.", file)
    latency, parity = candidate["latency"], candidate["parity"]
    if latency is not None:
        _check_keys(latency, _LATENCY, f"{where}.latency.", file)
    if parity is None:
        return
    _check_keys(parity, _PARITY, f"{where}.parity.", file)
    sizes = {str(index): size for index, size in enumerate(parity["batches_checked"])}
    _check_keys(sizes, dict.fromkeys(sizes, (int,)), f"{where}.parity.batches_checked.", file)
    for index, output in enumerate(parity["outputs"]):
        _check_keys(output, _OUTPUT, f"{where}.parity.outputs[{index}].", file)
    if parity["accuracy"] is not None:
        _check_accuracy(parity["accuracy"], f"{where}.parity.accuracy.", file)
    if "accuracies" not in parity:
        return
    _check_keys(parity, {"accuracies": _TABLE}, f"{where}.parity.", file)
    for output, accuracy in parity["accuracies"].items():
        _check_accuracy(accuracy, f"{where}.parity.accuracies.{output}.", file)


def _check_accuracy(accuracy: Any, where: str, file: Path) -> None:
    _check_keys(accuracy, _ACCURACY, where, file)
    later = {key: kinds for key, kinds in _ACCURACY_LATER.items() if key in accuracy}
    _check_keys(accuracy, later, where, file)
    if accuracy.get("f1") is not None:
        _check_keys(accuracy["f1"], _F1, f"{where}f1.", file)


def _check_keys(table: Any, needed: Mapping[str, tuple[type, ...]], where: str, file: Path) -> None:
    fix = "The report is damaged or of another tool; build the bundle again."
    if not isinstance(table, dict):
        raise BundleError(f"{file}: {where.rstrip('.')} is not a table. {fix}")
    for key, kinds in needed.items():
        if key not in table:
            raise BundleError(f"{file}: {where}{key} is missing. {fix}")
        if not isinstance(table[key], kinds) or _is_beyond(table[key]):
            found = type(table[key]).__name__
            raise BundleError(f"{file}: {where}{key} has the wrong type ({found}). {fix}")
        pair = key.endswith("ci95") or (key == "rmse" and table[key] is not None)
        if pair and not _is_pair(table[key]):
            raise BundleError(f"{file}: {where}{key} is not two numbers. {fix}")


def _is_pair(value: Any) -> bool:
    return len(value) == 2 and all(
        isinstance(end, _NUMBER) and not _is_beyond(end) for end in value
    )


def _is_beyond(value: Any) -> bool:
    """Whether it is a number that no float holds; JSON may have any."""
    return isinstance(value, _NUMBER) and not abs(value) < _BEYOND
