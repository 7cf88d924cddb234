"""How far a candidate's outputs are from the reference's, in memory that does not grow.

The reference is the user's eager model. A float64 run of it gives the noise floor: what eager
itself loses in float32. Everything is accumulated batch by batch, so outputs of any size can be
judged.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.accuracy import Accuracy, AccuracyAccumulator
from deploy.engines.base import Array

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class OutputParity:
    """One output against the reference's.

    Attributes:
        max_abs: largest absolute difference, in the output's unit.
        mean_abs: mean absolute difference.
        relative_to_range: `max_abs` over the reference's max minus min.
        cosine: cosine similarity of all values as one vector.
        sqnr_db: 10 log10 of signal over error power; inf where outputs are identical.
        top1_agreement: share of rows with the same argmax; None unless it is (rows, classes).
        error_eager: max |candidate - eager| / max |eager|.
        error_float64: max |candidate - exact| / max |exact|; None where no floor was taken.
        noise_float64: the same of eager itself, over several runs; see `deploy.reference`.
        finite: NaN and Inf stand where the reference has the same, and nowhere else. The other
            metrics are of the finite values.
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


@dataclass(frozen=True)
class SizeParity:
    """The SQNR of the worst output at other sizes of the dynamic axes, in dB.

    Infinite where outputs are identical; -inf where NaN or Inf stand in other places.
    """

    sizes: Mapping[str, int]
    sqnr_db: float


@dataclass(frozen=True)
class ParityReport:
    """All outputs of one candidate, its accuracy, and its agreement with itself across batches.

    Attributes:
        classes_of: the output that the accuracy is of; None without labels.
        sizes_checked: what was seen at other sizes than the best; empty where there are none.
        batches_checked: every batch size that was run, ascending.
        consistency_db: smallest SQNR of the outputs at one batch size against the same samples at
            batch 1; inf where identical, None with a static batch.
    """

    outputs: tuple[OutputParity, ...]
    accuracy: Accuracy | None
    samples: int
    batches_checked: tuple[int, ...]
    consistency_db: float | None
    classes_of: str | None
    sizes_checked: tuple[SizeParity, ...] = ()

    @property
    def sqnr_db(self) -> float:
        """The worst output's SQNR in dB."""
        return min(output.sqnr_db for output in self.outputs)

    @property
    def judged_accuracy(self) -> Accuracy | None:
        """The accuracy, where the labels judge anything; see `Accuracy.above_chance`."""
        return self.accuracy if self.accuracy is not None and self.accuracy.above_chance else None


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
    scale64: float = 0.0
    seen64: bool = False
    finite: bool = True

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
        ours, theirs = self._order(reference), self._order(candidate)
        if not same_nonfinite(ours, theirs):
            self.finite = False
        shared = np.isfinite(ours) & np.isfinite(theirs)
        self.rows += ours.shape[0] if ours.ndim else 1
        self._add_differences(ours[shared], theirs[shared])
        self._add_top1(ours, theirs)
        if floor is not None:
            exact, noisy = (self._order(array) for array in floor)
            self._add_floor(exact, noisy, theirs)

    def _order(self, values: Array) -> Floats:
        """In float64, the samples first."""
        wide: Floats = np.asarray(values, dtype=np.float64)
        return np.moveaxis(wide, self.axis, 0) if self.axis and wide.ndim > self.axis else wide

    def _add_differences(self, ours: Floats, theirs: Floats) -> None:
        difference = np.abs(ours - theirs)
        self.count += ours.size
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        self.sum_abs += float(difference.sum())
        self.signal += float(np.square(ours).sum())
        self.power += float(np.square(theirs).sum())
        self.dot += float((ours * theirs).sum())
        self.error += float(np.square(difference).sum())
        self.low = min(self.low, float(ours.min(initial=math.inf)))
        self.high = max(self.high, float(ours.max(initial=-math.inf)))

    def _add_top1(self, ours: Floats, theirs: Floats) -> None:
        no_classes = self.axis is None or ours.ndim != 2 or ours.shape[1] < 2
        if self.same_top1 is None or no_classes:
            self.same_top1 = None
            return
        self.same_top1 += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())

    def _add_floor(self, exact: Floats, noisy: Floats, theirs: Floats) -> None:
        shared = np.isfinite(exact) & np.isfinite(noisy) & np.isfinite(theirs)
        exact, noisy, theirs = exact[shared], noisy[shared], theirs[shared]
        self.seen64 = True
        self.scale64 = max(self.scale64, float(np.abs(exact).max(initial=0.0)))
        self.error64 = max(self.error64, float(np.abs(theirs - exact).max(initial=0.0)))
        self.noise64 = max(self.noise64, float(np.abs(noisy - exact).max(initial=0.0)))

    def result(self) -> OutputParity:
        """The metrics of all that was added."""
        span = self.high - self.low
        norm = math.sqrt(self.signal * self.power)
        scale = self.scale64 or 1.0
        return OutputParity(
            name=self.name,
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / max(self.count, 1),
            relative_to_range=self.max_abs / span if span > 0 else self.max_abs,
            cosine=self.dot / norm if norm > 0 else float(self.signal == self.power),
            sqnr_db=decibels(self.signal, self.error),
            top1_agreement=None if self.same_top1 is None else self.same_top1 / max(self.rows, 1),
            error_eager=self.max_abs / (max(abs(self.low), abs(self.high)) or 1.0),
            error_float64=self.error64 / scale if self.seen64 else None,
            noise_float64=self.noise64 / scale if self.seen64 else None,
            finite=self.finite,
        )


@dataclass
class ParityAccumulator:
    """Sums over batches for all outputs of one candidate, and its hits against labels.

    `axes` has the axis of the samples by output, None where there is none; by default the first.
    """

    names: tuple[str, ...]
    classes_of: str | None = None
    axes: Mapping[str, int | None] = field(default_factory=dict)
    outputs: dict[str, OutputAccumulator] = field(default_factory=dict)
    accuracy: AccuracyAccumulator = field(default_factory=AccuracyAccumulator)
    consistency_db: float | None = None
    samples: int = 0
    batches: set[int] = field(default_factory=set)
    sizes: list[SizeParity] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outputs = {
            name: OutputAccumulator(name, self.axes.get(name, 0)) for name in self.names
        }

    def update(
        self,
        reference: dict[str, Array],
        candidate: dict[str, Array],
        *,
        rows: int,
        floor: tuple[dict[str, Array], dict[str, Array]] | None = None,
        labels: Array | None = None,
    ) -> None:
        """Add one batch of `rows` samples; `labels` are class indices, shape (rows,).

        Raises:
            ValueError: an output is missing or has another shape.
        """
        missing = [name for name in self.names if name not in candidate]
        if missing:
            raise ValueError(f"output {missing[0]!r} is missing")
        for name, accumulator in self.outputs.items():
            exact = None if floor is None else (floor[0][name], floor[1][name])
            accumulator.update(reference[name], candidate[name], exact)
        self.samples += rows
        self.batches.add(rows)
        if labels is not None and self.classes_of is not None:
            self.accuracy.update(reference[self.classes_of], candidate[self.classes_of], labels)

    def check_consistency(
        self, single: dict[str, Array], batched: dict[str, Array], *, rows: int
    ) -> None:
        """Compare the outputs in `single`, run at batch 1, with the same samples run by `rows`."""
        self.batches |= {1, rows}
        for name in single:
            accumulator = OutputAccumulator(name, self.axes.get(name, 0))
            accumulator.update(single[name], batched[name])
            result = accumulator.result()
            worst = result.sqnr_db if result.finite else -math.inf
            known = math.inf if self.consistency_db is None else self.consistency_db
            self.consistency_db = min(known, worst)

    def check_sizes(
        self,
        reference: Mapping[str, Array],
        candidate: Mapping[str, Array],
        *,
        sizes: Mapping[str, int],
    ) -> None:
        """Compare the outputs at other sizes of the dynamic axes.

        Raises:
            ValueError: an output is missing or has another shape.
        """
        worst = math.inf
        for name in self.names:
            if name not in candidate:
                raise ValueError(f"output {name!r} is missing")
            accumulator = OutputAccumulator(name, self.axes.get(name, 0))
            accumulator.update(reference[name], candidate[name])
            result = accumulator.result()
            worst = min(worst, result.sqnr_db if result.finite else -math.inf)
        self.sizes.append(SizeParity(dict(sizes), worst))

    def result(self) -> ParityReport:
        """The report of all that was added."""
        return ParityReport(
            outputs=tuple(accumulator.result() for accumulator in self.outputs.values()),
            accuracy=self.accuracy.result(),
            samples=self.samples,
            batches_checked=tuple(sorted(self.batches)),
            consistency_db=self.consistency_db,
            classes_of=self.classes_of,
            sizes_checked=tuple(self.sizes),
        )


def same_nonfinite(ours: Array, theirs: Array) -> bool:
    """Whether NaN, Inf and -Inf stand in the same places of two arrays of equal shape."""
    left, right = np.isfinite(ours), np.isfinite(theirs)
    return np.array_equal(left, right) and np.array_equal(
        ours[~left], theirs[~left], equal_nan=True
    )


def decibels(signal: float, error: float) -> float:
    """10 log10(signal / error); inf without error, -inf without signal."""
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf
