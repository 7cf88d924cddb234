"""Terminal tables of the commands other than build: bench, verify, finish, doctor."""

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.bundle.folder import FALLBACK
from deploy.commands.bench import Bench
from deploy.commands.doctor import Diagnosis
from deploy.commands.finished import Finish
from deploy.commands.verification import Verification
from deploy.judging.accuracy import ACCURACY, Accuracy
from deploy.judging.label_notes import describe_reading
from deploy.judging.parity import ParityReport
from deploy.measuring.latency import EngineLatency, LatencyReport
from deploy.report.facts import TOO_NOISY, is_noisy
from deploy.report.wording import (
    UNKNOWN,
    clean,
    format_decibel,
    format_interval,
    format_number,
    format_percent,
    format_ratio,
    format_samples,
)
from deploy.results import CandidateResult


def print_latency(found: Bench, console: Console) -> None:
    """One row an engine: median with its interval, p90, p99, ratio to the baseline."""
    baseline, report = found.baseline, found.latency
    table = make_table("engine", "p50 ms\n95%", "p90 ms", "p99 ms", "speed-up\n95%")
    rows = sorted(report.engines.items(), key=lambda item: item[1].p50)
    for name, latency in rows:
        label = f"{name}\nbaseline" if name == baseline else name
        add_row(table, label, *_times(latency))
    console.print(table)
    for name, reason in report.failed.items():
        console.print(Text(clean(f"{name}: failed: {reason}")))
    took = f"{report.rounds} rounds in {report.openings} openings of the engines"
    control = _describe_control("A/A control: baseline against itself", report)
    console.print(Text(f"{control}; {took}{_judge_control(report)}", style="dim"))
    if found.conditions:
        console.print(Text(clean(found.conditions), style="dim"))


def _describe_control(what: str, report: LatencyReport) -> str:
    low, high = report.control_ci95
    return f"{what} {report.control:.3f}x (95% {low:.3f} to {high:.3f})"


def _judge_control(report: LatencyReport) -> str:
    """What the report of a build says of such a control as well; nothing of a quiet machine."""
    return f". {TOO_NOISY}" if is_noisy(report.control, report.control_ci95) else ""


def print_verification(results: Sequence[Verification], console: Console) -> None:
    """One row an engine: golden answers, and the gate on the data; reasons below."""
    judged = [result.parity.judged if result.parity else {} for result in results]
    measures = {output: each.measure for found in judged for output, each in found.items()}
    lone = [*measures.values(), ACCURACY][0] if len(measures) < 2 else None
    table = make_table("engine", "golden", "SQNR", *([lone] if lone else []), "gate")
    for result, found in zip(results, judged, strict=True):
        shown = [format_percent(each.candidate) for each in found.values()] or [UNKNOWN]
        verdict = result.verdict
        add_row(
            table,
            result.name,
            _golden_cell(result),
            _sqnr_cell(result),
            *(shown if lone else []),
            "-" if verdict is None else ("holds" if verdict.passed else "FAILS"),
        )
    console.print(table)
    if not lone:
        _print_outputs(results, judged, measures, console)
    for result in results:
        for reason in (result.golden, result.verdict.reason if result.verdict else None):
            if reason:
                console.print(Text(clean(f"{result.name}: {reason}"), style="red"))
    for result in results:
        if result.note:
            console.print(Text(clean(result.note)))
    for reason, names in _group_absent(results).items():
        console.print(Text(clean(f"{', '.join(names)}: {reason}")))
    for warning in dict.fromkeys(each for result in results for each in result.warnings):
        console.print(Text(clean(f"Warning: {warning}"), style="yellow"))
    labels = describe_reading(result.parity for result in results if result.parity)
    if labels:
        console.print(Text(clean(f"Labels: {labels}"), style="dim"))
    console.print(Text(clean(_verification_sentence(results))))


def _print_outputs(
    results: Sequence[Verification],
    judged: Sequence[Mapping[str, Accuracy]],
    measures: Mapping[str, str],
    console: Console,
) -> None:
    """One row an engine that was judged, with the accuracy of every output that has labels."""
    heads = (f"{measure} in {clean(output)}" for output, measure in measures.items())
    table = make_table("engine", *heads)
    for result, found in zip(results, judged, strict=True):
        if found:
            shown = {name: format_percent(each.candidate) for name, each in found.items()}
            add_row(table, result.name, *(shown.get(name, UNKNOWN) for name in measures))
    console.print()
    console.print(table)


def _group_absent(results: Sequence[Verification]) -> dict[str, list[str]]:
    """Why engines were not run, each reason once, with the names of those that it is of."""
    grouped: dict[str, list[str]] = {}
    for result in results:
        for reason in (result.missing, None if result.golden else result.unfit):
            if reason:
                grouped.setdefault(reason, []).append(result.name)
    return grouped


def _sqnr_cell(result: Verification) -> str:
    if result.parity is None:
        return "-"
    if result.parity.sqnr_db == math.inf and result.name == FALLBACK:
        return "reference"
    return describe_nearness(result.parity)


def describe_nearness(parity: ParityReport) -> str:
    """Of the output that is farthest off its SQNR, or how many of its class numbers are equal."""
    worst = parity.worst_output
    if worst.is_amount or worst.nearness_db == math.inf:
        return format_decibel(worst.nearness_db)
    return f"{format_percent(worst.top1_agreement)} equal"


def _verification_sentence(results: Sequence[Verification]) -> str:
    """The answer in one line, and what the data was held against."""
    failing = [result.name for result in results if not result.holds]
    closed = [result.name for result in results if result.untrusted]
    answer = "Verified: every engine that was run repeats its recorded answers"
    if closed:
        answer = f"Not verified: {', '.join(closed)}. Every other engine repeats its answers"
    if any(result.verdict is not None for result in results):
        counts = [result.parity.samples for result in results if result.parity is not None]
        data = f"{format_samples(max(counts))} of the data" if counts else "the data"
        answer += f" and holds its gate on {data}, against {FALLBACK} of the bundle"
    return f"Not verified: {', '.join(failing)}." if failing else f"{answer}."


def print_diagnosis(diagnosis: Diagnosis, console: Console) -> None:
    """The machine, then its engines, then the bundle's."""
    machine = diagnosis.machine
    for label, value in (
        ("CPU", f"{machine.cpu}, {machine.cores} core{'s' * (machine.cores != 1)}"),
        ("features", ", ".join(machine.features) or "none of note"),
        ("memory", f"{machine.memory_gb} GiB"),
        ("GPU", machine.gpu or "no NVIDIA GPU"),
        ("system", f"{machine.os}, Python {machine.python}"),
        ("serving", diagnosis.serving),
    ):
        console.print(Text(f"{label:<9} {value}"))
    table = make_table("engine", "version", "usable", "note")
    for backend in diagnosis.backends:
        usable = "yes" if backend.usable else "no"
        add_row(table, backend.name, backend.version or "-", usable, backend.note)
    console.print(table)
    if diagnosis.bundle:
        print_verification(diagnosis.bundle, console)


def print_finish(found: Finish, console: Console) -> None:
    """One row an engine that waited, then the winner."""
    shown = make_table("engine", "status", "p50 ms", "speed-up\n95%", "SQNR")
    for result in found.results:
        add_row(shown, result.name, result.status.replace("_", " "), *_finish_cells(result))
    console.print(shown)
    for result in found.results:
        if result.reason is not None:
            console.print(Text(clean(f"{result.name}: {result.reason}")))
    if found.latency is not None:
        control = _describe_control("A/A control:", found.latency)
        console.print(Text(f"{control}{_judge_control(found.latency)}", style="dim"))
    winner, before = found.bundle.winner, found.winner_before
    kept = "as before" if winner == before else f"in place of {before}"
    console.print(Text(clean(f"Winner: {winner}, {kept}.")))


def make_table(*columns: str) -> Table:
    """An empty table; the first column and notes are words, the rest are figures."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if index == 0 or column == "note" else "right",
            overflow="fold",
            no_wrap=index == 0,  # a name in two halves cannot be searched for
        )
    return table


def add_row(table: Table, *cells: str) -> None:
    """Cells as they are: names come from files, and ``[trt]`` is no markup."""
    table.add_row(*(Text("\n".join(map(clean, cell.split("\n")))) for cell in cells))


def _golden_cell(result: Verification) -> str:
    if result.missing:
        return "not installed"
    if result.unfit:
        return "not run"
    if result.untrusted:
        return "not trusted"
    return "same" if result.golden is None else "DIFFERS"


def _times(latency: EngineLatency) -> tuple[str, ...]:
    p50, p90, p99 = (
        UNKNOWN if value is None else format_number(value * 1e3)
        for value in (latency.p50, latency.p90, latency.p99)
    )
    interval = format_interval([end * 1e3 for end in latency.p50_ci95], format_number)
    ratio = f"{format_ratio(latency.speedup)}x"
    low, high = latency.speedup_ci95
    if low != high:  # the baseline over itself has none
        ratio += f"\n{format_interval((low, high), format_ratio)}"
    return f"{p50}\n{interval}", p90, p99, ratio


def _finish_cells(result: CandidateResult) -> tuple[str, str, str]:
    times, parity = result.latency, result.parity
    decibels = UNKNOWN if parity is None else describe_nearness(parity)
    if times is None:
        return UNKNOWN, UNKNOWN, decibels
    interval = format_interval(times.speedup_ci95, format_ratio)
    ratio = f"{format_ratio(times.speedup)}x\n{interval}"
    return format_number(times.p50 * 1e3), ratio, decibels
