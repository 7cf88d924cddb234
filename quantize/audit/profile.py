"""What a stream of model inputs looks like, sample by sample and channel by channel."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

Feeds = Mapping[str, np.ndarray]


@dataclass
class InputStatistic:
    """One input of floats or images; channels are its second axis, those of images their last one.

    Arrays are [channels], float64.

    Attributes:
        samples: how many were seen.
        low, high: of each channel.
        origin: a value near each channel's mean, from which `squares` are measured.
        total, mean_squares: sums over the samples of each channel's mean, and of its square.
        squares, squares_squared: likewise of its mean squared distance from `origin`.
        whole: all values were whole numbers.
        pixels: it takes uint8 images.
        columns: a channel is one value of a sample, such as a column of a table.
    """

    samples: int
    low: np.ndarray
    high: np.ndarray
    origin: np.ndarray
    total: np.ndarray
    mean_squares: np.ndarray
    squares: np.ndarray
    squares_squared: np.ndarray
    whole: bool
    pixels: bool = False
    columns: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether all values were."""
        return bool(np.isfinite(self.squares).all())

    @property
    def mean(self) -> np.ndarray:
        """Of each channel."""
        result: np.ndarray = self.total / self.samples
        return result

    @property
    def variance(self) -> np.ndarray:
        """Of the values of each channel."""
        offset = self.mean - self.origin
        result: np.ndarray = np.maximum(self.squares / self.samples - offset**2, 0)
        return result

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of the values of each channel."""
        result: np.ndarray = np.sqrt(self.variance)
        return result

    @property
    def error_of_mean(self) -> np.ndarray:
        """Standard error of `mean`, from how the means of single samples differ."""
        return self._error_of(self.total, self.mean_squares)

    @property
    def error_of_variance(self) -> np.ndarray:
        """Standard error of `variance`, from how the spreads of single samples differ."""
        return self._error_of(self.squares, self.squares_squared)

    def _error_of(self, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
        variance = np.maximum(squares / self.samples - (total / self.samples) ** 2, 0)
        result: np.ndarray = np.sqrt(variance / max(1, self.samples - 1))
        return result

    def merge(self, other: "InputStatistic") -> None:
        """Add what another saw of the same input, measured from the same origin."""
        self.samples += other.samples
        self.low = np.minimum(self.low, other.low)
        self.high = np.maximum(self.high, other.high)
        self.total = self.total + other.total
        self.mean_squares = self.mean_squares + other.mean_squares
        self.squares = self.squares + other.squares
        self.squares_squared = self.squares_squared + other.squares_squared
        self.whole = self.whole and other.whole


class InputProfile:
    """Accumulates over batches; a sample costs 16 bytes.

    Attributes:
        samples: how many were seen.
        inputs: those of floats and of images by name; one whose channels change in number is left
            out.
        constant: samples that have such an input of one value only.
        digests: of the samples, all inputs together → how many are the same.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.inputs: dict[str, InputStatistic] = {}
        self.constant = 0
        self.digests: dict[bytes, int] = {}
        self._dropped: set[str] = set()

    @property
    def repeated(self) -> int:
        """Samples that have been seen before."""
        return self.samples - len(self.digests)

    def watch(self, batches: Iterable[Feeds]) -> Iterator[Feeds]:
        """The same batches, noted as they pass."""
        for batch in batches:
            self.take(batch)
            yield batch

    def take(self, batch: Feeds) -> None:
        """Note a batch; its inputs share a leading axis, others are passed over."""
        size = max((len(array) for array in batch.values() if array.ndim), default=0)
        rows = {name: array for name, array in batch.items() if array.ndim and len(array) == size}
        if not size:
            return
        self.samples += size
        constant = np.zeros(size, bool)
        for name, array in sorted(rows.items()):
            if (array.dtype.kind == "f" or _holds_images(array)) and array.size:
                with np.errstate(all="ignore"):  # NaN is for calibration to name
                    constant |= self._take_floats(name, array)
        self.constant += int(constant.sum())
        for row in range(size):
            digest = hashlib.blake2b(digest_size=16)
            for name, array in sorted(rows.items()):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(array[row]).tobytes())
            key = digest.digest()
            self.digests[key] = self.digests.get(key, 0) + 1

    def _take_floats(self, name: str, array: np.ndarray) -> np.ndarray:
        """Note one input; tells which of its samples are constant."""
        size, pixels = len(array), _holds_images(array)
        array = np.moveaxis(array, -1, 1) if pixels else array
        channels = array.shape[1] if array.ndim > 1 else 1
        values = array.reshape(size, channels, -1)
        lows, highs = values.min(axis=2), values.max(axis=2)
        means = values.mean(axis=2, dtype=np.float64)
        known = self.inputs.get(name)
        origin = means.mean(axis=0)
        if known is not None and known.origin.shape == origin.shape:
            origin = known.origin
        squares = np.square(values - origin[:, None], dtype=np.float64).mean(axis=2)
        new = InputStatistic(
            samples=size,
            low=lows.min(axis=0).astype(np.float64),
            high=highs.max(axis=0).astype(np.float64),
            origin=origin,
            total=means.sum(axis=0),
            mean_squares=(means**2).sum(axis=0),
            squares=squares.sum(axis=0),
            squares_squared=(squares**2).sum(axis=0),
            whole=(known is None or known.whole) and bool((values == np.rint(values)).all()),
            pixels=pixels,
            columns=array.ndim == 2,
        )
        if name in self._dropped or (known and known.low.shape != new.low.shape):
            self._dropped.add(name)
            self.inputs.pop(name, None)
        elif known:
            known.merge(new)
        else:
            self.inputs[name] = new
        if values[0].size == 1:
            return np.zeros(size, bool)
        alike: np.ndarray = lows.min(axis=1) == highs.max(axis=1)
        return alike


def _holds_images(array: np.ndarray) -> bool:
    """Whether it is [N, H, W, C] as image inputs take it."""
    return array.dtype == np.uint8 and array.ndim == 4
