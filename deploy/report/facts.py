"""What the terminal, the page and the comparison all ask of a report."""

import math
from dataclasses import dataclass
from typing import Any

from export.errors import BundleError

Report = dict[str, Any]
Candidate = dict[str, Any]

NOISY_CONTROL = 0.05
WIDE = 2.0
"""Upper over lower end of an interval that says little."""

_ORDER = ("baseline", "winner", "ok", "rejected", "failed", "not run")


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one engine on the labelled samples, as a fraction, with its 95% interval.

    `drop` is what it loses against the reference, paired sample by sample. `f1` is that table of
    the report, of both; None where a sample has one label.
    """

    value: float
    ci95: tuple[float, float]
    drop: float
    drop_ci95: tuple[float, float]
    samples: int
    f1: dict[str, Any] | None = None


def is_noisy(ratio: float, ci95: tuple[float, float]) -> bool:
    """Whether an A/A control says that the times of a run cannot be trusted.

    The baseline against itself is off by more than a twentieth, or anyone may guess by how much.
    """
    low, high = ci95
    return abs(ratio - 1) > NOISY_CONTROL or low <= 0 or high / low > WIDE


def describe_openings(report: Report) -> str:
    """How often the engines were opened anew, to follow a list; empty: once."""
    openings = report["measurement"].get("openings", 1)
    return f"; all were closed and opened {openings} times meanwhile" if openings > 1 else ""


def describe_luck(report: Report) -> str:
    """What intervals have beside the rounds; reports of earlier versions opened engines once."""
    if report["measurement"].get("openings", 1) > 1:
        return "what the openings of one engine differ by"
    return "the A/A control where they are of speed-ups"


def winner_of(report: Report) -> Candidate:
    """The candidate that ships; the baseline where nothing beat it.

    Raises:
        BundleError: `winner` names no candidate.
    """
    baseline: Candidate = report["baseline"]
    if report["winner"] in ("torch", baseline["name"]):
        return baseline
    for candidate in report["candidates"]:
        if candidate["name"] == report["winner"]:
            return dict(candidate)
    raise BundleError(
        f"the report names the winner {report['winner']!r} but has no such candidate. "
        "Build the bundle again."
    )


def baseline_wins(report: Report) -> bool:
    """Whether nothing beat the user's own model."""
    return bool(winner_of(report)["name"] == report["baseline"]["name"])


def list_rows(report: Report) -> list[tuple[Candidate, str]]:
    """Every candidate with its standing: baseline, winner, the rest by status and then by time."""
    baseline, winner = report["baseline"], winner_of(report)["name"]
    others = [c for c in report["candidates"] if c["name"] != baseline["name"]]
    rows = [(c, "winner" if c["name"] == winner else c["status"].replace("_", " ")) for c in others]

    def rank(row: tuple[Candidate, str]) -> tuple[int, float, str]:
        candidate, standing = row
        latency = candidate["latency"]
        place = _ORDER.index(standing) if standing in _ORDER else len(_ORDER)
        return place, latency["p50_ms"] if latency else math.inf, candidate["name"]

    return [(baseline, "baseline"), *sorted(rows, key=rank)]


def accuracy_of(report: Report, candidate: Candidate) -> Accuracy | None:
    """The accuracy of `candidate`; None without labels. The baseline's is that of the reference."""
    if candidate["name"] != report["baseline"]["name"]:
        found = _accuracy_table(candidate)
        if found is None:
            return None
        return Accuracy(
            found["candidate"],
            _pair(found["candidate_ci95"]),
            found["drop"],
            _pair(found["drop_ci95"]),
            found["samples"],
            found.get("f1"),
        )
    for row in (report["baseline"], *report["candidates"]):
        found = _accuracy_table(row)
        if found is not None:
            ci95 = _pair(found["reference_ci95"])
            samples, f1 = found["samples"], found.get("f1")
            return Accuracy(found["reference"], ci95, 0.0, (0.0, 0.0), samples, f1)
    return None


def sqnr_of(report: Report, candidate: Candidate) -> float | None:
    """The lowest SQNR over the outputs in dB; infinite where identical; None where unknown."""
    if candidate["name"] == report["baseline"]["name"]:
        return math.inf
    parity = candidate["parity"]
    if not parity or not parity["outputs"]:
        return None
    values = [output_sqnr(output) for output in parity["outputs"]]
    known = [value for value in values if value is not None]
    return min(known) if len(known) == len(values) else None


def output_sqnr(output: dict[str, Any]) -> float | None:
    """SQNR of one output in dB; JSON has no infinity, so null with no error stands for it."""
    if output["sqnr_db"] is not None:
        return float(output["sqnr_db"])
    return math.inf if output["max_abs"] == 0 else None


def top1_of(candidate: Candidate) -> float | None:
    """The lowest top-1 agreement over the outputs that have one."""
    parity = candidate["parity"]
    values = [o["top1_agreement"] for o in parity["outputs"]] if parity else []
    return min((value for value in values if value is not None), default=None)


def _accuracy_table(candidate: Candidate) -> dict[str, Any] | None:
    parity = candidate["parity"]
    return parity["accuracy"] if parity else None


def _pair(interval: Any) -> tuple[float, float]:
    low, high = interval
    return float(low), float(high)
