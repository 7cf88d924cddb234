"""Model and batches → the range of every tensor that a placement may quantize.

Memory does not grow with the number of samples: each batch is run, summarized inside the graph and
dropped. One pass serves every observer; ``auto`` looks again, at a few samples that were kept.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from export.artifacts import OnnxModel
from export.errors import ConfigError, DataError, NothingToQuantizeError, QuantizeError
from export.onnx.execute import ExposedModel
from export.onnx.files import read_model
from export.onnx.graph import GraphIndex
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.calibration.choice import Choices, choose_observers
from quantize.calibration.held import HeldSamples, choose_limit
from quantize.calibration.ranges import Ranges
from quantize.calibration.summaries import SummarizedModel, Wanted, summarize
from quantize.observers import AUTO, OBSERVERS, WITHOUT_HISTOGRAM
from quantize.observers.statistic import Span, Summary, TensorStatistic
from quantize.placement.layers import channel_axes
from quantize.placement.pooling import use_global_pooling
from quantize.placement.walk import tensors_to_calibrate

__all__ = ["Again", "Ranges", "batch_size", "calibrate"]


@dataclass(frozen=True)
class Again:
    """A batch of samples that came before, at other sizes of dynamic axes.

    It widens ranges, and tells nothing of whether the samples are enough.
    """

    feeds: Mapping[str, np.ndarray]


def calibrate(
    model: OnnxModel,
    batches: Iterable[Mapping[str, np.ndarray] | Again],
    *,
    observer: str = "minmax",
    tensors: Collection[str] | None = None,
    total: int = 0,
    progress: ProgressCallback = ignore_progress,
    threads: int = 0,
) -> Ranges:
    """Run `model` on every batch and observe its tensors.

    Args:
        model: the float model; its file is read, never written.
        batches: one mapping a batch, an array for every graph input; consumed once, as a stream.
            Those that are samples `Again` come last.
        observer: a key of `quantize.observers.OBSERVERS`, or ``auto``: the best for each tensor, by
            the error that it causes in the layers behind it.
        tensors: what to observe; None for all that any rule table may quantize, so that one
            calibration serves every placement. The fp16 conversion wants
            ``float_tensors(model.path)`` of `export.onnx.tensor_types`. A tensor that no rule table
            quantizes has its extent as range, whatever the observer.
        total: number of samples, each counted once; 0 when it is not known.
        progress: called after each batch with ``Progress("calibrate", samples done, total)``.
        threads: of ONNX Runtime; 0 lets it choose.

    Raises:
        QuantizeError: nothing to observe, no batches, a NaN, or an infinite value in a tensor that
            may be quantized (the message names the tensor and the sample). Elsewhere infinity is
            no fault: attention masks are made of it.
        ConfigError: `observer` is not known.
        DataError: a batch without samples, or whose inputs disagree on the number of samples.
        EngineError: ONNX Runtime refuses the model or a batch.
    """
    if observer not in (*OBSERVERS, AUTO):
        known = ", ".join((*OBSERVERS, AUTO))
        raise ConfigError(f"observer {observer!r} is not known; use one of {known}.")
    plan = _plan(model, observer, tensors)
    watch = _Watch(model, plan, hold=observer == AUTO, threads=threads)
    with watch.summarized:
        for batch in batches:
            watch.take(batch, total)
            detail = "other sizes" if isinstance(batch, Again) else ""
            progress(Progress("calibrate", watch.samples, total, detail))
    if not watch.samples:
        raise QuantizeError(
            "No calibration batches: nothing is known about the activations. Pass at least one "
            "batch of real inputs."
        )
    return _find_ranges(model, watch, observer, threads, progress)


@dataclass(frozen=True)
class _Plan:
    """What to watch, and of which of it ranges are found."""

    wanted: Wanted
    quantizable: tuple[str, ...]


@dataclass(frozen=True)
class _Seen:
    """The statistics of what may be quantized after some number of samples."""

    samples: int
    statistics: dict[str, TensorStatistic]


class _Watch:
    """Takes a stream of batches and keeps what was seen of them."""

    def __init__(self, model: OnnxModel, plan: _Plan, *, hold: bool, threads: int) -> None:
        self.plan = plan
        self.samples = 0
        self.statistics = {name: TensorStatistic(name) for name in plan.wanted.tensors}
        self.held: HeldSamples | None = None
        self._hold = hold
        self.earlier = self.settled = _Seen(0, {})
        self.summarized = SummarizedModel(model.path, plan.wanted, threads=threads)
        self._model, self._threads = model, threads
        self._doubted: set[str] = set()
        self._exposed: ExposedModel | None = None

    def take(self, batch: Mapping[str, np.ndarray] | Again, total: int) -> None:
        """Run one batch; before the first one past half of all samples, note what stands."""
        feeds = batch.feeds if isinstance(batch, Again) else batch
        count = batch_size(self._model, feeds)
        if isinstance(batch, Again):
            samples = None
            self.settled = self.settled if self.settled.samples else self.now(copied=True)
        else:
            samples = range(self.samples, self.samples + count)
            half = total / 2 if total else 2 * self.earlier.samples
            if self.samples >= max(1, half) and not (total and self.earlier.samples):
                self.earlier = self.now(copied=True)
            self.samples = samples.stop
        for name, summary in self._repair(self.summarized(feeds), feeds, samples).items():
            self.statistics[name].update(summary)
        if self._hold:
            if self.held is None:
                sizes = (self.statistics[name].row_size for name in self.plan.quantizable)
                self.held = HeldSamples(self._model, choose_limit(sum(sizes)))
            self.held.offer(feeds, count)

    def now(self, *, copied: bool = False) -> _Seen:
        """What stands of the tensors that may be quantized; as copies, it stays as it is."""
        found = {name: self.statistics[name] for name in self.plan.quantizable}
        if copied:
            found = {name: seen.copy() for name, seen in found.items()}
        return _Seen(self.samples, found)

    def _repair(
        self,
        summaries: dict[str, Summary],
        batch: Mapping[str, np.ndarray],
        samples: range | None,
    ) -> dict[str, Summary]:
        """Look closely at what does not seem finite: it is an error, or a sum that overflowed."""
        doubtful = [name for name, summary in summaries.items() if not summary.is_finite]
        if not doubtful:
            return summaries
        if not set(doubtful) <= self._doubted:  # an attention mask overflows in every batch
            self._doubted.update(doubtful)
            self._exposed = ExposedModel(
                self._model.path, sorted(self._doubted), threads=self._threads
            )
        assert self._exposed is not None
        values = self._exposed(batch)
        for name in doubtful:
            bad = np.isnan(values[name])
            if name in self.plan.quantizable:
                bad |= np.isinf(values[name])
            if bad.any():
                raise QuantizeError(_describe_bad(values[name], bad, name, samples))
        exact = {name: summarize(values[name]) for name in doubtful}
        return summaries | {
            name: item if name in self.plan.wanted.sampled else replace(item, values=None)
            for name, item in exact.items()
        }


def _describe_bad(array: np.ndarray, bad: np.ndarray, name: str, samples: range | None) -> str:
    """Names the sample, or the span of samples where the leading axis is not the batch.

    `samples` is None where they come again.
    """
    position = np.argwhere(bad)[0]
    kind = "NaN" if np.isnan(array[tuple(position)]) else "infinite"
    if samples is None:
        return (
            f"Tensor {name!r} is {kind} for calibration samples at another size of a dynamic axis; "
            "repair what makes it so, or narrow the range of sizes in --input."
        )
    where = f"calibration samples {samples[0]} to {samples[-1]}"
    if array.ndim and array.shape[0] == len(samples):
        where = f"calibration sample {samples[int(position[0])]}"
    return f"Tensor {name!r} is {kind} at {where}; remove that sample, or repair what makes it so."


def _plan(model: OnnxModel, observer: str, tensors: Collection[str] | None) -> _Plan:
    """Histograms of what may be quantized, where the observer reads one."""
    proto = read_model(model.path)
    axes = channel_axes(GraphIndex(proto))
    twins = use_global_pooling(proto)  # as the int8 graphs will be
    names = tensors_to_calibrate(GraphIndex(proto))
    quantizable = tuple(dict.fromkeys(twins.get(name, name) for name in names))
    observed = quantizable if tensors is None else tuple(dict.fromkeys(tensors))
    if not observed:
        raise NothingToQuantizeError(
            f"{model.path.name} has nothing to quantize: no Conv, Gemm or MatMul with constant "
            "float32 weights."
        )
    quantizable = tuple(name for name in quantizable if name in set(observed))
    sampled = () if observer in WITHOUT_HISTOGRAM else quantizable
    return _Plan(Wanted(observed, axes, frozenset(sampled)), quantizable)


def _find_ranges(
    model: OnnxModel, watch: _Watch, observer: str, threads: int, progress: ProgressCallback
) -> Ranges:
    seen = watch.now().statistics
    choices = Choices({}, {})
    if watch.held is not None and seen:
        held = watch.held.batches
        choices = choose_observers(model, seen, held, threads=threads, progress=progress)
    chosen = {name: choice.observer for name, choice in choices.free.items()}
    around_zero = {name: choice.observer for name, choice in choices.symmetric.items()}
    default = dict.fromkeys(seen, observer)
    reached = {n: item for n, item in watch.statistics.items() if n in seen or not item.is_empty}
    extents = {name: item.extent for name, item in reached.items()}
    found = {name: item.channels for name, item in reached.items()}
    before, settled = _reached(watch.earlier), _reached(watch.settled)
    free = _apply(seen, chosen or default, symmetric=False)
    return Ranges(
        observer=observer,
        samples=watch.samples,
        ranges=extents | free,
        clipped={name: seen[name].histogram.share_outside(*span) for name, span in free.items()},
        symmetric=_apply(seen, around_zero or default, symmetric=True),
        extents=extents,
        channels={name: channels for name, channels in found.items() if channels is not None},
        chosen=chosen,
        chosen_symmetric=around_zero,
        earlier=_apply(before, chosen or default, symmetric=False),
        earlier_samples=watch.earlier.samples,
        settled=_apply(settled, chosen or default, symmetric=False),
    )


def _reached(seen: _Seen) -> dict[str, TensorStatistic]:
    """What held any values by then."""
    return {name: item for name, item in seen.statistics.items() if not item.is_empty}


def _apply(
    statistics: Mapping[str, TensorStatistic], observers: Mapping[str, str], *, symmetric: bool
) -> dict[str, Span]:
    return {name: OBSERVERS[observers[name]](seen, symmetric) for name, seen in statistics.items()}


def batch_size(model: OnnxModel, batch: Mapping[str, np.ndarray]) -> int:
    """Size of the batch axis: of the inputs that have one by signature, else of the first input.

    Raises:
        DataError: there is none, it is 0, or the inputs disagree.
    """
    names = [spec.name for spec in model.inputs if spec.has_dynamic_batch] or list(batch)[:1]
    sizes = {name: batch[name].shape[0] for name in names if name in batch and batch[name].ndim}
    if not sizes or 0 in sizes.values():
        raise DataError("A calibration batch holds no samples.")
    if len(set(sizes.values())) > 1:
        raise DataError(
            "The inputs of one calibration batch have different numbers of samples: "
            + ", ".join(f"{name} has {size}" for name, size in sizes.items())
        )
    return int(next(iter(sizes.values())))
