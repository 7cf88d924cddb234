"""How far a candidate's outputs are from the reference's, in memory that does not grow.

The reference is the user's eager model. A float64 run of it gives the noise floor: what eager
itself loses in float32. Everything is accumulated batch by batch, so outputs of any size can be
judged.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from deploy.engines.base import Array
from deploy.judging.accuracy import (
    MIN_LABELLED,
    Accuracy,
    AccuracyAccumulator,
    LabelAccumulator,
)
from deploy.judging.layouts import LabelForm
from deploy.judging.output_parity import OutputAccumulator, OutputParity
from deploy.judging.place_accuracy import PlaceAccumulator
from deploy.judging.target_accuracy import TargetAccumulator
from deploy.judging.worst_samples import SamplePowers

_FEWEST_INTEGERS = 64
"""Values of an integer output from which a share of them says anything beside other outputs."""


@dataclass(frozen=True)
class SizeParity:
    """The SQNR of the worst output at other sizes of the dynamic axes, in dB.

    Of integers it is `OutputParity.nearness_db`.

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
            batch 1; inf where identical, None where that was not compared: with a static batch,
            without an output of an axis of samples, and where the model depends on the batch.
        batch_dependent: the model's own answers depend on the other samples of a batch.
    """

    outputs: tuple[OutputParity, ...]
    accuracy: Accuracy | None
    samples: int
    batches_checked: tuple[int, ...]
    consistency_db: float | None
    classes_of: str | None
    sizes_checked: tuple[SizeParity, ...] = ()
    batch_dependent: bool = False

    @property
    def worst_output(self) -> OutputParity:
        """The one that is farthest off, by `OutputParity.nearness_db`."""
        return min(self.outputs, key=lambda output: output.nearness_db)

    @property
    def sqnr_db(self) -> float:
        """The worst output's SQNR in dB; of integers `OutputParity.nearness_db`."""
        return self.worst_output.nearness_db

    @property
    def least_sqnr_db(self) -> float:
        """`sqnr_db`, or that at other sizes where it is less."""
        return min(self.sqnr_db, *(seen.sqnr_db for seen in self.sizes_checked), math.inf)

    @property
    def judged_accuracy(self) -> Accuracy | None:
        """The accuracy, where the labels judge anything; see `Accuracy.above_chance`."""
        return self.accuracy if self.accuracy is not None and self.accuracy.above_chance else None

    @property
    def held_accuracy(self) -> Accuracy | None:
        """`judged_accuracy`, where there are enough labels for it to decide."""
        judged = self.judged_accuracy
        return judged if judged is not None and judged.samples >= MIN_LABELLED else None


@dataclass
class ParityAccumulator:
    """Sums over batches for all outputs of one candidate, and its hits against labels.

    `axes` has the axis of the samples by output, None where there is none; by default the first.
    `numbers` has the row in the data of every sample, in order; None: they are counted.
    `label_form` says how the output `classes_of` is read beside its labels.
    `few_integers` has each integer count at other batch sizes: of the reference itself, of which
    none falls the other way.
    """

    names: tuple[str, ...]
    classes_of: str | None = None
    axes: Mapping[str, int | None] = field(default_factory=dict)
    numbers: Array | None = None
    label_form: LabelForm = field(default_factory=LabelForm)
    few_integers: bool = False
    outputs: dict[str, OutputAccumulator] = field(default_factory=dict)
    accuracy: LabelAccumulator | None = None
    consistency_db: float | None = None
    batch_dependent: bool = False
    samples: int = 0
    batches: set[int] = field(default_factory=set)
    sizes: list[SizeParity] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.outputs = {
            name: OutputAccumulator(
                name, self.axes.get(name, 0), samples=SamplePowers(self.numbers)
            )
            for name in self.names
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
        """Add one batch of `rows` samples; `labels` are class indices, (rows,), or (rows, ...) of
        places or questions.

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
            ours, theirs = reference[self.classes_of], candidate[self.classes_of]
            if self.accuracy is None:
                self.accuracy = _accumulate(labels, self.label_form)
            self.accuracy.update(ours, theirs, labels)

    def check_consistency(
        self, single: dict[str, Array], batched: dict[str, Array], *, rows: int
    ) -> None:
        """Compare the outputs in `single`, run at batch 1, with the same samples run by `rows`."""
        self.batches |= {1, rows}
        if single:
            known = math.inf if self.consistency_db is None else self.consistency_db
            self.consistency_db = min(known, self._find_worst(single, batched))

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
        missing = [name for name in self.names if name not in candidate]
        if missing:
            raise ValueError(f"output {missing[0]!r} is missing")
        worst = self._find_worst({name: reference[name] for name in self.names}, candidate)
        self.sizes.append(SizeParity(dict(sizes), worst))

    def _find_worst(self, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> float:
        """The least nearness of the outputs in `ours`; -inf where NaN or Inf stand elsewhere.

        A few integers are passed over beside other outputs, but for `few_integers`: one that falls
        the other way, which the gate of integers allows, would be a large share of them.
        """
        compared = [OutputAccumulator(name, self.axes.get(name, 0)) for name in ours]
        for each in compared:
            each.update(ours[each.name], theirs[each.name])
        fewest = 0 if self.few_integers else _FEWEST_INTEGERS
        telling = [each for each in compared if not each.integer or each.count >= fewest]
        found = [each.result() for each in telling or compared]
        return min(each.nearness_db if each.finite else -math.inf for each in found)

    def result(self) -> ParityReport:
        """The report of all that was added."""
        return ParityReport(
            outputs=tuple(accumulator.result() for accumulator in self.outputs.values()),
            accuracy=None if self.accuracy is None else self.accuracy.result(),
            samples=self.samples,
            batches_checked=tuple(sorted(self.batches)),
            consistency_db=self.consistency_db,
            classes_of=self.classes_of,
            sizes_checked=tuple(self.sizes),
            batch_dependent=self.batch_dependent,
        )


def _accumulate(labels: Array, form: LabelForm) -> LabelAccumulator:
    if form.targets:
        return TargetAccumulator()
    return PlaceAccumulator(form) if labels.ndim > 1 else AccuracyAccumulator()
