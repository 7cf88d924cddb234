"""Whether requests gain by sharing a run, as the runs so far have shown.

On a GPU eight rows take about as long as one. On one core of a CPU they take eight times as long,
and then everybody in a run waits for the last of it: answered one after the other, the first has
its answer eight times sooner and the last no later. Nobody knows beforehand which it is, so the
runs tell.
"""

from dataclasses import dataclass

WORTH_IT = 0.95
"""Of the time that a row takes alone, below which it is worth to share."""

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

    Sizes are told apart by powers of two. Until enough runs of both kinds were seen, sharing pays.
    """

    def __init__(self) -> None:
        self._alone = _Mean()
        self._shared: dict[int, _Mean] = {}
        self._refused = 0

    def observe(self, requests: int, rows: int, seconds: float) -> None:
        """Count a run of so many requests with so many rows in all."""
        mean = self._alone
        if requests > 1:
            mean = self._shared.setdefault(rows.bit_length(), _Mean())
        mean.add((seconds + HANDOVER_S) / rows)

    def pays(self, rows: int) -> bool:
        """Whether requests of so many rows in all should share a run."""
        shared = self._shared.get(rows.bit_length())
        if shared is None or min(shared.count, self._alone.count) < _ENOUGH:
            return True
        if shared.value < WORTH_IT * self._alone.value:
            return True
        self._refused += 1
        if self._refused < _LOOK_AGAIN:
            return False
        self._refused = 0
        return True
