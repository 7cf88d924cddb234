"""The large figures at the head of the HTML page: what the winner gains, and what it costs."""

import math

from deploy.report.facts import (
    WIDE,
    Candidate,
    Report,
    accuracies_of,
    baseline_wins,
    describe_fidelity,
    sqnr_of,
    top1_of,
    winner_of,
)
from deploy.report.markup import Markup, element, join
from deploy.report.wording import (
    as_heading,
    format_bytes,
    format_error,
    format_interval,
    format_number,
    format_percent,
    format_points,
    format_ratio,
    format_samples,
)

_MOST_FIGURES = 3
"""Outputs whose accuracy is shown large; the section below has all."""
_IN_A_ROW = 5
"""Figures that stand beside each other; of more there are fewer in a row, for they are wider."""


def draw_figures(report: Report) -> Markup:
    """Winner, speed-up, latency, accuracies or nearness, and size."""
    figures = _key_figures(report)
    return element(
        "div", *figures, class_="figures many" if len(figures) > _IN_A_ROW else "figures"
    )


def _key_figures(report: Report) -> list[Markup]:
    winner, baseline = winner_of(report), report["baseline"]
    before, after = baseline["latency"], winner["latency"]
    kept = baseline_wins(report)
    figures = [
        _figure("Winner", winner["name"], f"{winner['engine']}, {winner['precision']}", "name")
    ]
    if after is not None:
        interval = format_interval(after["speedup_ci95"], format_ratio, between=" to ")
        note = "nothing was faster and passed" if kept else f"95% {interval}"
        low, high = after["speedup_ci95"]
        wide = high > WIDE * low  # as the verdict has it
        shown = f"at least {format_ratio(low)}×" if wide else f"{format_ratio(after['speedup'])}×"
        figures.append(_figure("Speed-up", shown, note))
    if after is not None and before is not None:
        old, new = format_number(before["p50_ms"]), format_number(after["p50_ms"])
        interval = format_interval(after["p50_ci95"], format_number, between=" to ")
        p50: object = new if kept else _change(old, new)
        figures.append(_figure("p50 in ms", p50, f"95% {interval}"))
    figures += _fidelity_figures(report, winner)
    old, new = format_bytes(baseline["size_bytes"]), format_bytes(winner["size_bytes"])
    ratio = None
    if not kept and baseline["size_bytes"] and winner["size_bytes"]:
        ratio = f"{100 * winner['size_bytes'] / baseline['size_bytes']:.0f}% of the original"
    figures.append(_figure("Size", new if kept else _change(old, new), ratio))
    return figures


def _fidelity_figures(report: Report, winner: Candidate) -> list[Markup]:
    """The accuracies where there are labels, else how near the outputs are."""
    found, references = (accuracies_of(report, row) for row in (winner, report["baseline"]))
    shared = [output for output in references if output in found]
    if not shared:
        return [_nearness_figure(report, winner)]
    figures = []
    for output in shared[:_MOST_FIGURES]:
        accuracy = found[output]
        name = as_heading(accuracy.measure) + (f" in {output}" if len(shared) > 1 else "")
        if baseline_wins(report):
            note = format_samples(accuracy.samples)
            figures.append(_figure(name, format_percent(accuracy.value), note))
            continue
        interval = format_interval(accuracy.drop_ci95, format_points, between=" to ")
        before = format_percent(references[output].value)
        shown = _change(before, format_percent(accuracy.value))
        note = f"drop {format_points(accuracy.drop)} points, 95% {interval}"
        figures.append(_figure(name, shown, note))
    return figures


def _nearness_figure(report: Report, winner: Candidate) -> Markup:
    """How near the outputs are, where no labels judge."""
    if baseline_wins(report):
        return _figure("Outputs", "unchanged", "your own model")
    top1 = top1_of(report, winner)
    agreement = None if top1 is None else f"top-1 agreement {format_percent(top1)}"
    parity = winner["parity"]
    labels = "labels judge nothing" if report["data"]["kind"] == "labelled" else "no labels"
    source = f"{parity['data']} data, {labels}" if parity else "not compared"
    sqnr, error = sqnr_of(report, winner), None
    floats = all("float" in output["dtype"] for output in report["model"]["outputs"])
    if sqnr is not None and math.isfinite(sqnr) and floats:
        error = f"an error of {format_error(sqnr)}"
    note = "; ".join(part for part in (error, agreement, source) if part)
    near = describe_fidelity(report, winner)
    what = "Outputs" if near.endswith("equal") else "SQNR of the outputs"
    return _figure(what, near, note)


def _figure(term: str, value: object, note: str | None, kind: str | None = None) -> Markup:
    return element(
        "div",
        element("span", term, class_="term"),
        element("span", value, class_=f"big {kind or ''}".strip()),
        element("span", note, class_="note") if note else None,
    )


def _change(old: str, new: str) -> Markup:
    return join(element("s", old), Markup(" → "), new)
