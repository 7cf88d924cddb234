"""OpenVINO's executed graph with its performance counters."""

from collections import defaultdict
from statistics import median
from typing import Any

from deploy.engines.base import EngineSpec, Feeds
from deploy.engines.layers import WARM_CALLS, ExecutedLayer, count_calls
from deploy.engines.openvino import OpenVinoEngine

_PRECISIONS = {"u8": "int8", "i8": "int8", "u4": "int8", "i4": "int8", "f32": "fp32"} | {
    "bf16": "bf16",
    "f16": "fp16",
    "f64": "fp64",
}
_FLOATS = ("fp32", "bf16", "fp16")
_REFORMATS = frozenset({"Reorder", "Convert"})
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "FakeQuantize")


def profile_openvino(spec: EngineSpec, feeds: Feeds) -> tuple[ExecutedLayer, ...]:
    """Layers that took time, with the median of each over blocks of calls after warm-up.

    Raises:
        EngineError: OpenVINO refuses the file or the input.
    """
    with OpenVinoEngine(spec, profile=True) as engine:
        for _ in range(WARM_CALLS):
            engine(feeds)
        request, done = engine.request(feeds), WARM_CALLS
        before = _read_totals(request, done)
        blocks: dict[str, list[float]] = defaultdict(list)
        for calls in count_calls():
            for _ in range(calls):
                engine(feeds)
            done += calls
            after = _read_totals(request, done)
            for name, total in after.items():
                mean = (total - before.get(name, 0.0)) / calls
                blocks[name].append(max(0.0, mean + 0.5) / 1e6)
            before = after
        graph = request.get_compiled_model().get_runtime_model()
        nodes = {node.get_friendly_name(): node for node in graph.get_ordered_ops()}
        return tuple(
            _describe(node, name, median(blocks[name]), spec.precision)
            for name, node in nodes.items()
            if name in blocks
        )


def _read_totals(request: Any, calls: int) -> dict[str, float]:
    """Microseconds in all calls so far of what was executed, by the engine's name for it.

    OpenVINO counts whole microseconds a call and keeps only their mean, cut off to a whole number:
    half of what is lost is added here, and half a microsecond a call by the caller.
    """
    return {
        item.node_name: item.real_time.total_seconds() * 1e6 * calls + (calls - 1) / 2
        for item in request.get_profiling_info()
        if item.status.name == "EXECUTED"
    }


def _describe(node: Any, name: str, seconds: float, engine: str) -> ExecutedLayer:
    """A layer; one that reads the bytes of images in an engine of floats makes floats of them."""
    facts = {key: value.astype(str) for key, value in node.get_rt_info().items()}
    runtime = facts.get("runtimePrecision", "")
    precision = _PRECISIONS.get(runtime, "other")
    origins = tuple(part for part in facts.get("originalLayersNames", "").split(",") if part)
    kind = facts.get("layerType", "")
    only_quantizes = bool(origins) and all(part.endswith(_QUANTIZERS) for part in origins)
    return ExecutedLayer(
        name=name,
        op=kind,
        precision=engine if runtime == "u8" and engine in _FLOATS else precision,
        seconds=seconds,
        reformat=kind in _REFORMATS or only_quantizes,
        origins=origins,
    )
