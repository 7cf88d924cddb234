"""One line of a comparison of two reports, and how a value stands in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.report.wording import format_interval


@dataclass(frozen=True)
class Difference:
    """One line of a comparison; `change` is B against A, `note` why it counts or does not."""

    what: str
    a: str
    b: str
    change: str
    regression: bool
    note: str


def with_interval(
    value: float, ci95: Sequence[float], form: Callable[[float | None], str], unit: str = ""
) -> str:
    """A value above its 95% interval."""
    return f"{form(value)}{unit}\n{format_interval(ci95, form)}"
