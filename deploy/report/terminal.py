"""The report as text: the answer first, then what was measured, then why the rest lost.

Plain ASCII of our own, so that it survives a pipe into a file or a log of any encoding.
"""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.report.census import stray_sentences
from deploy.report.facts import (
    TOO_NOISY,
    Candidate,
    Report,
    accuracies_of,
    accuracy_of,
    baseline_wins,
    describe_fidelity,
    is_noisy,
    list_rows,
    name_measure,
    winner_of,
)
from deploy.report.finish import finish_sentence
from deploy.report.search import recovery_sentences
from deploy.report.wording import (
    UNKNOWN,
    clean,
    format_bytes,
    format_conditions,
    format_interval,
    format_number,
    format_percent,
    format_points,
    format_ratio,
    list_words,
)

_WIDE = 100
"""Columns of a terminal in which the longest names have room beside their times."""
_NAME_WIDTH = 22
_STYLES = {"winner": "bold green", "rejected": "yellow", "failed": "red", "not run": "dim"}


def print_report(report: Report, console: Console) -> None:
    """Print `report`: verdict, table, reasons, A/A control, warnings. Nothing is cut off."""
    winner = winner_of(report)
    _print(console, f"{report['model']['name']}: {report['verdict']}", "bold")
    _print(console, format_conditions(report), "dim")
    if report["data"].get("labels"):
        _print(console, f"Labels: {report['data']['labels']}", "dim")
    finished = finish_sentence(report)
    if finished is not None:
        _print(console, finished, "")
    console.print()
    console.print(_candidate_table(report, winner["name"], wide=console.width >= _WIDE))
    if len(accuracies_of(report, report["baseline"])) > 1:
        console.print()
        console.print(_accuracy_table(report, winner))
    _print_reasons(report, console)
    console.print()
    for sentence in (*tie_sentences(report), *recovery_sentences(report), *stray_sentences(report)):
        _print(console, sentence, "")
    _print(console, control_sentence(report), "dim")
    for warning in report["warnings"]:
        _print(console, f"Warning: {warning}", "yellow")


def tie_sentences(report: Report) -> list[str]:
    """Why a candidate that came out faster than the winner did not win; empty where none did."""
    times = winner_of(report)["latency"]
    if times is None or baseline_wins(report):
        return []
    faster = [
        candidate["name"]
        for candidate, standing in list_rows(report)
        if standing == "ok"
        and candidate["latency"] is not None
        and candidate["latency"]["speedup"] > times["speedup"]
    ]
    if not faster:
        return []
    return [
        f"{list_words(faster)} came out faster, but not beyond doubt: of engines that cannot be "
        "told apart, the most precise wins."
    ]


def control_sentence(report: Report) -> str:
    """The A/A control in words: what differs when nothing differs."""
    control = report["control"]
    if control is None:
        return "A/A control: not run, so the noise of this measurement is not known."
    low, high = control["ci95"]
    noisy = is_noisy(control["ratio"], (low, high))
    ratio = format_number(control["ratio"], 4)
    span = f"{format_ratio(low)} to {format_ratio(high)}"
    text = f"A/A control: the baseline against itself came out at {ratio}x (95% {span})"
    if noisy:
        return f"{text}. {TOO_NOISY}"
    if low <= 1 <= high:
        return f"{text}; the interval holds 1, as it should."
    told = (
        f"{text}; the interval leaves 1 out: two processes that run the same differed by this much"
    )
    if report["measurement"].get("openings", 1) > 1:
        return f"{told}, and differences as small as that are not to be trusted."
    return f"{told}, and every speed-up's interval was widened by it."


def _candidate_table(report: Report, winner: str, *, wide: bool) -> Table:
    measure = name_measure(report)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("  candidate", overflow="fold")
    table.add_column("status", overflow="fold")
    table.add_column("p50 ms\n95%", justify="right", overflow="fold")
    table.add_column("speed-up\n95%", justify="right", overflow="fold")
    outputs = [*accuracies_of(report, report["baseline"])]
    of = f"\nin {clean(outputs[0])}" if len(outputs) > 1 else ""
    fidelity = "SQNR" if measure is None else f"{clean(measure)}{of}\nSQNR"
    table.add_column(fidelity, justify="right", overflow="fold")
    table.add_column("size", justify="right", overflow="fold")
    for candidate, standing in list_rows(report):
        won = candidate["name"] == winner
        style = _STYLES["winner"] if won else _STYLES.get(standing, "")
        name = clean(candidate["name"])
        label = f"{'> ' if won else '  '}{name if wide else _fold(name)}"
        word = "winner" if won else standing
        table.add_row(
            Text(label, style=style),
            Text(clean(word), style=style),
            *_latency_cells(candidate),
            _fidelity_cell(report, candidate),
            Text(format_bytes(candidate["size_bytes"])),
        )
    return table


def _accuracy_table(report: Report, winner: Candidate) -> Table:
    """Of several outputs that have labels the accuracy of eager and of the winner."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("  output", overflow="fold")
    for head in ("measure", "eager", "winner", "drop in points\n95%"):
        table.add_column(head, justify="right" if head != "measure" else "left", overflow="fold")
    found = {} if baseline_wins(report) else accuracies_of(report, winner)
    for output, before in accuracies_of(report, report["baseline"]).items():
        after = found.get(output)
        drop = Text(UNKNOWN if after is None else format_points(after.drop))
        if after is not None:
            interval = format_interval(after.drop_ci95, format_points, between=" to ")
            drop.append(f"\n{interval}", style="dim")
        table.add_row(
            Text(f"  {clean(output)}"),
            Text(clean(before.measure)),
            Text(format_percent(before.value)),
            Text(UNKNOWN if after is None else format_percent(after.value)),
            drop,
        )
    return table


def _fold(name: str) -> str:
    """A long name in two lines, as its times are: the device that it runs on comes second."""
    if len(name) <= _NAME_WIDTH:
        return name
    return name.replace("-cuda", "\n    -cuda", 1)


def _latency_cells(candidate: Candidate) -> tuple[Text, Text]:
    latency = candidate["latency"]
    if latency is None:
        return Text(UNKNOWN), Text(UNKNOWN)
    p50 = Text(format_number(latency["p50_ms"]))
    p50.append(f"\n{format_interval(latency['p50_ci95'], format_number)}", style="dim")
    speedup = Text(f"{format_ratio(latency['speedup'])}x")
    low, high = latency["speedup_ci95"]
    if low != high:
        speedup.append(f"\n{format_interval((low, high), format_ratio)}", style="dim")
    return p50, speedup


def _fidelity_cell(report: Report, candidate: Candidate) -> Text:
    accuracy = accuracy_of(report, candidate)
    reference = candidate["name"] == report["baseline"]["name"]
    sqnr = "reference" if reference else describe_fidelity(report, candidate)
    if accuracy is None:
        return Text(sqnr)
    cell = Text(format_percent(accuracy.value))
    cell.append(f"\n{sqnr}", style="dim")
    return cell


def _print_reasons(report: Report, console: Console) -> None:
    """Reasons below the table, at full width: they are sentences, not cells."""
    rows = [(c, standing) for c, standing in list_rows(report) if c["reason"]]
    if not rows:
        return
    console.print()
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(overflow="fold", min_width=8)
    grid.add_column(overflow="fold", ratio=1)
    groups: dict[tuple[str, str], list[str]] = {}  # alike, as of a package that is missing
    for candidate, standing in rows:
        won = standing in ("winner", "ok")
        reason = candidate["reason"] if won else f"{standing}: {candidate['reason']}"
        groups.setdefault((standing, clean(reason)), []).append(f"  {clean(candidate['name'])}")
    for (standing, reason), names in groups.items():
        grid.add_row(Text("\n".join(names), style=_STYLES.get(standing, "")), Text(reason))
    console.print(grid)


def _print(console: Console, text: str, style: str) -> None:
    console.print(Text(clean(text), style=style, overflow="fold"))
