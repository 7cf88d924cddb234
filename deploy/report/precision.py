"""What `deploy debug precision` found, for a terminal and as JSON."""

import math
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from deploy.commands.precision_debug import PrecisionFinding
from deploy.judging.limits import show_share
from deploy.report.json_file import write_json
from deploy.report.tables import add_row, make_table
from deploy.report.wording import clean, format_percent


def print_precision(found: PrecisionFinding, console: Console) -> None:
    """One row a layer that must stay float; then the answer in a sentence."""
    if found.culprits:
        table = make_table("must stay float", "operator", "node")
        for culprit in found.culprits:
            add_row(table, culprit.where, culprit.operator, culprit.node)
        console.print(table)
    console.print(Text(clean(describe_precision(found))))


def describe_precision(found: PrecisionFinding) -> str:
    """The answer in words, and how int8 was made."""
    return f"{_describe_answer(found)} {found.made}".rstrip()


def _describe_answer(found: PrecisionFinding) -> str:
    what = f"{found.precision} in {found.engine}"
    before = f"{_describe(found.before_db, found.before_equal)} on {found.samples}"
    limit = f"{found.gate_db:.1f} dB"
    if found.before_equal is not None:
        limit += f" and {show_share(found.least_equal)} of class numbers equal"
    if not found.culprits and found.complete:
        return f"{what} holds {limit} as it is: {before}."
    mixes = "1 mix was tried" if found.builds == 1 else f"{found.builds} mixes were tried"
    after = (
        f"with {len(found.culprits)} of {found.nodes} nodes in float "
        f"{_describe(found.after_db, found.after_equal)}; {mixes}"
    )
    if found.complete:
        return f"{what}: {before}; {after}. {limit} were asked for."
    return (
        f"{what}: {before}; {after}, and {limit} are not reached yet: there are more such layers. "
        "Raise --builds, or lower --min-sqnr."
    )


def write_precision(found: PrecisionFinding, path: Path) -> None:
    """The finding as JSON; an SQNR that is not finite is null.

    Raises:
        ConfigError: the file cannot be written.
    """
    plain = asdict(found)
    for key in ("before_db", "after_db"):
        plain[key] = plain[key] if math.isfinite(plain[key]) else None
    write_json(plain, path)


def _describe(decibel: float, equal: float | None) -> str:
    """What holds of amounts, and of class numbers where there are some."""
    if equal is None:
        return _decibels(decibel)
    numbers = f"{format_percent(equal)} of class numbers equal"
    return numbers if decibel == math.inf else f"{_decibels(decibel)} and {numbers}"


def _decibels(value: float) -> str:
    if value == math.inf:
        return "no error"
    return f"{value:.1f} dB" if math.isfinite(value) else "outputs that are not finite"
