"""Whether requests gain by sharing a run, as the runs so far have shown.

On a GPU eight rows take about as long as one. On one core of a CPU they take eight times as long,
and then everybody in a run waits for the last of it: answered one after the other, the first has
its answer eight times sooner and the last no later. Nobody knows beforehand which it is, so the
runs tell, from the warm-up on.
"""

from collections.abc import Mapping
from dataclasses import dataclass

WORTH_IT = 0.8
"""Of the time that a row takes alone, below which it is worth to share. Of two that share, each has
its answer after 2 times that, instead of after 1 and 2, so at 0.75 they gain nothing on average."""

WORTH_IT_PRESSED = 0.97
"""The same while more waits than a run holds, where only the end of the queue counts."""

HANDOVER_S = 1.5e-4
"""Seconds that every run costs beside the engine's own time."""

_ENOUGH = 4
"""Runs below which nothing is concluded."""

_WEIGHT = 0.1
"""Of a new run in the mean; the first ones count alike."""

_LOOK_AGAIN = 64
"""After so many refusals a run is shared all the same, since machines and loads change."""


@dataclass(slots=True)
class _Mean:
    """A mean that forgets."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += max(_WEIGHT, 1 / self.count) * (value - self.value)


class JoiningGain:
    """Seconds a row of requests that ran alone, and of such that shared a run of a size.

    Sizes are told apart by powers of two. What is not known of one is taken from the next larger
    one, which gains no less; until enough runs were seen, sharing pays.

    Args:
        seconds: of a run by its rows, where a warm-up has measured some.
    """

    def __init__(self, seconds: Mapping[int, float] | None = None) -> None:
        self._alone = _Mean()
        self._shared: dict[int, _Mean] = {}
        self._refused = 0
        for rows, each in (seconds or {}).items():
            for _ in range(_ENOUGH):
                self.observe(rows, rows, each)

    def observe(self, requests: int, rows: int, seconds: float) -> None:
        """Count a run of so many requests with so many rows in all."""
        mean = self._alone
        if requests > 1:
            mean = self._shared.setdefault(rows.bit_length(), _Mean())
        mean.add((seconds + HANDOVER_S) / rows)

    def pays(self, rows: int, *, pressed: bool = False) -> bool:
        """Whether requests of so many rows in all should share a run.

        Args:
            rows: of all that would share it.
            pressed: more waits than a run holds.
        """
        shared = self._find(rows)
        if shared is None or self._alone.count < _ENOUGH:
            return True
        if shared.value < (WORTH_IT_PRESSED if pressed else WORTH_IT) * self._alone.value:
            return True
        self._refused += 1
        if self._refused < _LOOK_AGAIN:
            return False
        self._refused = 0
        return True

    def _find(self, rows: int) -> _Mean | None:
        """Of runs of this size, or of the next larger one of which enough is known."""
        known = (size for size, mean in self._shared.items() if mean.count >= _ENOUGH)
        nearest = min((size for size in known if size >= rows.bit_length()), default=None)
        return None if nearest is None else self._shared[nearest]
