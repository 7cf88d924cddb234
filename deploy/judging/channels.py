"""Which channels of an output a candidate has lost, however little of its power they hold.

One SQNR over all values says nothing of small ones beside large ones: boxes in pixels and scores
between 0 and 1 in one tensor, of which int8 with one scale keeps the boxes and no score at all.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

_MOST = 2**16
"""Sizes of an axis beyond which it is no axis of channels."""
_LEAST_POWER = 1e-14
"""Of the largest channel's: what is smaller is the rounding of float32."""
_FEWEST_VALUES = 8
"""Of a channel, over all samples. With fewer, all of them may happen to be small: of five channels
of one value each, one was below an error of 25 dB in one output of eight."""


@dataclass(frozen=True)
class LostChannels:
    """Along the axis of an output that fares worst.

    Attributes:
        lost: channels whose error has at least the power of what they should hold: zeros would have
            been as good.
        live: channels that should hold anything.
    """

    lost: int
    live: int

    @property
    def share(self) -> float:
        """Of the channels that should hold anything."""
        return self.lost / max(self.live, 1)


@dataclass
class ChannelPowers:
    """Power of signal and error by channel, added up over batches.

    Channels are looked for on the axis behind the samples and on the last one, since both are in
    use: [N, C, H, W] and [N, anchors, features].
    """

    _sums: dict[int, tuple[Floats, Floats]] | None = field(default_factory=dict)
    _values: dict[int, int] = field(default_factory=dict)

    def update(self, ours: Floats, theirs: Floats) -> None:
        """Add one batch of equal shapes, samples first; what is not finite on both sides is 0."""
        if self._sums is None or ours.ndim < 2 or not ours.size:
            return
        shared = np.isfinite(ours) & np.isfinite(theirs)
        if not shared.all():
            ours, theirs = np.where(shared, ours, 0.0), np.where(shared, theirs, 0.0)
        error = theirs - ours
        for axis in {1, ours.ndim - 1}:
            if not 2 <= ours.shape[axis] <= _MOST:
                continue
            powers = _sum_powers(ours, axis), _sum_powers(error, axis)
            known = self._sums.get(axis, powers)
            if known[0].shape != powers[0].shape:
                self._sums = None  # of other sizes in every batch: no channels
                return
            values = ours.size // ours.shape[axis]
            self._values[axis] = self._values.get(axis, 0) + values
            new = axis not in self._sums
            self._sums[axis] = powers if new else (known[0] + powers[0], known[1] + powers[1])

    def result(self) -> LostChannels | None:
        """Of the axis that fares worst; None where there is none that could be one of channels.

        Nor is anything said of channels that were seen in fewer than `_FEWEST_VALUES` values.
        """
        found = [
            _count_lost(*powers)
            for axis, powers in (self._sums or {}).items()
            if self._values[axis] >= _FEWEST_VALUES
        ]
        return max(found, key=lambda each: each.share, default=None)


def _sum_powers(values: Floats, axis: int) -> Floats:
    shaped = values.reshape(-1, values.shape[axis], int(np.prod(values.shape[axis + 1 :])))
    powers: Floats = np.einsum("nck,nck->c", shaped, shaped)
    return powers


def _count_lost(signal: Floats, error: Floats) -> LostChannels:
    live = signal > _LEAST_POWER * signal.max()
    return LostChannels(int((live & (error >= signal)).sum()), int(live.sum()))
