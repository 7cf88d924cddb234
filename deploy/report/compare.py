"""Two reports side by side: is what would ship now slower or less accurate than what shipped?

The winner of A is held against the winner of B. A difference counts only beyond both intervals, and
a time only beyond what eager and the A/A controls differ between the two runs.
"""

import math
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.report.compare_accuracy import compare_accuracy
from deploy.report.difference import Difference, with_interval
from deploy.report.facts import (
    Candidate,
    Report,
    accuracy_of,
    describe_fidelity,
    is_noisy,
    sqnr_of,
    winner_of,
)
from deploy.report.wording import (
    UNKNOWN,
    clean,
    format_bytes,
    format_conditions,
    format_number,
    format_ratio,
)

_SQNR_LOSS_DB = 3.0
_ROUNDING_DB = 100.0


@dataclass(frozen=True)
class Comparison:
    """B against A. `warnings` say where the two reports are not of the same thing."""

    a: str
    b: str
    same_machine: bool
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Difference, ...]:
        """The differences by which B is worse beyond the intervals; empty: none."""
        return tuple(difference for difference in self.differences if difference.regression)


def compare_reports(a: Report, b: Report) -> Comparison:
    """Hold the winner of `b` against the winner of `a`.

    Times are compared in equal conditions (CPU, GPU, device, threads and batch), else the speed-ups
    over each report's own baseline. Accuracy is compared where both have labels, else SQNR.
    """
    first, second = winner_of(a), winner_of(b)
    same = _conditions_of(a) == _conditions_of(b)
    changed = "" if first["name"] == second["name"] else "changed"
    differences = [
        Difference("winner", first["name"], second["name"], changed, regression=False, note=""),
        *_compare_latency(first, second, same, _noise_between(a, b)),
        *compare_accuracy(a, b),
        _compare_sqnr(a, b),
        _compare_size(first, second),
    ]
    return Comparison(
        f"A: {a['model']['name']} ({format_conditions(a)})",
        f"B: {b['model']['name']} ({format_conditions(b)})",
        same,
        tuple(differences),
        tuple(_list_warnings(a, b, same)),
    )


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print A and B side by side, then the reasons of every regression, warnings and the answer."""
    for line in (comparison.a, comparison.b):
        console.print(Text(clean(line), style="dim", overflow="fold"))
    console.print()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("", "A", "B", "change"):
        table.add_column(head, justify="right" if head else "left", overflow="fold")
    for item in comparison.differences:
        style = "bold red" if item.regression else ""
        change = f"{item.change}\nREGRESSION" if item.regression else item.change
        cells = (item.what, item.a, item.b, change)
        table.add_row(*(Text("\n".join(map(clean, c.split("\n"))), style=style) for c in cells))
    console.print(table)
    console.print()
    for item in comparison.differences:
        if item.note:
            _print(console, f"{item.what}: {item.note}", "red" if item.regression else "")
    for warning in comparison.warnings:
        _print(console, f"Warning: {warning}", "yellow")
    if comparison.regressions:
        names = ", ".join(item.what for item in comparison.regressions)
        _print(console, f"Regression in {names}.", "bold red")
    else:
        _print(console, "No regression.", "bold green")


def _noise_between(a: Report, b: Report) -> float:
    """By what factor the same engine may be slower in B though nothing changed, at least 1.

    The A/A controls of both, and, where both measured the same model, what eager itself was slower.
    """
    noise = 1.0
    for report in (a, b):
        if report["control"] is not None:
            noise *= max(report["control"]["ratio"], 1 / report["control"]["ratio"])
    first, second = a["baseline"]["latency"], b["baseline"]["latency"]
    same_model = a["model"]["sha256"] is not None and a["model"]["sha256"] == b["model"]["sha256"]
    if same_model and first is not None and second is not None:
        noise *= max(1.0, second["p50_ms"] / first["p50_ms"])
    return noise


def _compare_latency(a: Candidate, b: Candidate, same: bool, noise: float) -> list[Difference]:
    first, second = a["latency"], b["latency"]
    if first is None or second is None:
        note = "the winner of one report was not timed, so speed cannot be compared"
        return [Difference("p50 ms", UNKNOWN, UNKNOWN, UNKNOWN, regression=False, note=note)]
    slower = second["p50_ci95"][0] > first["p50_ci95"][1] * noise
    apart = second["p50_ci95"][0] > first["p50_ci95"][1]
    lost = second["speedup_ci95"][1] < first["speedup_ci95"][0]
    if same:
        times = "slower: the 95% intervals of p50 do not overlap" if slower else ""
        if apart and not slower:
            times = f"slower, but by no more than the {noise - 1:.1%} that eager and the A/A "
            times += "controls differ between the runs"
        ratios = "" if slower or not lost else "lower, but p50 is not: the baseline became faster"
    else:
        times = "not judged: the conditions differ; the speed-ups are compared instead"
        ratios = (
            "lower: the 95% intervals do not overlap (compared in place of p50)" if lost else ""
        )
    return [
        Difference(
            "p50 ms",
            with_interval(first["p50_ms"], first["p50_ci95"], format_number),
            with_interval(second["p50_ms"], second["p50_ci95"], format_number),
            _relative(first["p50_ms"], second["p50_ms"]),
            regression=same and slower,
            note=times,
        ),
        Difference(
            "speed-up",
            with_interval(first["speedup"], first["speedup_ci95"], format_ratio, "x"),
            with_interval(second["speedup"], second["speedup_ci95"], format_ratio, "x"),
            _relative(first["speedup"], second["speedup"]),
            regression=not same and lost,
            note=ratios,
        ),
    ]


def _compare_sqnr(a: Report, b: Report) -> Difference:
    """Judged only where one report has no labels; above `_ROUNDING_DB` all is float32 rounding."""
    labelled = all(accuracy_of(report, winner_of(report)) is not None for report in (a, b))
    first, second = sqnr_of(a, winner_of(a)), sqnr_of(b, winner_of(b))
    lost, change = 0.0, UNKNOWN
    if first is not None and second is not None:
        lost = min(first, _ROUNDING_DB) - min(second, _ROUNDING_DB)
        finite = math.isfinite(first) and math.isfinite(second)
        change = f"{round(second - first, 1) + 0.0:+.1f} dB" if finite else ""
    worse = not labelled and lost >= _SQNR_LOSS_DB
    note = (
        f"lower by {_SQNR_LOSS_DB:g} dB or more, and there are no labels in both" if worse else ""
    )
    old, new = (describe_fidelity(report, winner_of(report)) for report in (a, b))
    return Difference("SQNR", old, new, change, worse, note)


def _compare_size(a: Candidate, b: Candidate) -> Difference:
    first, second = a["size_bytes"], b["size_bytes"]
    change = _relative(first, second) if first and second else UNKNOWN
    return Difference("size", format_bytes(first), format_bytes(second), change, False, "")


def _list_warnings(a: Report, b: Report, same: bool) -> list[str]:
    warnings = []
    first, second = a["model"], b["model"]
    by_hash = first["sha256"] is not None and second["sha256"] is not None
    keys = ("sha256",) if by_hash else ("name", "parameters", "macs")
    if any(first[key] != second[key] for key in keys):
        how = "SHA-256" if by_hash else "name, parameters or MACs"
        warnings.append(f"the models differ ({how}): this compares two models, not two builds.")
    if first["inputs"] != second["inputs"]:
        warnings.append("the inputs of the models differ in name, shape or type.")
    data = ("source", "kind", "evaluation_samples", "classes_of", "labelled")
    if any(a["data"].get(key) != b["data"].get(key) for key in data):
        warnings.append("the data differ: accuracy and SQNR are not of the same samples.")
    if a["gates"] != b["gates"]:
        warnings.append("the gates differ: the two builds allowed for different losses.")
    if not same:
        warnings.append(
            "the conditions differ (CPU, GPU, device, threads or batch): times are not judged."
        )
    for report, letter in ((a, "A"), (b, "B")):
        control = report["control"]
        if control is None:
            continue
        low, high = control["ci95"]
        if is_noisy(control["ratio"], (low, high)):
            warnings.append(
                f"the A/A control of {letter} says that its machine was too noisy to trust its "
                "times: measure again."
            )
        elif not low <= 1 <= high:
            warnings.append(f"the A/A control of {letter} excludes 1: its machine was not quiet.")
    return warnings


def _conditions_of(report: Report) -> tuple[object, ...]:
    machine, measurement = report["machine"], report["measurement"]
    device = measurement.get("device", "cpu")
    sizes = measurement["threads"], measurement["batch"]
    return machine["cpu"], machine["gpu"], device, *sizes


def _relative(a: float, b: float) -> str:
    return f"{round(100 * (b / a - 1), 1) + 0.0:+.1f}%" if a else UNKNOWN  # -0.0 + 0.0 is 0.0


def _print(console: Console, text: str, style: str) -> None:
    console.print(Text(clean(text), style=style, overflow="fold"))
