"""What is looked at in every request: NaN and infinity in outputs, inputs beyond calibration.

A request whose outputs hold NaN or infinity is refused with a 500, and counted: no caller is
prepared for a score that compares as neither larger nor smaller. Outputs in which the reference
itself had such values when it was recorded (masks of minus infinity) are exempt, and with
``--nonfinite report`` all are only counted. Inputs beyond the range of the calibration data are
counted and answered: int8 clips them, and what it answers then nobody has judged.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from deploy.engines.base import Array, Feeds
from deploy.serving.errors import NonFiniteError, RequestError
from deploy.serving.http.encoding import FEW, is_finite

NonFinite = Literal["refuse", "report"]
MARGIN = 0.1
"""Of the width of the calibration range, by which an input may exceed it."""


@dataclass(frozen=True)
class GuardPlan:
    """What the guard holds requests against.

    Attributes:
        ranges: smallest and largest calibration value of each input; empty: not recorded.
        exempt: outputs that held NaN or infinity when they were recorded.
        nonfinite: ``refuse``: answer an error in place of such outputs; ``report``: only count.
    """

    ranges: Mapping[str, tuple[float, float]]
    exempt: frozenset[str] = frozenset()
    nonfinite: NonFinite = "refuse"


class Guard:
    """Looks at inputs and outputs of every request; is called from the engines' threads."""

    def __init__(self, plan: GuardPlan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self.nonfinite = 0
        self.out_of_range = 0
        self._limits = {name: _widen(low, high) for name, (low, high) in plan.ranges.items()}

    def __call__(self, feeds: Feeds, outputs: Mapping[str, Array]) -> RequestError | None:
        """What to answer in place of `outputs`; None: they may go."""
        if self._limits and not self._in_range(feeds):
            with self._lock:
                self.out_of_range += 1
        for name, array in outputs.items():
            if name in self._plan.exempt or is_finite(array):
                continue
            with self._lock:
                self.nonfinite += 1
            if self._plan.nonfinite == "refuse":
                return NonFiniteError(
                    f"output {name!r} holds NaN or infinity, which this model's reference did not"
                )
            return None
        return None

    def _in_range(self, feeds: Feeds) -> bool:
        return all(_is_within(feeds[name], low, high) for name, (low, high) in self._limits.items())


def _widen(low: float, high: float) -> tuple[float, float]:
    """The range with its margin, rounded outwards to float32: large whole numbers stay within."""
    low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
    return min(low, float(np.float32(low))), max(high, float(np.float32(high)))


def _is_within(array: Array, low: float, high: float) -> bool:
    """Whether all values are; NaN is not."""
    if array.size <= FEW:
        return all(low <= value <= high for value in array.ravel().tolist())
    return bool(low <= array.min() and array.max() <= high)


def find_nonfinite(outputs: Feeds) -> frozenset[str]:
    """The outputs that hold NaN or infinity."""
    return frozenset(
        name for name, array in outputs.items() if not np.isfinite(np.asarray(array)).all()
    )
