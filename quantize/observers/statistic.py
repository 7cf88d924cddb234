"""What calibration keeps of one tensor: all that any observer reads, of a size that stays."""

import copy
from dataclasses import dataclass

import numpy as np

from export.errors import QuantizeError
from quantize.observers.histogram import Histogram

Span = tuple[float, float]
"""(low, high) in the tensor's unit."""

MOMENTUM = 0.01
"""Weight of a new batch in the moving average, torch.ao's ``averaging_constant``."""


@dataclass(frozen=True)
class Summary:
    """One batch of one tensor.

    Attributes:
        low, high, mean: over all axes but those of the samples and the channels: [samples,
            channels], or [samples] or one number of a tensor that has no such axes.
        channels: whether the second axis of these is the channels.
        values: the tensor's values, or a sample of them, flat; None where nobody asked.
        size: how many values the tensor had; 0 where nobody asked.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    channels: bool = False
    values: np.ndarray | None = None
    size: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether the tensor had no values."""
        return self.low.size == 0

    @property
    def is_finite(self) -> bool:
        """Whether every value of the tensor is: a NaN or an infinity would show in the mean."""
        return all(np.isfinite(part).all() for part in (self.low, self.high, self.mean))


@dataclass(frozen=True)
class ChannelStatistic:
    """What each channel of a tensor held; arrays [channels], float64."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray


class TensorStatistic:
    """Everything that was seen of a tensor, batch after batch.

    Extents and means are of all values; the histogram is of the values that the summaries carry.

    Args:
        name: of the tensor, for messages.

    Attributes:
        histogram: of the values, or of a sample of them.
        row_size: values of one step of the leading axis, at the most; 0 where it is not known.
    """

    def __init__(self, name: str = "tensor") -> None:
        self.name = name
        self.histogram = Histogram()
        self.row_size = 0
        self._low, self._high = np.inf, -np.inf
        self._average: Span | None = None
        self._channels: _ChannelSums | None = None
        self._has_channels = True

    def update(self, summary: Summary) -> None:
        """Take one batch, all of its values finite."""
        if summary.is_empty:
            return
        low, high = float(summary.low.min()), float(summary.high.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        rows = len(summary.low) if summary.low.ndim else 1
        self.row_size = max(self.row_size, summary.size // rows)
        past = self._average or (low, high)
        self._average = (
            past[0] + MOMENTUM * (low - past[0]),
            past[1] + MOMENTUM * (high - past[1]),
        )
        if summary.values is not None:
            self.histogram.add(summary.values)
            self.histogram.reach(low, high)
        self._update_channels(summary)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was observed."""
        return self._low > self._high

    @property
    def extent(self) -> Span:
        """Smallest and largest value.

        Raises:
            QuantizeError: nothing was observed.
        """
        if self.is_empty:
            raise QuantizeError(
                f"Tensor {self.name!r} was never observed: no calibration data reached it."
            )
        return self._low, self._high

    @property
    def average(self) -> Span:
        """Moving average of the smallest and the largest value of a batch; depends on their order.

        Raises:
            QuantizeError: nothing was observed.
        """
        return self._average or self.extent

    @property
    def channels(self) -> ChannelStatistic | None:
        """Of every channel; None where the tensor has no channels, or not always as many."""
        return None if self._channels is None else self._channels.finish()

    def copy(self) -> "TensorStatistic":
        """What was seen so far, as one that goes on by itself."""
        twin = copy.copy(self)
        twin.histogram = self.histogram.copy()
        twin._channels = copy.copy(self._channels)
        return twin

    def _update_channels(self, summary: Summary) -> None:
        self._has_channels = self._has_channels and summary.channels
        new = _ChannelSums.of(summary) if self._has_channels else None
        if new is None or (self._channels and self._channels.low.shape != new.low.shape):
            self._channels, self._has_channels = None, False
        else:
            self._channels = new if self._channels is None else self._channels + new


@dataclass(frozen=True)
class _ChannelSums:
    low: np.ndarray
    high: np.ndarray
    total: np.ndarray
    rows: int

    @classmethod
    def of(cls, summary: Summary) -> "_ChannelSums":
        return cls(
            summary.low.min(axis=0).astype(np.float64),
            summary.high.max(axis=0).astype(np.float64),
            summary.mean.sum(axis=0, dtype=np.float64),
            len(summary.mean),
        )

    def __add__(self, other: "_ChannelSums") -> "_ChannelSums":
        return _ChannelSums(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.total + other.total,
            self.rows + other.rows,
        )

    def finish(self) -> ChannelStatistic:
        return ChannelStatistic(self.low, self.high, self.total / self.rows)
