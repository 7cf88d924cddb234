"""Which observer serves a tensor best: the one that costs the layers behind it least.

Every range is tried on a few samples: the tensor is rounded to the codes that the range gives, and
each layer that reads it is run on that, all else in float. What counts is the squared error at the
outputs of these layers, relative to the outputs, summed over the layers, and scaled by how far the
few samples stand for all that were seen (`seen_errors.py`). An operator that is not such a layer,
as the sum of a residual block, passes the error on: there the error of the tensor itself counts,
once. So it does where no layer reads a tensor.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from export.artifacts import OnnxModel
from export.onnx.files import read_model
from export.onnx.graph import GraphIndex
from export.progress import Progress, ProgressCallback, ignore_progress
from quantize.calibration.rehearsal import Cost, Reading, Rehearsal
from quantize.calibration.seen_errors import scale_to_seen
from quantize.observers import OBSERVERS
from quantize.observers.statistic import Span, TensorStatistic
from quantize.placement.layers import linear_layers
from quantize.placement.pooling import use_global_pooling
from quantize.placement.walk import ActivationUse, Placement, place
from quantize.scheme import PRESETS, QuantScheme

GROUP_TENSORS = 40
"""Tried in one graph; more would make it slow to open."""
_SAFE = "minmax"
_STANDARD_ERRORS = 3.0
"""By which a sum must be better to be so beyond doubt."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for one tensor, and on which evidence.

    Attributes:
        observer: the best, see `find_best`.
        span: its range.
        errors: observer → relative squared error, summed over those who read the tensor.
    """

    observer: str
    span: Span
    errors: Mapping[str, float]


@dataclass(frozen=True)
class Choices:
    """Tensor → choice, for codes with a free zero point and for codes around 0."""

    free: Mapping[str, Choice]
    symmetric: Mapping[str, Choice]


def choose_observers(
    model: OnnxModel,
    statistics: Mapping[str, TensorStatistic],
    held: Sequence[Mapping[str, np.ndarray]],
    *,
    threads: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> Choices:
    """The best observer of every tensor, see `find_best`; of several as good, the first.

    Args:
        model: the float model; its file is not changed.
        statistics: of the tensors to choose for.
        held: batches to measure on.
        threads: of ONNX Runtime; 0 lets it choose.
        progress: called with ``Progress("choose observers", ...)`` after each batch.

    Raises:
        EngineError: ONNX Runtime refuses the model, a layer or a batch.
    """
    proto = read_model(model.path)
    twins = use_global_pooling(proto)
    graph = GraphIndex(proto)
    costs = []
    for symmetric in (False, True):
        schemes = [s for s in PRESETS.values() if s.unsigned_activations != symmetric]
        spans = {
            name: {key: observe(seen, symmetric) for key, observe in OBSERVERS.items()}
            for name, seen in statistics.items()
        }
        costs += [
            Cost(reading, spans[reading.tensor])
            for reading in find_readings(graph, twins, schemes, statistics)
        ]
    names = list(statistics)
    groups = [set(names[n : n + GROUP_TENSORS]) for n in range(0, len(names), GROUP_TENSORS)]
    for position, group in enumerate(groups):
        some = [cost for cost in costs if cost.reading.tensor in group]
        with Rehearsal(model.path, some, threads=threads) as rehearsal:
            for number, batch in enumerate(held):
                rehearsal.run(batch)
                done = position * len(held) + number + 1
                progress(Progress("choose observers", done, len(groups) * len(held)))
    return Choices(
        free=_decide((c for c in costs if c.reading.scheme.unsigned_activations), statistics),
        symmetric=_decide(
            (c for c in costs if not c.reading.scheme.unsigned_activations), statistics
        ),
    )


def find_readings(
    graph: GraphIndex,
    twins: Mapping[str, str],
    schemes: Sequence[QuantScheme],
    tensors: Collection[str],
) -> list[Reading]:
    """Every reading of `tensors` by the graphs that `schemes` make.

    Args:
        graph: of the model as the int8 graphs are rewritten.
        twins: the tensors that are new there, and what they are in the model.
        schemes: whose codes are of one kind.
        tensors: of the model; each has one reading at least.
    """
    layers = set(linear_layers(graph))
    found: dict[tuple[str, ActivationUse, int | None], Reading] = {}
    for scheme in schemes:
        placement = place(graph, scheme)
        for name, use in placement.activations.items():
            tensor, source = twins.get(use.like, use.like), twins.get(name, name)
            if tensor not in tensors:
                continue
            for number in _readers(graph, placement, name, use):
                layer = number if number in layers else None
                node = None if layer is None else graph.nodes[layer]
                bounds = replace(use, like=tensor, read_by_all=False, pair=True)
                reading = Reading(tensor, source, bounds, scheme, node)
                found.setdefault((source, bounds, layer), reading)
    read = {reading.tensor for reading in found.values()}
    alone = [name for name in tensors if name not in read]
    return [
        *found.values(),
        *(Reading(name, name, ActivationUse(name), schemes[0], None) for name in alone),
    ]


def _decide(costs: Iterable[Cost], statistics: Mapping[str, TensorStatistic]) -> dict[str, Choice]:
    errors: dict[str, dict[str, np.ndarray]] = {}
    spans: dict[str, Mapping[str, Span]] = {}
    for cost in costs:
        name = cost.reading.tensor
        sums = errors.setdefault(name, {key: np.zeros(len(cost.noise[key])) for key in cost.noise})
        spans[name] = cost.spans
        factors = scale_to_seen(cost, statistics[name])
        for observer, noise in cost.noise.items():
            relative = np.array(noise) / max(cost.power, np.finfo(np.float64).tiny)
            sums[observer] += factors[observer] * relative
    choices = {}
    for name, found in errors.items():
        best = find_best(found)
        totals = {key: float(noise.sum()) for key, noise in found.items()}
        choices[name] = Choice(best, spans[name][best], totals)
    return choices


def find_best(errors: Mapping[str, np.ndarray]) -> str:
    """The observer of the least error that is less than min-max's beyond doubt, else min-max.

    What few samples gain by a closer range, one sample that it clips can lose; min-max risks least.

    Args:
        errors: of every observer, of every held batch; a single batch tells no doubt.
    """
    (count,) = {len(found) for found in errors.values()}

    def bound_gain(observer: str) -> float:
        gain = errors[observer] - errors[_SAFE]
        doubt = gain.std(ddof=1) * np.sqrt(count) if count > 1 else 0.0
        return float(gain.sum() + _STANDARD_ERRORS * doubt)

    return min(errors, key=bound_gain)


def _readers(
    graph: GraphIndex, placement: Placement, name: str, use: ActivationUse
) -> Iterator[int | None]:
    """Nodes that read `name` other than copies that share its range; None for the tensor itself."""
    plain = name in graph.outputs
    numbers = set(graph.readers[name])
    for number in numbers:
        results = [placement.activations.get(result) for result in graph.nodes[number].output]
        if any(result is not None and result.like == use.like for result in results):
            continue
        if number in placement.int8:
            yield number
        else:
            plain = plain or use.read_by_all
    if plain or not numbers:
        yield None
