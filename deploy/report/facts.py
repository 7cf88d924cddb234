"""What the terminal, the page and the comparison all ask of a report."""

import math
from dataclasses import dataclass
from typing import Any

from deploy.report.wording import UNKNOWN, format_decibel, format_percent
from export.errors import BundleError

Report = dict[str, Any]
Candidate = dict[str, Any]

NOISY_CONTROL = 0.05
TOO_NOISY = "The machine was too noisy to trust these times; measure again later."
WIDE = 2.0
"""Upper over lower end of an interval that says little."""

_ORDER = ("baseline", "winner", "ok", "rejected", "failed", "not run")


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one engine on the labelled samples, as a fraction, with its 95% interval.

    `drop` is what it loses against the reference, paired sample by sample. `f1` is that table of
    the report, of both; None where a sample has one label. `measure` is what it is called, which is
    R² of a regression; `rmse` its error in the unit of the targets.
    """

    value: float
    ci95: tuple[float, float]
    drop: float
    drop_ci95: tuple[float, float]
    samples: int
    f1: dict[str, Any] | None = None
    measure: str = "accuracy"
    rmse: float | None = None


def is_noisy(ratio: float, ci95: tuple[float, float]) -> bool:
    """Whether an A/A control says that the times of a run cannot be trusted.

    The baseline against itself is off by more than a twentieth, or anyone may guess by how much.
    """
    low, high = ci95
    return abs(ratio - 1) > NOISY_CONTROL or low <= 0 or high / low > WIDE


def describe_openings(report: Report) -> str:
    """How often the engines were opened anew, to follow a list; empty: once."""
    openings = report["measurement"].get("openings", 1)
    return f"; all were opened {openings} times, each for its share of them" if openings > 1 else ""


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


def accuracies_of(report: Report, candidate: Candidate) -> dict[str, Accuracy]:
    """By output the accuracy of `candidate`; none without labels.

    The baseline's are those of the reference.
    """
    if candidate["name"] != report["baseline"]["name"]:
        return {
            output: Accuracy(
                found["candidate"],
                _pair(found["candidate_ci95"]),
                found["drop"],
                _pair(found["drop_ci95"]),
                found["samples"],
                found.get("f1"),
                **_name_measure(found, 1),
            )
            for output, found in _accuracy_tables(report, candidate).items()
        }
    for row in (report["baseline"], *report["candidates"]):
        tables = _accuracy_tables(report, row)
        if tables:
            return {
                output: Accuracy(
                    found["reference"],
                    _pair(found["reference_ci95"]),
                    0.0,
                    (0.0, 0.0),
                    found["samples"],
                    found.get("f1"),
                    **_name_measure(found, 0),
                )
                for output, found in tables.items()
            }
    return {}


def accuracy_of(report: Report, candidate: Candidate) -> Accuracy | None:
    """The first of `accuracies_of`, which stands for all where there is room for one."""
    return next(iter(accuracies_of(report, candidate).values()), None)


def sqnr_of(report: Report, candidate: Candidate) -> float | None:
    """The lowest SQNR over the outputs in dB; infinite where identical; None where unknown.

    Of class numbers it is 10 log10 of all of them over those that differ: how far apart two of
    them lie means nothing.
    """
    if candidate["name"] == report["baseline"]["name"]:
        return math.inf
    worst = _worst_output(report, candidate["parity"])
    return None if worst is None else _nearness(report, worst)


def describe_fidelity(report: Report, candidate: Candidate) -> str:
    """Of the output that is farthest off its SQNR, or how many of its class numbers are equal."""
    if candidate["name"] == report["baseline"]["name"]:
        return format_decibel(math.inf)
    worst = _worst_output(report, candidate["parity"])
    return UNKNOWN if worst is None else describe_output(report, worst)


def describe_output(report: Report, output: dict[str, Any]) -> str:
    """The SQNR of one output, or how many of its class numbers are equal."""
    share = _equal_share(report, output)
    if share is None or share == 1:
        return format_decibel(_nearness(report, output))
    return f"{format_percent(share)} equal"


def _worst_output(report: Report, parity: dict[str, Any] | None) -> dict[str, Any] | None:
    """The output that is farthest off; None where that of one is not known."""
    near = [(_nearness(report, output), output) for output in parity["outputs"]] if parity else []
    known = [(value, output) for value, output in near if value is not None]
    if not near or len(known) < len(near):
        return None
    worst: dict[str, Any] = min(known, key=lambda pair: pair[0])[1]
    return worst


def _nearness(report: Report, output: dict[str, Any]) -> float | None:
    """In dB, see `sqnr_of`; JSON has no infinity, so null with no error stands for it."""
    share = _equal_share(report, output)
    if share is not None:
        return math.inf if share == 1 else -10 * math.log10(1 - share)
    if output["sqnr_db"] is not None:
        return float(output["sqnr_db"])
    return math.inf if output["max_abs"] == 0 else None


def _equal_share(report: Report, output: dict[str, Any]) -> float | None:
    """Of class numbers the share that is equal; None of amounts, which colour images are too.

    Only amounts have samples that fare worst.
    """
    dtypes = {spec["name"]: spec["dtype"] for spec in report["model"]["outputs"]}
    amounts = "float" in dtypes.get(output["name"], "float") or output.get("worst_samples")
    share = output.get("top1_agreement")
    if amounts or not isinstance(share, int | float) or not 0 <= share <= 1:
        return None
    return float(share)


def top1_of(report: Report, candidate: Candidate) -> float | None:
    """The top-1 agreement of the output that is taken for scores of classes, as the gates take it.

    That is the one that labels are held against, or the only one; None where it has none.
    """
    parity = candidate["parity"]
    outputs = parity["outputs"] if parity else []
    scores = [o for o in outputs if len(outputs) == 1 or o["name"] == report["data"]["classes_of"]]
    if not scores or _equal_share(report, scores[0]) is not None:
        return None
    share = scores[0]["top1_agreement"]
    return None if share is None else float(share)


def _accuracy_tables(report: Report, candidate: Candidate) -> dict[str, dict[str, Any]]:
    """By output; that of a lone one goes by the output that labels are held against."""
    parity = candidate["parity"]
    if parity is None or parity["accuracy"] is None:
        return {}
    return parity.get("accuracies") or {report["data"]["classes_of"] or "": parity["accuracy"]}


def _name_measure(found: dict[str, Any], which: int) -> dict[str, Any]:
    """Of the reference, 0, or the candidate, 1; what earlier reports lack is an accuracy."""
    rmse = found.get("rmse")
    return {
        "measure": found.get("measure", "accuracy"),
        "rmse": None if rmse is None else rmse[which],
    }


def name_measure(report: Report) -> str | None:
    """``accuracy``, or R² of a regression; None without labels that judge anything."""
    found = accuracy_of(report, report["baseline"])
    return None if found is None else found.measure


def _pair(interval: Any) -> tuple[float, float]:
    low, high = interval
    return float(low), float(high)
