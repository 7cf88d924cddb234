"""Which samples a candidate answers worst, however near it is over all of them.

One SQNR over all samples says nothing of a few: at 20 dB, one answer in a hundred may be nothing
but error. A sample's own SQNR alone says too much where its answer is small, such as a map of
objects without any: int8 errs there by as much as elsewhere. So an answer is ruined where its error
is as large as itself and far larger than that of the median sample; errors of honest rounding are
all of one size, give or take a normal distribution's tails. A lone number has no size but among the
others: a probability near 0 that doubles is no ruin, so its answer counts as the mean one at least.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

KEPT = 3
"""Samples that are named."""
RUINED_DB, RUINED_TIMES = 0.0, 100.0
"""An answer of this SQNR or less, whose error has so many times the median's power, is ruined:
zeros would have been as near. Of normal errors, one in 10^11 has that power at the most."""
POOR_DB, POOR_TIMES = 10.0, 50.0
"""The same, from which a warning is given."""
USUAL_DB = 20.0
"""An SQNR over all samples that is asked for; where less is, less is asked of each as well."""


@dataclass(frozen=True)
class SampleParity:
    """One sample's answer.

    Attributes:
        sample: its row in the data.
        sqnr_db: 10 log10 of the power of its answer over that of its error; where answers are
            single numbers, of the mean power of all of them at least.
        times_median: the power of its error over that of the median sample with an error.
    """

    sample: int
    sqnr_db: float
    times_median: float


@dataclass
class SamplePowers:
    """Powers of answer and error of every sample: two numbers each, of outputs of any size.

    `numbers` has the row in the data of every sample, in the order in which they are added; None:
    they are counted.
    """

    numbers: np.ndarray[Any, Any] | None = None
    _signal: list[Floats] = field(default_factory=list)
    _error: list[Floats] = field(default_factory=list)
    _lone: bool = True

    def update(self, ours: Floats, theirs: Floats) -> None:
        """Add one batch of equal shapes, samples first; what is not finite on both sides is 0."""
        shared = np.isfinite(ours) & np.isfinite(theirs)
        if not shared.all():
            ours, theirs = np.where(shared, ours, 0.0), np.where(shared, theirs, 0.0)
        signal, error = ours, theirs - ours
        for powers, values in ((self._signal, signal), (self._error, error)):
            flat = values.reshape(len(values), -1)
            powers.append(np.einsum("nk,nk->n", flat, flat))
            self._lone = self._lone and flat.shape[1] == 1

    def result(self) -> tuple[SampleParity, ...]:
        """The worst of all that were added, the worst first; those without an error are left out.

        An answer of less power than `RUINED_TIMES` the median error's counts as one of that power.
        """
        if not self._error:
            return ()
        signal, error = np.concatenate(self._signal), np.concatenate(self._error)
        if self._lone:
            signal = np.maximum(signal, signal.mean())
        rows = np.flatnonzero(error)
        if not rows.size:
            return ()
        signal, error = signal[rows], error[rows]
        median = float(np.median(error))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            ratio = np.nan_to_num(np.maximum(signal, RUINED_TIMES * median) / error)
            decibels = np.nan_to_num(
                10 * np.log10(signal / error), nan=-np.inf, posinf=np.inf, neginf=-np.inf
            )
            times = np.nan_to_num(error / median, nan=np.inf, posinf=np.inf)
        numbers = rows if self.numbers is None else self.numbers[rows]
        worst = np.argsort(ratio, kind="stable")[:KEPT]
        return tuple(
            SampleParity(int(numbers[row]), float(decibels[row]), float(times[row]))
            for row in worst
        )


def explain_ruined(name: str, worst: tuple[SampleParity, ...], least: float) -> str | None:
    """What a gate says of an output with a ruined answer; None without one.

    Args:
        name: of the output.
        worst: its worst samples.
        least: the SQNR that all samples together must have, in dB.
    """
    ruined = _list_below(worst, least, RUINED_DB, RUINED_TIMES)
    if not ruined:
        return None
    return (
        f"output {name!r} is ruined in sample {ruined[0].sample} of the data, with "
        f"{_describe_own(ruined[0])} and {ruined[0].times_median:,.0f} times the median sample's "
        "error. If such samples matter, calibrate on some"
    )


def warn_of_poor(
    engine: str, outputs: Iterable[tuple[str, tuple[SampleParity, ...]]], least: float
) -> str | None:
    """A sentence on the answers that are far worse than the median one; None without any.

    Args:
        engine: whose answers they are.
        outputs: the worst samples of every output, by its name.
        least: the SQNR that all samples together must have, in dB.
    """
    named = [
        f"output {name!r} in sample {each.sample} ({_describe_own(each, '')})"
        for name, worst in outputs
        for each in _list_below(worst, least, POOR_DB, POOR_TIMES)
    ]
    if not named:
        return None
    return (
        f"Single answers of {engine} are far off, though all together are near: "
        f"{', '.join(named[:KEPT])}. Look at these samples; if such ones matter, calibrate on some."
    )


def _describe_own(each: SampleParity, before: str = "an SQNR of ") -> str:
    """Of a sample; one whose answer should be 0 throughout has none."""
    if each.sqnr_db == -math.inf:
        return "an answer that should be 0"
    return f"{before}{each.sqnr_db:.1f} dB"


def _list_below(
    worst: tuple[SampleParity, ...], least: float, decibels: float, times: float
) -> list[SampleParity]:
    limit = decibels + min(0.0, least - USUAL_DB)
    return [each for each in worst if each.sqnr_db <= limit and each.times_median >= times]
