"""What driving a server came to, for a terminal and as JSON."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from deploy.client.results import LoadReport
from deploy.client.settings import LoadSettings
from deploy.report.json_file import write_json
from deploy.report.tables import add_row, make_table
from deploy.report.wording import UNKNOWN, clean, format_number, format_time


def describe_plan(url: str, settings: LoadSettings) -> str:
    """What is about to be done, in a line."""
    return f"Driving {clean(url)} for {settings.seconds:g} s, {_describe_loop(settings)}."


def print_load(report: LoadReport, console: Console) -> None:
    """One row of latencies, one of throughput, failures by kind, warnings."""
    latency = report.latency
    table = make_table("model", "answers/s", "p50 ms\n95%", "p90 ms\n95%", "p99 ms\n95%", "max ms")
    cells = [UNKNOWN] * 4
    if latency is not None:
        cells = [
            _with_interval(latency.p50, latency.p50_ci95),
            _with_interval(latency.p90, latency.p90_ci95),
            _with_interval(latency.p99, latency.p99_ci95),
            format_number(latency.largest * 1e3),
        ]
    add_row(table, report.target.model, format_number(report.throughput), *cells)
    console.print(table)
    for what, count in report.errors.items():
        console.print(Text(clean(f"{what}: {count} of {report.made} requests"), style="red"))
    for warning in report.warnings:
        console.print(Text(f"Warning: {clean(warning)}", style="yellow"))
    console.print(Text(clean(_describe_conditions(report)), style="dim"))


def write_load(report: LoadReport, path: Path) -> None:
    """The report as JSON.

    Raises:
        ConfigError: the file cannot be written.
    """
    write_json(report.as_dict(), path)


def _describe_loop(settings: LoadSettings) -> str:
    if settings.rate is None:
        callers = "caller" if settings.callers == 1 else "callers"
        return f"{settings.callers} {callers} in a closed loop"
    return f"{settings.rate:g} requests a second in an open loop ({settings.arrivals})"


def _describe_conditions(report: LoadReport) -> str:
    target, machine = report.target, report.machine
    server = " ".join(part for part in (target.name, target.version) if part) or "unnamed server"
    return (
        f"{report.answered} answers of {server} at {target.url}, "
        f"{_describe_loop(report.settings)}, batch {report.settings.batch}, "
        f"requests of {target.request_bytes} bytes; driven from "
        f"{machine.cpu}, {machine.cores} core{'s' * (machine.cores != 1)}, "
        f"load average {machine.load_average:g}, "
        f"{format_time(report.created)}. Latencies count from when a request was due."
    )


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return UNKNOWN
    shown = format_number(value * 1e3)
    if interval is None:
        return shown
    low, high = (format_number(end * 1e3) for end in interval)
    return f"{shown}\n{low}-{high}"
