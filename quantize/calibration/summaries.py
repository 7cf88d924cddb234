"""What tensors of a running model hold, in a few numbers computed inside the graph.

The tensors themselves are not copied out: nodes are added that reduce each of them to its smallest,
its largest and its mean value, by sample and channel, and that take every n-th value of those whose
histogram is wanted. A batch costs little more than a run, and its memory is freed as the run goes
on.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from export.onnx.execute import ExposedModel
from export.onnx.files import read_model
from export.onnx.tensor_types import element_types, float_ranks
from quantize.calibration.instruments import Instruments
from quantize.observers.statistic import Summary

SAMPLE_LIMIT = 2**16
"""Values, about, that a batch adds to a histogram; of up to twice as many, all are added."""

_OFFSET_STEP = 65537  # a prime; moves the first value taken from batch to batch
_AXES_AS_INPUT = 18  # opset from which ReduceMin and its like take their axes as an input
_REDUCTIONS = {"low": "ReduceMin", "high": "ReduceMax", "mean": "ReduceMean"}


@dataclass(frozen=True)
class Wanted:
    """What to summarize.

    Attributes:
        tensors: names of graph inputs and node outputs.
        channel_axes: the axis of the channels, of those tensors that have one; -1 is the last.
        sampled: those of `tensors` whose values are wanted.
    """

    tensors: tuple[str, ...]
    channel_axes: Mapping[str, int] = field(default_factory=dict)
    sampled: Collection[str] = frozenset()


class SummarizedModel:
    """An ONNX model that returns a `Summary` of tensors instead of the tensors.

    Args:
        path: of the model; not changed.
        wanted: what to summarize.
        threads: of one operator; 0 lets ONNX Runtime choose.

    Raises:
        EngineError: a name is not a tensor of the model, or ONNX Runtime refuses the model.

    A context manager: leaving it frees the session.
    """

    def __init__(self, path: Path, wanted: Wanted, *, threads: int = 0) -> None:
        proto = read_model(path, weights=False)
        self._wanted = wanted
        ranks = float_ranks(proto)
        self._axes = {
            name: wanted.channel_axes[name] % ranks[name]
            for name in wanted.tensors
            if name in wanted.channel_axes and ranks.get(name, 0) >= 2
        }
        self._graph = _Meters(proto)
        self._outputs = {
            name: self._graph.measure(name, self._reduced_axes(name, ranks), name in wanted.sampled)
            for name in wanted.tensors
        }
        outputs = dict.fromkeys(item for parts in self._outputs.values() for item in parts.values())
        self._model = ExposedModel(
            self._graph.finish(), tuple(outputs), threads=threads, folder=path.parent
        )
        self._batches = 0

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, Summary]:
        """A summary of every tensor for `feeds` (one array for every graph input), by name.

        Which values are taken of a large tensor depends on how many batches came before, and on
        nothing else.

        Raises:
            EngineError: a feed is missing, unknown, or of the wrong type or shape.
        """
        if self._graph.offset is not None:
            offset = np.array([self._batches * _OFFSET_STEP], np.int64)
            feeds = {**feeds, self._graph.offset: offset}
        self._batches += 1
        values = self._model(feeds)
        return {
            name: Summary(
                **{part: values[parts[part]] for part in _REDUCTIONS},
                channels=name in self._axes,
                values=values[parts["values"]].ravel() if "values" in parts else None,
                size=int(values[parts["size"]]) if "size" in parts else 0,
            )
            for name, parts in self._outputs.items()
        }

    def __enter__(self) -> "SummarizedModel":
        return self

    def __exit__(self, *error: object) -> None:
        self._model.__exit__(*error)

    def _reduced_axes(self, name: str, ranks: Mapping[str, int]) -> list[int] | None:
        """All but those of samples and channels; None: all of them."""
        rank = ranks.get(name, 0)
        if rank < 2:
            return None
        return [axis for axis in range(1, rank) if axis != self._axes.get(name)]


def summarize(array: np.ndarray, channel_axis: int | None = None) -> Summary:
    """The summary of a tensor in memory, all of its values kept.

    Args:
        array: any shape, any float type; two axes or more where `channel_axis` is given.
        channel_axis: not 0.
    """
    array = np.asarray(array)
    axes = tuple(range(1, array.ndim))
    if channel_axis is not None:
        axes = tuple(axis for axis in axes if axis != channel_axis % array.ndim)
    if array.size == 0:
        empty = np.zeros(0, np.float32)
        return Summary(empty, empty, empty, values=empty)
    return Summary(
        array.min(axis=axes),
        array.max(axis=axes),
        array.mean(axis=axes, dtype=np.float64),
        channels=channel_axis is not None,
        values=array.ravel(),
        size=array.size,
    )


class _Meters:
    """Measures tensors of a model."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._added = Instruments(proto, "summary")
        self._types = element_types(proto)
        self.offset: str | None = None

    def measure(self, name: str, axes: list[int] | None, sampled: bool) -> dict[str, str]:
        """Parts of a `Summary` → the tensors that hold them."""
        source = name
        if self._types.get(name) == TensorProto.FLOAT16:  # which these operators do not take
            source = self._added.add("Cast", name, to=TensorProto.FLOAT)
        if axes == []:
            parts = dict.fromkeys(_REDUCTIONS, source)
        else:
            parts = {
                part: self._reduce(operator, source, axes) for part, operator in _REDUCTIONS.items()
            }
        if sampled:
            parts["size"] = self._added.add("Size", source)
            parts["values"] = self._sample(source, parts["size"])
        return parts

    def finish(self) -> onnx.ModelProto:
        """The model with all that was added."""
        return self._added.finish()

    def _reduce(self, operator: str, source: str, axes: list[int] | None) -> str:
        if axes is None:
            return self._added.add(operator, source, keepdims=0)
        if self._added.opset < _AXES_AS_INPUT:
            return self._added.add(operator, source, axes=axes, keepdims=0)
        return self._added.add(operator, source, self._added.integers(*axes), keepdims=0)

    def _sample(self, source: str, size: str) -> str:
        """Every n-th value, n odd so that it shares few factors with the axes."""
        add, integers = self._added.add, self._added.integers
        if self.offset is None:
            self.offset = self._added.input("offset")
        ratio = add("Div", size, integers(2 * SAMPLE_LIMIT))
        step = add("Add", add("Mul", ratio, integers(2)), integers(1))
        start = add("Mod", self.offset, step)
        end = integers(np.iinfo(np.int64).max)
        flat = add("Reshape", source, integers(-1))
        return add("Slice", flat, start, end, integers(0), step)
