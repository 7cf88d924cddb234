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
from deploy.judging.layouts import LabelForm, LabelledOutput
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
    """All outputs of one candidate, their accuracy, and its agreement with itself across batches.

    Attributes:
        accuracies: by output that has labels.
        sizes_checked: what was seen at other sizes than the best; empty where there are none.
        batches_checked: every batch size that was run, ascending.
        consistency_db: smallest SQNR of the outputs at one batch size against the same samples at
            batch 1; inf where identical, None where that was not compared: with a static batch,
            without an output of an axis of samples, and where the model depends on the batch.
        batch_dependent: the model's own answers depend on the other samples of a batch.
    """

    outputs: tuple[OutputParity, ...]
    accuracies: Mapping[str, Accuracy]
    samples: int
    batches_checked: tuple[int, ...]
    consistency_db: float | None
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
    def judged(self) -> dict[str, Accuracy]:
        """The accuracies whose labels judge anything; see `Accuracy.above_chance`."""
        return {name: each for name, each in self.accuracies.items() if each.above_chance}

    @property
    def held(self) -> dict[str, Accuracy]:
        """Of `judged` those with enough labels to decide."""
        return {name: each for name, each in self.judged.items() if each.samples >= MIN_LABELLED}

    @property
    def main_accuracy(self) -> Accuracy | None:
        """The first of `judged`, which stands for all where there is room for one."""
        return next(iter(self.judged.values()), None)


@dataclass
class ParityAccumulator:
    """Sums over batches for all outputs of one candidate, and their hits against labels.

    `labelled` are the outputs that labels are held against. `axes` has the axis of the samples by
    output, None where there is none; by default the first. `numbers` has the row in the data of
    every sample, in order; None: they are counted. `few_integers` has each integer count at other
    batch sizes: of the reference itself, of which none falls the other way.
    """

    names: tuple[str, ...]
    labelled: tuple[LabelledOutput, ...] = ()
    axes: Mapping[str, int | None] = field(default_factory=dict)
    numbers: Array | None = None
    few_integers: bool = False
    outputs: dict[str, OutputAccumulator] = field(default_factory=dict)
    tallies: dict[str, LabelAccumulator] = field(default_factory=dict)
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
        labels: Mapping[str, Array] | None = None,
    ) -> None:
        """Add one batch of `rows` samples; `labels` are by output class indices, (rows,), or
        (rows, ...) of places or questions.

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
        for each in self.labelled:
            told = (labels or {}).get(each.name)
            if told is None:
                continue
            if each.name not in self.tallies:
                self.tallies[each.name] = _accumulate(told, each.form)
            self.tallies[each.name].update(reference[each.name], candidate[each.name], told)

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
        found = {name: tally.result() for name, tally in self.tallies.items()}
        return ParityReport(
            outputs=tuple(accumulator.result() for accumulator in self.outputs.values()),
            accuracies={name: each for name, each in found.items() if each is not None},
            samples=self.samples,
            batches_checked=tuple(sorted(self.batches)),
            consistency_db=self.consistency_db,
            sizes_checked=tuple(self.sizes),
            batch_dependent=self.batch_dependent,
        )


def _accumulate(labels: Array, form: LabelForm) -> LabelAccumulator:
    if form.targets:
        return TargetAccumulator()
    return PlaceAccumulator(form) if labels.ndim > 1 else AccuracyAccumulator()
