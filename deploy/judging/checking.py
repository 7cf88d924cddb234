"""Runs every candidate beside the reference over the evaluation data, batch by batch."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deploy.engines.base import Array, EngineSpec, Feeds
from deploy.engines.process import open_processes
from deploy.inputs.data import Dataset
from deploy.inputs.dataset import fit_rows
from deploy.judging.layouts import LabelledOutput
from deploy.judging.parity import ParityAccumulator, ParityReport
from deploy.judging.pieces import Run, largest_batch, run_in_pieces
from deploy.judging.rows import Outputs, join_rows, run_alone, take_rows
from deploy.judging.size_checks import Comparison, check_sizes
from export.artifacts import TensorSpec
from export.errors import DataError, DeployError
from export.progress import Progress, ProgressCallback, ignore_progress

_FLOOR_SAMPLES = 64
_BATCH = 32
_BATCH_BYTES = 64 * 2**20
_ODD_BATCHES = (1, 2, 3)
_BATCH_DEPENDENT_DB = 60.0
"""Float32 kernels differ by rounding between batch sizes, some 120 dB below the signal."""


@dataclass(frozen=True)
class CheckPlan:
    """How candidates are compared.

    Attributes:
        static_batch: the only batch size that the engines take; None: any.
        labelled: the outputs that are held against labels of the data.
        largest_batch: what a server takes at once; None: as much as is sensible.
        warnings: what is to be said of the labels.
        inputs: with the ranges of their dynamic axes, at whose ends candidates are tried as well;
            without: none.
        row_bytes: of the largest value that the float32 model makes of one sample; 0: not known.
    """

    static_batch: int | None = None
    labelled: tuple[LabelledOutput, ...] = ()
    largest_batch: int | None = None
    inputs: tuple[TensorSpec, ...] = ()
    warnings: tuple[str, ...] = ()
    row_bytes: int = 0


class Reference(Protocol):
    """What candidates are compared with."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The signature's outputs."""

    def __call__(self, feeds: Feeds) -> Outputs:
        """Its outputs."""

    def floor(self, feeds: Feeds, eager: Outputs) -> tuple[Outputs, Outputs] | None:
        """The exact outputs, and its own farthest from them as noise; None where not known."""


def check_candidates(
    reference: Reference,
    specs: Mapping[str, EngineSpec],
    data: Dataset,
    plan: CheckPlan,
    progress: ProgressCallback = ignore_progress,
) -> dict[str, ParityReport | str]:
    """Compare each candidate with the reference on all of `data`.

    Every candidate runs in a process of its own, all side by side on the same batches. Batches of
    1, 2 and 3 come first and must agree with each other, since exporters bake batch sizes in.

    Returns:
        By name the parity report, or the reason why the candidate failed.

    Raises:
        DataError: the engines take one batch size only, and `data` does not fill a single batch.
    """
    _check_rows(data, plan)
    with contextlib.ExitStack() as stack:
        axes = sample_axes(reference.outputs, plan)
        opened: dict[str, Run | DeployError] = {
            name: process
            if isinstance(process, DeployError)
            else run_in_pieces(process, largest_batch(spec), axes)
            for (name, spec), process in zip(
                specs.items(), open_processes(specs.values(), stack), strict=True
            )
        }
        return compare_candidates(reference, opened, data, plan, progress)


def compare_candidates(
    reference: Reference,
    candidates: Mapping[str, Callable[[Feeds], Outputs] | DeployError],
    data: Dataset,
    plan: CheckPlan,
    progress: ProgressCallback = ignore_progress,
) -> dict[str, ParityReport | str]:
    """What `check_candidates` does, with candidates that run already, wherever that is.

    One that is an error could not be opened. Raises what `check_candidates` does.
    """
    _check_rows(data, plan)
    results: dict[str, ParityReport | str] = {}
    running: dict[str, Comparison] = {}
    for name, candidate in candidates.items():
        if isinstance(candidate, DeployError):
            results[name] = str(candidate)
            continue
        axes = sample_axes(reference.outputs, plan)
        parity = ParityAccumulator(tuple(axes), plan.labelled, axes, data.rows)
        running[name] = Comparison(candidate, parity)
    done = 0
    progress(Progress("check parity", 0, len(data)))
    for feeds, indices in iterate_batches(data, plan):
        rows, labels = len(indices), take_labels(data, plan, indices)
        eager = run_reference(reference, feeds, f"{data.source}, samples {done} on")
        exact = reference.floor(feeds, eager) if done < _FLOOR_SAMPLES else None
        _compare_batch(running, results, feeds, labels, (eager, exact))
        done += rows
        progress(Progress("check parity", min(done, len(data)), len(data)))
    if plan.static_batch is None:
        first = data.batch(np.arange(max(_batch_sizes(plan))) % len(data))  # a lone one again
        _check_batch_sizes(reference, running, results, first, sample_axes(reference.outputs, plan))
    if any(spec.ranges for spec in plan.inputs):
        rows = plan.static_batch or min(2, len(data))

        def run(feeds: Feeds) -> Outputs:
            return run_reference(reference, feeds, f"{data.source}, in other sizes")

        sound = {name: each for name, each in running.items() if name not in results}
        results |= check_sizes(run, sound, data.batch(range(rows)), plan.inputs)
    for name, comparison in running.items():
        if name not in results:
            results[name] = comparison.parity.result()
    return {name: results[name] for name in candidates}


def _check_rows(data: Dataset, plan: CheckPlan) -> None:
    if plan.static_batch is not None and len(data) < plan.static_batch:
        raise DataError(
            f"{data.source}: {len(data)} samples for evaluation do not fill one batch of "
            f"{plan.static_batch}, the only size that the engines take. Pass more data, or export "
            "with a smaller batch in --input."
        )


def _batch_sizes(plan: CheckPlan) -> tuple[int, ...]:
    """The small sizes that are run first, so far as they are taken."""
    return tuple(size for size in _ODD_BATCHES if size <= (plan.largest_batch or size))


def sample_axes(outputs: Sequence[TensorSpec], plan: CheckPlan) -> dict[str, int | None]:
    """By output the axis on which its samples lie; None where it has no such axis, or several.

    With a static batch that is the first axis of its size.
    """
    axes: dict[str, int | None] = {}
    for spec in outputs:
        axes[spec.name] = spec.batch_axis
        if plan.static_batch is not None and plan.static_batch in spec.shape:
            axes[spec.name] = spec.shape.index(plan.static_batch)
    return axes


def run_reference(reference: Callable[[Feeds], Outputs], feeds: Feeds, where: str) -> Outputs:
    """The reference's outputs.

    Raises:
        DataError: the model itself fails on these samples, or returns NaN for them.
    """
    try:
        outputs = reference(feeds)
    except DeployError:
        raise
    except Exception as error:  # the user's own code: whatever it raises is the finding
        rows = len(next(iter(feeds.values())))
        raise DataError(
            f"{where}: the model itself fails on this batch of {rows}: {type(error).__name__}: "
            f"{error}. Mend the data, or the model."
        ) from error
    for name, values in outputs.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise DataError(
                f"{where}: the model itself returns NaN in output {name!r}, so there is nothing to "
                "hold an engine against. Check its weights, and pass --data with samples that it "
                "was made for."
            )
    return outputs


def _compare_batch(
    running: Mapping[str, Comparison],
    results: dict[str, ParityReport | str],
    feeds: Feeds,
    labels: Mapping[str, Array],
    expected: tuple[Outputs, tuple[Outputs, Outputs] | None],
) -> None:
    """Add one batch to every candidate; `expected` is the reference's outputs and its floor."""
    eager, exact = expected
    for name, comparison in running.items():
        if name in results:
            continue
        rows = len(next(iter(feeds.values())))
        try:
            outputs = comparison.process(feeds)
            comparison.parity.update(eager, outputs, rows=rows, floor=exact, labels=labels)
        except (DeployError, ValueError) as error:
            results[name] = f"at batch size {rows}: {error}"


def _check_batch_sizes(
    reference: Reference,
    running: Mapping[str, Comparison],
    results: dict[str, ParityReport | str],
    feeds: Feeds,
    axes: Mapping[str, int | None],
) -> None:
    """The same samples alone, by two and by three must give the same answers.

    Compared are the outputs whose samples lie on one axis, which is in `axes`. Nothing is asked of
    the candidates of a model whose own answers depend on the batch.
    """
    own = ParityAccumulator(tuple(axes), axes=axes, few_integers=True)
    _run_batch_sizes(reference, own, feeds)
    if own.consistency_db is not None and own.consistency_db < _BATCH_DEPENDENT_DB:
        for comparison in running.values():
            comparison.parity.batch_dependent = True
        return
    for name, comparison in running.items():
        if name in results:
            continue
        try:
            _run_batch_sizes(comparison.process, comparison.parity, feeds)
        except (DeployError, ValueError) as error:
            results[name] = f"at batch sizes 1 to {len(next(iter(feeds.values())))}: {error}"


def _run_batch_sizes(
    run: Callable[[Feeds], Outputs], parity: ParityAccumulator, feeds: Feeds
) -> None:
    samples = len(next(iter(feeds.values())))
    alone = run_alone(run, feeds)
    for size in range(2, samples + 1):
        batched = run(take_rows(feeds, 0, size))
        single = join_rows(alone[:size], parity.axes, batched)
        parity.check_consistency(single, batched, rows=size)


def spread_samples(data: Dataset, count: int, plan: CheckPlan) -> Dataset:
    """A view of `count` samples from all over `data`, or of a static batch where that is more."""
    count = min(len(data), max(count, plan.static_batch or 0))
    return data.select(np.linspace(0, len(data) - 1, count).round().astype(np.int64))


def take_labels(data: Dataset, plan: CheckPlan, indices: Array) -> dict[str, Array]:
    """The labels of the samples at `indices`, by the output that they are held against."""
    found = ((each.name, data.find_labels(each.name)) for each in plan.labelled)
    return {name: labels[indices] for name, labels in found if labels is not None}


def iterate_batches(data: Dataset, plan: CheckPlan) -> Iterator[tuple[Feeds, Array]]:
    """Feeds, and where they lie in `data`; batches of 1, 2 and 3 first, then as is sensible."""
    start = 0
    sizes = iter(() if plan.static_batch else _batch_sizes(plan))
    full = plan.static_batch or min(_batch_size(data, plan), plan.largest_batch or sys.maxsize)
    while start < len(data):
        size = next(sizes, full)
        if plan.static_batch and start + size > len(data):
            return
        indices = np.arange(start, min(start + size, len(data)))
        yield data.batch(indices), indices
        start += size


def _batch_size(data: Dataset, plan: CheckPlan) -> int:
    sample = sum(array.nbytes for array in data.batch([0]).values())
    return max(1, min(fit_rows(_BATCH, plan.row_bytes), _BATCH_BYTES // max(sample, 1)))
