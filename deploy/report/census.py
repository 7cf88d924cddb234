"""What every engine ran in which precision: a table for the page, and sentences.

Works on plain values, as ``report.json`` holds them; reports of before have no census.
"""

from typing import Any

from deploy.report.facts import Candidate, Report, list_rows
from deploy.report.markup import Markup, element, join, table
from deploy.report.wording import UNKNOWN, format_count, format_number

FLOAT_SHARE = 0.1
"""Share of the time from which a float remainder is called out."""

_HEADS = ("Candidate", "Precision", "Layers", "MACs", "Of MACs", "Time ms", "Of time")
_REMAINDER_HEADS = ("Candidate", "Where", "Operators", "Precision", "Time ms", "Of time")
_PLACES = 3


def describe_census(report: Report) -> Markup | None:
    """One row for each precision of each candidate, and what stays in more bits."""
    rows: list[list[object]] = []
    places: list[list[object]] = []
    sentences = []
    missing: dict[str, list[str]] = {}  # by reason, which several share
    for candidate, _ in list_rows(report):
        stray = describe_stray(candidate)
        sentences += [] if stray is None else [element("p", stray)]
        census = candidate.get("census")
        if census is None:
            continue
        name = element("span", candidate["name"], class_="name")
        if census["status"] != "ok":
            missing.setdefault(_say_missing(census), []).append(candidate["name"])
            continue
        rows.extend(_rows(name, census))
        places.extend([name, *_place(item)] for item in census["remainder"])
        told = (describe_float(candidate), describe_cpu(candidate))
        sentences += [element("p", sentence) for sentence in told if sentence is not None]
    sentences += [element("p", f"{', '.join(n)}: {why}") for why, n in missing.items()]
    if not rows and not sentences:
        return None
    folded = element(
        "details",
        element("summary", f"What stays in more bits: {len(places)}"),
        table(_REMAINDER_HEADS, places, texts=4),
    )
    return join(table(_HEADS, rows, texts=2), *sentences, folded if places else None)


def describe_float(candidate: Candidate) -> str | None:
    """A sentence on what stays in more bits; None where that is no large share of the time."""
    census = candidate.get("census")
    if census is None or census["status"] != "ok":
        return None
    places = [item for item in census["remainder"] if not item.get("on_cpu")]
    share = sum(item["share_of_time"] for item in places)
    if share < FLOAT_SHARE:
        return None
    kinds = ", ".join(dict.fromkeys(item["precision"] for item in places))
    where = _list_places(places)
    return f"{candidate['name']} spends {_percent(share)} of its time in {kinds}: {where}."


def describe_cpu(candidate: Candidate) -> str | None:
    """A sentence on what an engine for the GPU leaves to the CPU; None where that is nothing."""
    census = candidate.get("census")
    if census is None or census["status"] != "ok":
        return None
    places = [item for item in census["remainder"] if item.get("on_cpu")]
    if not places:
        return None
    operators = ", ".join(dict.fromkeys(name for item in places for name in item["operators"]))
    share = _percent(sum(item["share_of_time"] for item in places))
    return (
        f"{candidate['name']} has no kernel on the GPU for {operators}, which the CPU runs: "
        f"{share} of its time, copies not counted, in {_list_places(places)}."
    )


def _list_places(places: list[dict[str, Any]]) -> str:
    """The slowest by name, each with its share."""
    worst = places[:_PLACES]
    where = ", ".join(f"{item['where']} {_percent(item['share_of_time'])}" for item in worst)
    rest = len(places) - len(worst)
    return f"{where}{f' and {rest} more places' if rest > 0 else ''}"


def describe_stray(candidate: Candidate) -> str | None:
    """A sentence on layers in float32 between int8 layers; None where there are none."""
    layers = candidate.get("stray_float") or []
    if not layers:
        return None
    what = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
    rest = len(layers) - _PLACES
    more = f" and {rest} more" if rest > 0 else ""
    return (
        f"{candidate['name']} keeps {what} in float32 between int8 layers, which costs two "
        f"conversions each: {', '.join(layers[:_PLACES])}{more}."
    )


def stray_sentences(report: Report) -> list[str]:
    """`describe_stray` of every candidate that has such layers."""
    found = (describe_stray(candidate) for candidate, _ in list_rows(report))
    return [sentence for sentence in found if sentence is not None]


def _rows(name: Markup, census: dict[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = [
        [
            name,
            share["precision"],
            share["layers"],
            format_count(share["macs"]),
            _percent(share["share_of_macs"]),
            format_number(share["time_ms"]),
            _percent(share["share_of_time"]),
        ]
        for share in census["precisions"]
    ]
    if census["reformats"]:
        time, share = census["reformat_ms"], census["reformat_share_of_time"]
        shown = (format_number(time), _percent(share))
        rows.append([name, "reformats", census["reformats"], UNKNOWN, UNKNOWN, *shown])
    return rows


def _place(item: dict[str, Any]) -> list[object]:
    time, share = format_number(item["time_ms"]), _percent(item["share_of_time"])
    precision = f"{item['precision']}, on the CPU" if item.get("on_cpu") else item["precision"]
    return [item["where"], ", ".join(item["operators"]), precision, time, share]


def _say_missing(census: dict[str, Any]) -> str:
    return f"{census['status'].replace('_', ' ')}: {census['reason']}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
