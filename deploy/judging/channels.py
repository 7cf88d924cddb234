"""Which channels of an output a candidate has lost, however little of its power they hold.

One SQNR over all values says nothing of small ones beside large ones: boxes in pixels and scores
between 0 and 1 in one tensor, of which int8 with one scale keeps the boxes and no score at all. Nor
does it of values that differ little beside what they have in common: of temperatures around 300 K
int8 may keep the 300, and give the same answer to everything.
"""

import math
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
    """By channel the sums over its values: squares, squared errors, and differences from `origin`.

    That is a value near all of the channel's. Squares of the values themselves would hide, in their
    rounding over millions, how little they differ.
    """

    origin: Floats
    signal: Floats
    error: Floats
    moved: Floats
    squares: Floats
    count: Floats

    def add(self, other: "_Powers") -> "_Powers":
        """Both together; they have one origin."""
        return _Powers(
            self.origin,
            self.signal + other.signal,
            self.error + other.error,
            self.moved + other.moved,
            self.squares + other.squares,
            self.count + other.count,
        )

    def measure_variation(self) -> float | None:
        """Power of all by which values differ from the mean of their channel, over the error's."""
        varies, error = float(self._vary().sum()), float(self.error.sum())
        if not error or not varies > _LEAST_VARIATION * float(self.signal.sum()):
            return None
        return varies / error

    def list_flat(self) -> tuple[int, ...]:
        """Numbers of the channels of which the error leaves nothing but the mean."""
        varies = self._vary()
        with np.errstate(over="ignore", invalid="ignore"):
            live = (varies > _LEAST_VARIATION * self.signal) & _are_live(self.signal)
            return tuple(int(number) for number in np.flatnonzero(live & (self.error >= varies)))

    def _vary(self) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):  # beyond float64 nothing can be said
            varies: Floats = self.squares - self.moved**2 / np.maximum(self.count, 1)
        return varies


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
    _places: _Powers | None = None
    _samples: int | None = 0
    _columns: bool = False

    def update(self, ours: Floats, theirs: Floats) -> None:
        """Add one batch of equal shapes, samples first; what is not finite on both sides is 0."""
        if not ours.size:
            return
        shared = np.isfinite(ours) & np.isfinite(theirs)
        if not shared.all():
            ours, theirs = np.where(shared, ours, 0.0), np.where(shared, theirs, 0.0)
        batch = _Batch(ours, theirs - ours, None if shared.all() else shared)
        self._whole = batch.add_to(self._whole, (1, ours.size))
        self._count += ours.size
        self._columns = ours.ndim == 2
        if ours.ndim < 2:
            return
        self._add_places(batch)
        if self._sums is None:
            return
        for axis in {1, ours.ndim - 1}:
            if not 2 <= ours.shape[axis] <= _MOST:
                continue
            known = self._sums.get(axis)
            if known is not None and len(known.signal) != ours.shape[axis]:
                self._sums = None  # of other sizes in every batch: no channels
                return
            values = ours.size // ours.shape[axis]
            self._values[axis] = self._values.get(axis, 0) + values
            behind = math.prod(ours.shape[axis + 1 :])
            self._sums[axis] = batch.add_to(known, (ours.shape[axis], behind))

    def _add_places(self, batch: "_Batch") -> None:
        """Each value of a sample by itself, where these are not too many to be kept."""
        places = batch.ours[0].size
        same = self._places is None or len(self._places.signal) == places
        if self._samples is None or not same or places > _MOST:
            self._samples = self._places = None
            return
        self._samples += len(batch.ours)
        self._places = batch.add_to(self._places, (places, 1))

    def result(self) -> LostChannels | None:
        """Of the axis that fares worst; None where there is none that could be one of channels.

        Nor is anything said of channels that were seen in fewer than `_FEWEST_VALUES` values.
        """
        found = [_count_lost(powers, self._columns) for powers in self._list_channels()]
        return max(found, key=lambda each: each.share, default=None)

    def measure_variation(self) -> float | None:
        """Power of all by which values differ over that of the error; None where they do not.

        What has a mean of its own, and so does not differ by that, is each channel of whichever
        axis leaves least, and each place where enough samples were seen: what differs from place to
        place alone, such as where the joints of whoever stands there are, is no answer to a sample.
        """
        if self._whole is None or self._count < _FEWEST_VALUES:
            return None
        found = [self._whole, *self._list_channels()]
        if self._places is not None and (self._samples or 0) >= _FEWEST_VALUES:
            found.append(self._places)
        ratios = [powers.measure_variation() for powers in found]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    def find_flat(self) -> FlatChannels | None:
        """None where there is no axis of channels, or no channel is flat."""
        found = [
            FlatChannels(powers.list_flat(), len(powers.signal), self._columns)
            for powers in self._list_channels()
        ]
        worst = max(found, key=lambda each: len(each.numbers) / each.count, default=None)
        return worst if worst is not None and worst.numbers else None

    def _list_channels(self) -> list[_Powers]:
        """By axis the powers of its channels, where each has enough values."""
        return [
            powers
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
        f"output {name!r} differs from sample to sample by no more than it is off "
        f"({varying_db:.1f} dB): its mean would be as near. Have the model give what is left of "
        "its answers without their mean, and add that behind the engine"
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


@dataclass(frozen=True)
class _Batch:
    """Values, their errors, and which of them are finite; None: all."""

    ours: Floats
    error: Floats
    shared: np.ndarray[Any, np.dtype[np.bool_]] | None

    def add_to(self, known: _Powers | None, channels: tuple[int, int]) -> _Powers:
        """`known` with this batch, of so many channels, and values of one side by side."""
        shape = (-1, *channels)
        values, missed = self.ours.reshape(shape), self.error.reshape(shape)
        count = np.full(channels[0], values.size / channels[0])
        if self.shared is not None:
            count = self.shared.reshape(shape).sum(axis=(0, 2), dtype=np.float64)
        origin = known.origin if known is not None else _sum(values) / np.maximum(count, 1)
        moved = values - origin[:, None]
        if self.shared is not None:
            moved[~self.shared.reshape(shape)] = 0.0
        powers = _Powers(
            origin,
            _sum_squares(values),
            _sum_squares(missed),
            _sum(moved),
            _sum_squares(moved),
            count,
        )
        return powers if known is None else known.add(powers)


def _sum(values: Floats) -> Floats:
    """By channel, of [n, channels, k]."""
    total: Floats = np.einsum("nck->c", values)
    return total


def _sum_squares(values: Floats) -> Floats:
    squares: Floats = np.einsum("nck,nck->c", values, values)
    return squares


def _count_lost(powers: _Powers, columns: bool) -> LostChannels:
    signal, error = powers.signal, powers.error
    live = _are_live(signal)
    return LostChannels(int((live & (error >= signal)).sum()), int(live.sum()), columns)


def _are_live(signal: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which channels hold more than the rounding of the largest."""
    live: np.ndarray[Any, np.dtype[np.bool_]] = signal > _LEAST_POWER * signal.max()
    return live
