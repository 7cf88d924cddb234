"""What it costs the layers of a float model that one tensor before them is rounded to codes.

Nodes are added beside the model: each tensor is rounded in several ways, each layer that reads it
is repeated on every one of them, and only the sums of squares leave the graph.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import NodeProto

from export.onnx.execute import ExposedModel
from export.onnx.files import read_model
from quantize.calibration.instruments import Instruments
from quantize.int8.codes import activation_parameters, has_unsigned_codes
from quantize.observers.statistic import Span
from quantize.placement.walk import ActivationUse
from quantize.scheme import QuantScheme

Codes = tuple[np.float32, int, bool]
"""Scale, zero point, and whether the codes are unsigned."""


@dataclass(frozen=True, eq=False)
class Reading:
    """One way in which the range of a tensor matters.

    Attributes:
        tensor: whose range it is.
        source: what is rounded: the tensor, or a copy of it that shares its range.
        use: bounds on the range.
        scheme: of the codes.
        layer: the node that reads it; None for the tensor itself.
    """

    tensor: str
    source: str
    use: ActivationUse
    scheme: QuantScheme
    layer: NodeProto | None

    @property
    def result(self) -> str:
        """The tensor at which errors count."""
        return self.layer.output[0] if self.layer is not None else self.source


class Cost:
    """Squared errors of one reading.

    Args:
        reading: where.
        spans: name of a range → the range.

    Attributes:
        power: sum of squares of the float result.
        noise: name of a range → of every batch, the sum of squares of the error that it causes.
        rounding: codes → sum of squares of the error of the tensor that is rounded.
        values: how many values of that were rounded.
    """

    def __init__(self, reading: Reading, spans: Mapping[str, Span]) -> None:
        self.reading, self.spans = reading, spans
        self.power = 0.0
        self.values = 0
        self.noise: dict[str, list[float]] = {name: [] for name in spans}
        self.codes: dict[Codes, list[str]] = defaultdict(list)
        """Codes → the ranges that give them."""
        for name, span in spans.items():
            scale, zero_point = activation_parameters(*span, reading.scheme, reading.use)
            unsigned = has_unsigned_codes(span[0], reading.scheme, reading.use)
            self.codes[scale, zero_point, unsigned].append(name)
        self.rounding = dict.fromkeys(self.codes, 0.0)


@dataclass(frozen=True)
class _Meters:
    """The tensors that hold what is measured of one cost.

    `power` and `size` are of the result and of the tensor that is rounded; `noise` and `rounding`
    of the errors of these, by codes.
    """

    power: str
    size: str
    noise: Mapping[Codes, str]
    rounding: Mapping[Codes, str]

    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (self.power, self.size, *self.noise.values(), *self.rounding.values())


class Rehearsal:
    """A float model that tries ranges.

    Args:
        path: of the model; not changed.
        costs: what to try; `run` adds to them.
        threads: of one operator; 0 lets ONNX Runtime choose.

    Raises:
        EngineError: ONNX Runtime refuses the model.

    A context manager: leaving it frees the session.
    """

    def __init__(self, path: Path, costs: Sequence[Cost], *, threads: int = 0) -> None:
        added = Instruments(read_model(path, weights=False), "rehearsal")
        self._costs = [(cost, _measure(added, cost)) for cost in costs]
        names = dict.fromkeys(name for _, meters in self._costs for name in meters.names())
        self._model = ExposedModel(
            added.finish(), tuple(names), threads=threads, folder=path.parent
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Add what one batch costs.

        Raises:
            EngineError: a feed is missing, unknown, or of the wrong type or shape.
        """
        values = {name: float(value) for name, value in self._model(feeds).items()}
        for cost, meters in self._costs:
            cost.power += values[meters.power]
            cost.values += int(values[meters.size])
            for codes, spans in cost.codes.items():
                cost.rounding[codes] += values[meters.rounding[codes]]
                for span in spans:
                    cost.noise[span].append(values[meters.noise[codes]])

    def __enter__(self) -> "Rehearsal":
        return self

    def __exit__(self, *error: object) -> None:
        self._model.__exit__(*error)


def _measure(added: Instruments, cost: Cost) -> _Meters:
    reading = cost.reading
    noise, rounding = {}, {}
    for codes in cost.codes:
        scale, zero_point, unsigned = codes
        parameters = (
            added.constant(np.asarray(scale, np.float32)),
            added.constant(np.asarray(zero_point, np.uint8 if unsigned else np.int8)),
        )
        quantized = added.add("QuantizeLinear", reading.source, *parameters)
        rounded = added.add("DequantizeLinear", quantized, *parameters)
        rounding[codes] = noise[codes] = _sum_squares(added, rounded, reading.source)
        if reading.layer is not None:
            made = added.repeat(reading.layer, rounded)
            noise[codes] = _sum_squares(added, made, reading.result)
    power = added.add("ReduceSumSquare", reading.result, keepdims=0)
    return _Meters(power, added.add("Size", reading.source), noise, rounding)


def _sum_squares(added: Instruments, ours: str, theirs: str) -> str:
    """Of the difference."""
    return added.add("ReduceSumSquare", added.add("Sub", ours, theirs), keepdims=0)
