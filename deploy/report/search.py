"""The chart of what int8 costs and saves, block by block, and the rungs of recovery in words."""

from typing import Any

from deploy.report.facts import Report, name_measure
from deploy.report.markup import Markup, element, join, table
from deploy.report.wording import (
    UNKNOWN,
    as_heading,
    format_decibel,
    format_number,
    format_percent,
    format_seconds,
)
from deploy.search.rungs import OUT_OF_TIME

_RUNG_HEADS = ("Candidate", "Tried", "Gate", "SQNR", "Why it did not hold")


def describe_blocks(report: Report) -> Markup | None:
    """A row for each block: what int8 does to the outputs and what it saves; None without any."""
    found = report.get("search")
    if not found or not found["blocks"]:
        return None
    blocks = found["blocks"]
    noise = [_noise(block["sqnr_db"]) for block in blocks]
    savings = [_saving(block) for block in blocks]
    most_noise = max(noise) or 1.0
    most_saving = max((abs(saving) for saving in savings if saving is not None), default=0.0)
    rows = [
        _row(block, level / most_noise, saving, most_saving)
        for block, level, saving in zip(blocks, noise, savings, strict=True)
    ]
    caption = (
        "Upper bar: the share that a block in int8, alone, has in the noise of the outputs. "
        "Lower bar: the time that it saves"
    )
    if found["engine"]:
        caption += f" in {found['engine']} against {found['float_precision']}"
    caption += (
        ", only outlined where int8 is slower. Figures: SQNR of the output that suffers most, and "
        "microseconds. Noise is that of plain rounding on a few calibration samples; what "
        "candidates have corrected on top, such as biases, is not in it."
    )
    return element(
        "figure", element("div", *rows, class_="chart blocks"), element("figcaption", caption)
    )


def describe_recovery(report: Report) -> Markup | None:
    """How far recovery had to go, candidate by candidate; None where none was needed."""
    rows: list[list[object]] = []
    for candidate, rungs in _list_climbs(report):
        for rung in rungs:
            rows.append(
                [
                    candidate["name"],
                    rung["words"],
                    _describe_gate(rung),
                    _describe_rung(rung),
                    format_percent(rung["accuracy"]),
                    (rung["reason"] or UNKNOWN).removeprefix("not tried: "),
                ]
            )
    measure = as_heading(name_measure(report) or "accuracy")
    heads = (*_RUNG_HEADS[:-1], measure, _RUNG_HEADS[-1])
    return table(heads, rows, texts=3, sentences=1) if rows else None


def recovery_sentences(report: Report) -> list[str]:
    """How far recovery had to go where it helped, and what mixes keep out of int8."""
    sentences = []
    for candidate, rungs in _list_climbs(report):
        if rungs[-1]["passed"]:
            first, last = rungs[0], rungs[-1]
            fault = (first["reason"] or "").partition(". ")[0]  # what to do about it has been done
            why = "; ".join(part for part in (fault, _name_rung(first)) if part)
            sentences.append(
                f"{candidate['name']}: plain int8 did not hold the gate ({why}); "
                f"with {last['words']} it does ({_describe_rung(last)})."
            )
    for candidate in report["candidates"]:
        if kept := candidate.get("kept_float"):
            sentences.append(f"{candidate['name']} keeps {', '.join(kept)} out of int8.")
    return sentences


def _list_climbs(report: Report) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Candidates with their rungs; of an int8 that only a mix made hold, the mix alone."""
    found = [(c, rungs) for c in report["candidates"] if (rungs := c.get("recovery"))]
    mixes = [rungs for candidate, rungs in found if candidate["precision"] == "mixed"]
    return [(c, rungs) for c, rungs in found if c["precision"] == "mixed" or rungs not in mixes]


def _describe_gate(rung: dict[str, Any]) -> str:
    if rung["reason"] == OUT_OF_TIME:
        return "not tried"
    return "holds" if rung["passed"] else "does not hold"


def _describe_rung(rung: dict[str, Any]) -> str:
    """The SQNR of the output that is farthest off, or how many of its class numbers are equal."""
    equal = rung.get("equal")
    if equal is None or equal == 1:
        return format_decibel(rung["sqnr_db"])
    return f"{format_percent(equal)} equal"


def _name_rung(rung: dict[str, Any]) -> str:
    """With the word SQNR; empty where the reason has the share of equal class numbers already."""
    return "" if rung.get("equal") is not None else f"SQNR {format_decibel(rung['sqnr_db'])}"


def describe_search(report: Report) -> Markup | None:
    """What the search spent, and what it left out; None where there was none."""
    found = report.get("search")
    if not found:
        return None
    tried = found["blocks"] or any(candidate.get("recovery") for candidate in report["candidates"])
    spent = f", {format_seconds(found['seconds'])}." if tried else ": nothing was searched."
    words = [f"Effort {found['effort']}{spent}", *recovery_sentences(report)]
    if found["notes"]:
        words.append(f"Cut short or not done: {'; '.join(found['notes']).removesuffix('.')}.")
    return element("p", " ".join(words), class_="quiet")


def _row(block: dict[str, Any], noise: float, saving: float | None, most_saving: float) -> Markup:
    share = abs(saving) / most_saving if saving is not None and most_saving else 0.0
    slower = saving is not None and saving < 0
    label = f"{block['name']}: {format_decibel(block['sqnr_db'])} alone in int8"
    plot = element(
        "svg",
        element("title", label),
        element("rect", x="2%", y=8, width=f"{95 * noise:.2f}%", height=6, class_="noise"),
        element(
            "rect",
            x="2%",
            y=19,
            width=f"{95 * share:.2f}%",
            height=6,
            class_="saving slower" if slower else "saving",
        ),
        class_="plot",
        height=34,
        role="img",
        aria_label=label,
    )
    layers = "1 layer" if block["layers"] == 1 else f"{block['layers']} layers"
    name = element("div", element("b", block["name"]), " ", element("small", layers), class_="who")
    saved = UNKNOWN if saving is None else f"{format_number(saving * 1e6)} µs"
    shown = "unchanged" if block["sqnr_db"] is None else format_decibel(block["sqnr_db"])
    value = element("div", shown, element("b", saved), class_="value")
    return element("div", name, plot, value, class_="row")


def _noise(sqnr_db: float | None) -> float:
    return 0.0 if sqnr_db is None else float(10 ** (-sqnr_db / 10))


def _saving(block: dict[str, Any]) -> float | None:
    if block["int8_seconds"] is None or block["float_seconds"] is None:
        return None
    return float(block["float_seconds"] - block["int8_seconds"])


def join_search(report: Report) -> Markup | None:
    """Everything about the search, or None."""
    parts = [describe_blocks(report), describe_recovery(report), describe_search(report)]
    return join(*parts) if any(part is not None for part in parts) else None
