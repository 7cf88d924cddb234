"""How far one output of a candidate is from the reference's, in sums over batches, in float64."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.engines.base import Array
from deploy.judging.channels import ChannelPowers, FlatChannels, LostChannels
from deploy.judging.worst_samples import SampleParity, SamplePowers
from export.masks import open_masks

Floats = np.ndarray[Any, np.dtype[np.float64]]

_COLOURS = (3, 4)
_PIXEL_SPAN = 128
"""Between the darkest and the brightest value of what is taken for images."""


@dataclass(frozen=True)
class OutputParity:
    """One output against the reference's.

    Attributes:
        max_abs: largest absolute difference, in the output's unit.
        mean_abs: mean absolute difference.
        relative_to_range: `max_abs` over the reference's max minus min.
        cosine: cosine similarity of all values as one vector.
        sqnr_db: 10 log10 of signal over error power; inf where outputs are identical.
        top1_agreement: share of rows with the same argmax, or with one that eager's own noise does
            not tell from it, where it is (rows, classes); of integers the share of equal values;
            else None.
        error_eager: max |candidate - eager| / max |eager|; of integers the share that differs.
        error_float64: the same against the exact output; None where no floor was taken.
        noise_float64: the same of eager itself, over several runs; see `deploy.judging.reference`.
        finite: NaN and Inf stand where the reference has the same, and nowhere else. The other
            metrics are of the finite values, and not of those that stand for minus infinity (see
            `export.masks`).
        integer: integers or booleans, such as class numbers: how far apart they are means nothing.
        lost_channels: see there; None of integers, and where there are no channels.
        compared: how many rows, of integers values, `top1_agreement` is a share of.
        pixels: integers that are colour images, see `hold_colours`, whose values are amounts.
        worst_samples: the samples that fare worst; empty of integers that are no amounts, without
            an axis of samples, and where outputs are identical.
        flat_channels: see there; None without any, and of integers.
        varying_db: 10 log10 of the power of all by which its values differ (see
            `deploy.judging.channels`) over that of the error; None where they do not, or enough are
            not seen, and of integers.
        step: relative rounding of the reference's format where that is coarser than float32, else
            0: a value that lies between two numbers of float16 may become either.
        power_ratio: mean power of the error over that of eager's own, which is taken against the
            exact output; the larger of that against the exact output and that against eager, which
            is of all samples. None of integers, and where no floor was taken.
    """

    name: str
    max_abs: float
    mean_abs: float
    relative_to_range: float
    cosine: float
    sqnr_db: float
    top1_agreement: float | None
    error_eager: float
    error_float64: float | None
    noise_float64: float | None
    finite: bool
    integer: bool = False
    lost_channels: LostChannels | None = None
    compared: int = 0
    pixels: bool = False
    worst_samples: tuple[SampleParity, ...] = ()
    flat_channels: FlatChannels | None = None
    varying_db: float | None = None
    step: float = 0.0
    power_ratio: float | None = None

    @property
    def is_amount(self) -> bool:
        """Whether it says something how far apart two values are."""
        return not self.integer or self.pixels

    @property
    def nearness_db(self) -> float:
        """`sqnr_db`; of integers as if each held 1, and each that differs were off by 1."""
        return self.sqnr_db if self.is_amount else decibels(1.0, self.error_eager)


@dataclass
class _Differing:
    """Values of an integer output that differ: from eager, from the exact ones; eager's own."""

    eager: int = 0
    exact: int = 0
    noise: int = 0
    count64: int = 0


@dataclass
class OutputAccumulator:
    """Sums over batches for one output, all in float64.

    `axis` is that of the samples; an output without one has no rows and no classes.
    """

    name: str
    axis: int | None = 0
    count: int = 0
    rows: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    signal: float = 0.0
    power: float = 0.0
    dot: float = 0.0
    error: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    same_top1: int | None = 0
    error64: float = 0.0
    noise64: float = 0.0
    error_power64: float = 0.0
    noise_power64: float = 0.0
    count64: int = 0
    scale64: float = 0.0
    seen64: bool = False
    finite: bool = True
    integer: bool = False
    colours: bool = False
    step: float = 0.0
    differing: _Differing = field(default_factory=_Differing)
    channels: ChannelPowers = field(default_factory=ChannelPowers)
    samples: SamplePowers = field(default_factory=SamplePowers)

    def update(
        self, reference: Array, candidate: Array, floor: tuple[Array, Array] | None = None
    ) -> None:
        """Add one batch; arrays are of equal shape, with the samples on `axis`.

        Args:
            reference: eager's output.
            candidate: the engine's output.
            floor: the exact output, and eager's own that is farthest from it, as noise.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != candidate.shape:
            raise ValueError(
                f"output {self.name!r} has shape {list(candidate.shape)} instead of "
                f"{list(reference.shape)}"
            )
        self.integer = self.integer or reference.dtype.kind in "biu"
        self.step = float(np.finfo(np.float16).eps) if reference.dtype == np.float16 else 0.0
        ours, theirs = self._open(self._order(reference), self._order(candidate))
        if not same_nonfinite(ours, theirs):
            self.finite = False
        shared = np.isfinite(ours) & np.isfinite(theirs)
        self.rows += ours.shape[0] if ours.ndim else 1
        whole = bool(shared.all())
        pair = (ours.ravel(), theirs.ravel()) if whole else (ours[shared], theirs[shared])
        self._add_differences(*pair)
        if self.axis is not None and ours.ndim > self.axis:
            self.samples.update(ours, theirs)
        self.colours = hold_colours(reference)
        if self.integer:
            self._count_differing(reference, candidate, floor)
        else:
            self.channels.update(ours, theirs)
        if floor is not None:
            exact, noisy = (self._order(array) for array in floor)
            self._add_floor(exact, noisy, self._order(candidate))
        self._add_top1(ours, theirs)

    def _open(self, values: Floats, *others: Floats) -> tuple[Floats, ...]:
        """See `open_masks`; integers have no numbers that stand for infinity."""
        return (values, *others) if self.integer else open_masks(values, *others)

    def _order(self, values: Array) -> Floats:
        """In float64, the samples first."""
        wide: Floats = np.asarray(values, dtype=np.float64)
        return np.moveaxis(wide, self.axis, 0) if self.axis and wide.ndim > self.axis else wide

    def _add_differences(self, ours: Floats, theirs: Floats) -> None:
        difference = ours - theirs
        np.abs(difference, out=difference)
        self.count += ours.size
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        self.sum_abs += float(difference.sum())
        self.signal += float(np.dot(ours, ours))
        self.power += float(np.dot(theirs, theirs))
        self.dot += float(np.dot(ours, theirs))
        self.error += float(np.dot(difference, difference))
        self.low = min(self.low, float(ours.min(initial=math.inf)))
        self.high = max(self.high, float(ours.max(initial=-math.inf)))

    def _add_top1(self, ours: Floats, theirs: Floats) -> None:
        no_classes = self.axis is None or ours.ndim != 2 or ours.shape[1] < 2
        if self.same_top1 is None or no_classes:
            self.same_top1 = None
            return
        rows = np.arange(len(ours))
        best, chosen = ours.max(axis=1), ours[rows, theirs.argmax(axis=1)]
        with np.errstate(invalid="ignore"):  # of two infinities
            tied = (chosen == best) | (best - chosen <= 2 * self.noise64)
        tied |= ours.argmax(axis=1) == theirs.argmax(axis=1)  # the same NaN in both
        self.same_top1 += int(tied.sum())

    def _count_differing(
        self, reference: Array, candidate: Array, floor: tuple[Array, Array] | None
    ) -> None:
        """Integers as they are: float64 holds not all of 64 bits."""
        self.differing.eager += int((reference != candidate).sum())
        if floor is not None:
            exact, noisy = floor
            self.differing.count64 += exact.size
            self.differing.exact += int((candidate != exact).sum())
            self.differing.noise += int((noisy != exact).sum())

    def _add_floor(self, exact: Floats, noisy: Floats, theirs: Floats) -> None:
        exact, noisy, theirs = self._open(exact, noisy, theirs)
        shared = np.isfinite(exact) & np.isfinite(noisy) & np.isfinite(theirs)
        exact, noisy, theirs = exact[shared], noisy[shared], theirs[shared]
        self.seen64 = True
        self.scale64 = max(self.scale64, float(np.abs(exact).max(initial=0.0)))
        error, noise = np.abs(theirs - exact), np.abs(noisy - exact)
        self.error64 = max(self.error64, float(error.max(initial=0.0)))
        self.noise64 = max(self.noise64, float(noise.max(initial=0.0)))
        self.error_power64 += float(np.square(error).sum())
        self.noise_power64 += float(np.square(noise).sum())
        self.count64 += exact.size

    def result(self) -> OutputParity:
        """The metrics of all that was added."""
        span = self.high - self.low
        norm = math.sqrt(self.signal * self.power)
        error_eager, error64, noise64 = self._errors()
        same, compared = self.same_top1, self.rows
        if self.integer:  # where there are none, none differs
            same, compared = max(self.count, 1) - self.differing.eager, self.count
        pixels = self.colours and span >= _PIXEL_SPAN
        varying = self.channels.measure_variation()
        return OutputParity(
            name=self.name,
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / max(self.count, 1),
            relative_to_range=self.max_abs / span if span > 0 else self.max_abs,
            cosine=self.dot / norm if norm > 0 else float(self.signal == self.power),
            sqnr_db=decibels(self.signal, self.error),
            top1_agreement=None if same is None else same / max(compared, 1),
            error_eager=error_eager,
            error_float64=error64 if self.seen64 else None,
            noise_float64=noise64 if self.seen64 else None,
            finite=self.finite,
            integer=self.integer,
            lost_channels=self.channels.result(),
            compared=compared,
            pixels=pixels,
            worst_samples=() if self.integer and not pixels else self.samples.result(),
            flat_channels=self.channels.find_flat(),
            varying_db=None if varying is None else decibels(varying, 1.0),
            step=self.step,
            power_ratio=None if self.integer or not self.seen64 else self._compare_powers(),
        )

    def _compare_powers(self) -> float:
        """Mean powers of errors over that of eager's noise; infinite over none."""
        size64 = max(self.count64, 1)
        noise = self.noise_power64 / size64
        error = max(self.error_power64 / size64, self.error / max(self.count, 1))
        if noise == 0:
            return math.inf if error else 0.0
        return error / noise

    def _errors(self) -> tuple[float, float, float]:
        """From eager, from the exact output, and of eager from that."""
        if self.integer:
            found, size64 = self.differing, max(self.differing.count64, 1)
            return found.eager / max(self.count, 1), found.exact / size64, found.noise / size64
        scale = self.scale64 or 1.0
        largest = max(abs(self.low), abs(self.high)) or 1.0
        return self.max_abs / largest, self.error64 / scale, self.noise64 / scale


def hold_colours(array: Array) -> bool:
    """Whether an array has the type and shape of colour images: uint8, three or four channels.

    Channels are the second axis or the last. Class numbers lie on maps without such an axis.
    """
    return array.dtype == np.uint8 and array.ndim == 4 and bool({*_COLOURS} & {*array.shape[1::2]})


def are_pixels(array: Array) -> bool:
    """Whether an array holds colour images of some contrast; masks of 0 and 1 have none."""
    return hold_colours(array) and int(np.ptp(array)) >= _PIXEL_SPAN


def same_nonfinite(ours: Array, theirs: Array) -> bool:
    """Whether NaN, Inf and -Inf stand in the same places of two arrays of equal shape."""
    left, right = np.isfinite(ours), np.isfinite(theirs)
    return np.array_equal(left, right) and np.array_equal(
        ours[~left], theirs[~left], equal_nan=True
    )


def decibels(signal: float, error: float) -> float:
    """10 log10(signal / error); inf without error, -inf without signal or beyond float64."""
    if error == 0:
        return math.inf
    if not math.isfinite(error):
        return -math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf
