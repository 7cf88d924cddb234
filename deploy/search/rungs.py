"""One step on the ladder of recovery, as the report has it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """One rung that was tried.

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
