"""Which channels of an output a candidate has lost, however little of its power they hold.

One SQNR over all values says nothing of small ones beside large ones: boxes in pixels and scores
between 0 and 1 in one tensor, of which int8 with one scale keeps the boxes and no score at all. Nor
does it of values that differ little beside what they have in common: of temperatures around 300 K
int8 may keep the 300, and give the same answer to everything.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.judging.worst_samples import USUAL_DB

Floats = np.ndarray[Any, np.dtype[np.float64]]

_MOST = 2**16
"""Sizes of an axis beyond which it is no axis of channels."""
_LEAST_POWER = 1e-14
"""Of the largest channel's: what is smaller is the rounding of float32."""
_LEAST_VARIATION = 1e-12
"""Of the power of values: where they differ by less, it is by the rounding of float32."""
_NAMED = 5
"""Channels that are named in a warning."""
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
        columns: see `name_channels`.
    """

    lost: int
    live: int
    columns: bool = field(default=False, compare=False)

    @property
    def share(self) -> float:
        """Of the channels that should hold anything."""
        return self.lost / max(self.live, 1)


@dataclass(frozen=True)
class FlatChannels:
    """Along the axis of an output that fares worst, as an engine may ship with, if they are few.

    Attributes:
        numbers: of the channels whose error has at least the power of all by which their values
            should differ from their mean: that would have been as good.
        count: channels in all.
        columns: see `name_channels`.
    """

    numbers: tuple[int, ...]
    count: int
    columns: bool = field(default=False, compare=False)


@dataclass
class _Powers:
    """By channel the sums over its values: squares, squared errors and the values themselves."""

    signal: Floats
    error: Floats
    total: Floats

    def add(self, other: "_Powers") -> "_Powers":
        return _Powers(
            self.signal + other.signal, self.error + other.error, self.total + other.total
        )

    def measure_variation(self, values: int) -> float | None:
        """Power of all by which `values` of each channel differ from its mean, over the error's."""
        with np.errstate(over="ignore", invalid="ignore"):  # beyond float64 nothing can be said
            varies = float((self.signal - self.total**2 / values).sum())
        error = float(self.error.sum())
        if not error or not varies > _LEAST_VARIATION * float(self.signal.sum()):
            return None
        return varies / error

    def list_flat(self, values: int) -> tuple[int, ...]:
        """Numbers of the channels of which the error leaves nothing but the mean."""
        with np.errstate(over="ignore", invalid="ignore"):
            varies = self.signal - self.total**2 / values
            live = (varies > _LEAST_VARIATION * self.signal) & _are_live(self.signal)
            return tuple(int(number) for number in np.flatnonzero(live & (self.error >= varies)))


@dataclass
class ChannelPowers:
    """Power of signal and error by channel, added up over batches.

    Channels are looked for on the axis behind the samples and on the last one, since both are in
    use: [N, C, H, W] and [N, anchors, features].
    """

    _sums: dict[int, _Powers] | None = field(default_factory=dict)
    _values: dict[int, int] = field(default_factory=dict)
    _whole: _Powers | None = None
    _count: int = 0
    _columns: bool = False

    def update(self, ours: Floats, theirs: Floats) -> None:
        """Add one batch of equal shapes, samples first; what is not finite on both sides is 0."""
        if not ours.size:
            return
        shared = np.isfinite(ours) & np.isfinite(theirs)
        if not shared.all():
            ours, theirs = np.where(shared, ours, 0.0), np.where(shared, theirs, 0.0)
        error = theirs - ours
        whole = _sum_powers(ours.reshape(-1, 1), error.reshape(-1, 1), 1)
        self._whole = whole if self._whole is None else self._whole.add(whole)
        self._count += ours.size
        self._columns = ours.ndim == 2
        if self._sums is None or ours.ndim < 2:
            return
        for axis in {1, ours.ndim - 1}:
            if not 2 <= ours.shape[axis] <= _MOST:
                continue
            powers = _sum_powers(ours, error, axis)
            known = self._sums.get(axis)
            if known is not None and known.signal.shape != powers.signal.shape:
                self._sums = None  # of other sizes in every batch: no channels
                return
            values = ours.size // ours.shape[axis]
            self._values[axis] = self._values.get(axis, 0) + values
            self._sums[axis] = powers if known is None else known.add(powers)

    def result(self) -> LostChannels | None:
        """Of the axis that fares worst; None where there is none that could be one of channels.

        Nor is anything said of channels that were seen in fewer than `_FEWEST_VALUES` values.
        """
        found = [_count_lost(powers, self._columns) for powers, _ in self._list_channels()]
        return max(found, key=lambda each: each.share, default=None)

    def measure_variation(self) -> float | None:
        """Power of all by which values differ over that of the error; None where they do not.

        What has a mean of its own, and so does not differ by that, is each channel of whichever
        axis leaves least.
        """
        if self._whole is None or self._count < _FEWEST_VALUES:
            return None
        found = [(self._whole, self._count), *self._list_channels()]
        ratios = [powers.measure_variation(values) for powers, values in found]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    def find_flat(self) -> FlatChannels | None:
        """None where there is no axis of channels, or no channel is flat."""
        found = [
            FlatChannels(powers.list_flat(values), len(powers.signal), self._columns)
            for powers, values in self._list_channels()
        ]
        worst = max(found, key=lambda each: len(each.numbers) / each.count, default=None)
        return worst if worst is not None and worst.numbers else None

    def _list_channels(self) -> list[tuple[_Powers, int]]:
        """By axis the powers of its channels, with the number of values of each, where enough."""
        return [
            (powers, self._values[axis])
            for axis, powers in (self._sums or {}).items()
            if self._values[axis] >= _FEWEST_VALUES
        ]


def name_channels(*, columns: bool) -> str:
    """What a user calls them: columns where a sample is a row of values, as in a table."""
    return "columns" if columns else "channels"


def explain_constant(name: str, varying_db: float | None, least: float) -> str | None:
    """What a gate says of an output that gives nothing but its mean; None where it gives more.

    Args:
        name: of the output.
        varying_db: what its values differ by over its error, see `ChannelPowers`.
        least: the SQNR that it must have in dB; where that is below `USUAL_DB`, less is asked here.
    """
    if varying_db is None or varying_db > min(0.0, least - USUAL_DB):
        return None
    return (
        f"output {name!r} differs from sample to sample and place to place by no more than it is "
        f"off ({varying_db:.1f} dB): its mean would be as near. Have the model give what is left "
        "of its answers without their mean, and add that behind the engine"
    )


def warn_of_flat(engine: str, outputs: Iterable[tuple[str, FlatChannels | None]]) -> str | None:
    """A sentence on channels of which an engine gives nothing but their mean; None without any.

    Args:
        engine: whose answers they are.
        outputs: by the name of each output such channels of it.
    """
    found = [(name, flat) for name, flat in outputs if flat is not None]
    if not found:
        return None
    named = [
        f"{', '.join(map(str, flat.numbers[:_NAMED]))}"
        f"{' and more' if len(flat.numbers) > _NAMED else ''} of the {flat.count} of {name!r}"
        for name, flat in found
    ]
    what = name_channels(columns=all(flat.columns for _, flat in found))
    return (
        f"{engine} gives nothing but their mean in {what} whose values differ little beside "
        f"others: {'; '.join(named)}. If they matter, return them as an output of its own, less "
        "their mean."
    )


def _sum_powers(ours: Floats, error: Floats, axis: int) -> _Powers:
    shape = (-1, ours.shape[axis], int(np.prod(ours.shape[axis + 1 :])))
    shaped, missed = ours.reshape(shape), error.reshape(shape)
    return _Powers(
        np.einsum("nck,nck->c", shaped, shaped),
        np.einsum("nck,nck->c", missed, missed),
        np.einsum("nck->c", shaped),
    )


def _count_lost(powers: _Powers, columns: bool) -> LostChannels:
    signal, error = powers.signal, powers.error
    live = _are_live(signal)
    return LostChannels(int((live & (error >= signal)).sum()), int(live.sum()), columns)


def _are_live(signal: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which channels hold more than the rounding of the largest."""
    live: np.ndarray[Any, np.dtype[np.bool_]] = signal > _LEAST_POWER * signal.max()
    return live
