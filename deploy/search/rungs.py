"""One step on the ladder of recovery, as the report has it."""

from collections.abc import Sequence
from dataclasses import dataclass

OUT_OF_TIME = "not tried: the time of the search was over"
"""The reason of a rung that was not begun."""


@dataclass(frozen=True)
class Rung:
    """One rung that was tried, or that no time was left for.

    Attributes:
        step: one of `STEPS`, or ``plain``.
        words: what was done, for people.
        reason: why the gate did not hold; None where it did.
        equal: share of the class numbers that are equal, where `sqnr_db` is of an output of such.
    """

    step: str
    words: str
    passed: bool
    reason: str | None
    sqnr_db: float | None
    accuracy: float | None
    equal: float | None = None

    @property
    def begun(self) -> bool:
        """Whether it was tried."""
        return self.reason != OUT_OF_TIME


def describe_vain(rungs: Sequence[Rung], effort: str) -> str:
    """What was tried of `rungs`, none of which passed, and what the effort left no time for."""
    tried = ", ".join(rung.words for rung in rungs if rung.begun)
    left = ", ".join(rung.words for rung in rungs if not rung.begun)
    parts = (
        tried and f"tried in vain: {tried}",
        left and f"no time in --effort {effort} for {left}",
    )
    return "; ".join(filter(None, parts))
