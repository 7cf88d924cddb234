"""What `deploy finish` found, as a section of the page."""

from typing import Any

from deploy.report.facts import Report, describe_fidelity
from deploy.report.markup import Markup, element, join, table
from deploy.report.wording import (
    UNKNOWN,
    format_number,
    format_ratio,
    format_time,
)

_HEADS = ("Candidate", "Status", "p50 ms", "Speed-up", "SQNR", "Reason")


def finish_sentence(report: Report) -> str | None:
    """Which engine is served since the bundle was finished elsewhere; None where it was not."""
    finish = report.get("finish")
    if finish is None:
        return None
    machine, winner = finish["machine"], finish["winner"]
    where = f"Finished on {machine['gpu'] or machine['cpu']}, {format_time(finish['date'])}: "
    if winner == finish["winner_before"]:
        return f"{where}{winner} stays the winner."
    times = {row["name"]: row["latency"] for row in finish["candidates"]}
    latency = times.get(winner)
    speed = (
        ""
        if latency is None
        else (f", {format_ratio(latency['speedup'])}x as fast as {finish['baseline']} there")
    )
    return f"{where}{winner} is the winner now{speed}."


def describe_finish(report: Report) -> Markup | None:
    """What was judged on another machine after the build; None where nothing was."""
    finish = report.get("finish")
    if finish is None:
        return None
    machine = finish["machine"]
    where = machine["gpu"] or machine["cpu"]
    sentence = (
        f"On {where}, {format_time(finish['date'])}, batch {finish['batch']}, measured against "
        f"{finish['baseline']}. Winner: {finish['winner']}."
    )
    rows = [_row(report, candidate) for candidate in finish["candidates"]]
    return join(element("p", sentence), table(_HEADS, rows, texts=2, sentences=1))


def _row(report: Report, candidate: dict[str, Any]) -> list[object]:
    latency = candidate["latency"]
    return [
        element("span", candidate["name"], class_="name"),
        candidate["status"].replace("_", " "),
        UNKNOWN if latency is None else format_number(latency["p50_ms"]),
        UNKNOWN if latency is None else f"{format_ratio(latency['speedup'])}×",
        describe_fidelity(report, candidate),
        candidate["reason"] or "",
    ]
