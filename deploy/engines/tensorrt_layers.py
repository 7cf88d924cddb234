"""Layers of a TensorRT engine: what its inspector says of them, with the times of its profiler."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from deploy.engines.base import EngineSpec, Feeds
from deploy.engines.layer_times import LayerTimes
from deploy.engines.layers import WARM_CALLS, ExecutedLayer, count_calls
from deploy.engines.tensorrt import TensorRtEngine, open_tensorrt
from export.errors import EngineError
from export.tensorrt.inspection import InspectedLayer, read_inspection, read_name

_PROFILE = re.compile(r"\s*\[profile \d+\]$")
"""What TensorRT appends to the names of layers of all optimization profiles but the first."""


def profile_tensorrt(spec: EngineSpec, feeds: Feeds) -> tuple[ExecutedLayer, ...]:
    """Layers that were run, with the median time of each over the calls after warm-up.

    CUDA graphs are off meanwhile, and TensorRT waits for every layer, so the sum is more than an
    inference takes.

    Raises:
        MissingExtraError: the product is not installed.
        EngineError: the engine does not fit this machine or the input, or tells no times.
    """
    with open_tensorrt(spec) as engine:
        return profile_engine(engine, feeds)


def profile_engine(engine: TensorRtEngine, feeds: Feeds) -> tuple[ExecutedLayer, ...]:
    """The same of an engine that is open.

    Raises:
        EngineError: the input does not fit, or the engine tells no times.
    """
    times = LayerTimes()
    document = engine.profile(feeds, times, _calls())
    return match_layers(read_inspection(document), times.medians(warmup=WARM_CALLS))


def match_layers(
    inspected: Sequence[InspectedLayer], seconds: Mapping[str, float]
) -> tuple[ExecutedLayer, ...]:
    """Put together by name what the inspector and the profiler say of one engine.

    Names are the same on both sides but for spaces and the number of the optimization profile. What
    the profiler has not seen was not executed: layers of other profiles, and what is only known of.
    A time under a name that the inspector lacks is kept, with what the name itself tells and a
    precision that is not known; nothing is matched by order.

    Args:
        inspected: in the engine's order.
        seconds: of one inference, by the profiler's names.

    Raises:
        EngineError: there are no times.
    """
    if not seconds:
        raise EngineError("TensorRT's profiler has told no times of this engine's layers.")
    waiting: dict[str, float] = defaultdict(float)
    names: dict[str, str] = {}
    for name, value in seconds.items():
        waiting[_plain(name)] += value
        names.setdefault(_plain(name), name)
    executed = []
    for layer in inspected:
        if _plain(layer.name) in waiting:
            executed.append(_describe(layer, waiting.pop(_plain(layer.name))))
    executed += [_describe(read_name(names[name]), value) for name, value in waiting.items()]
    return tuple(executed)


def _describe(layer: InspectedLayer, seconds: float) -> ExecutedLayer:
    return ExecutedLayer(
        name=layer.name,
        op=layer.kind,
        precision=layer.precision,
        seconds=seconds,
        reformat=layer.reformat,
        origins=layer.origins,
    )


def _plain(name: str) -> str:
    return " ".join(_PROFILE.sub("", name).split())


def _calls() -> Iterator[int]:
    yield WARM_CALLS
    yield from count_calls()
