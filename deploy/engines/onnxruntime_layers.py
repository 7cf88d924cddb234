"""ONNX Runtime's optimized graph with the times of its profiler.

They are the host's. On the GPU the host goes on as soon as a kernel is launched, so there every
launch is waited for while it is profiled (`_wait_for_kernels`). A CUDA graph hides its kernels, so
of an engine with graphs the same session without them is profiled.
"""

import contextlib
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from deploy.engines.base import EngineSpec, Feeds
from deploy.engines.device import CUDA_GRAPHS, CUDA_NHWC, runs_on_gpu
from deploy.engines.layers import WARM_CALLS, ExecutedLayer, count_calls
from deploy.engines.onnxruntime import CPU_PROVIDER, make_options, map_ort_errors, open_session

_PRECISIONS = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "double": "fp64"}
_INTEGERS = frozenset({"uint8", "int8"})
_INTEGER_OPERATORS = ("QLinear", "QGemm", "QAttention", "MatMulInteger", "ConvInteger")
_DYNAMIC_OPERATORS = ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits")
_REFORMATS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast", "ReorderInput"}) | {
    "ReorderOutput",
    "DynamicQuantizeLinear",
    "MemcpyFromHost",
    "MemcpyToHost",
}
_SUFFIX = "_kernel_time"
_BLOCKING = "CUDA_LAUNCH_BLOCKING"


def profile_onnxruntime(spec: EngineSpec, feeds: Feeds) -> tuple[ExecutedLayer, ...]:
    """Nodes that were run, with the median time of each over the calls after warm-up.

    Raises:
        EngineError: ONNX Runtime refuses the file or the input.
    """
    if spec.variant == CUDA_GRAPHS:
        spec = replace(spec, variant=CUDA_NHWC)
    waits = _wait_for_kernels() if runs_on_gpu(spec.variant) else contextlib.nullcontext()
    with waits, tempfile.TemporaryDirectory(prefix="deploy-census-") as folder:
        optimized, options = Path(folder) / "optimized.onnx", make_options(spec)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(optimized)
        session = open_session(spec, options)
        with map_ort_errors(f"cannot profile {spec.path}"):
            for _ in range(WARM_CALLS):
                session.run(None, dict(feeds))
            for calls in count_calls():
                for _ in range(calls):
                    session.run(None, dict(feeds))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = _Optimized(optimized)
        source = {node.name for node in onnx.load(spec.path, load_external_data=False).graph.node}
    runs: dict[int, list[Any]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            runs[int(event["args"]["node_index"])].append(event)
    layers = (_describe(items, graph, source) for items in runs.values())
    if not runs_on_gpu(spec.variant):
        return tuple(layers)
    return tuple(
        replace(layer, on_cpu=items[0]["args"].get("provider") == CPU_PROVIDER)
        for layer, items in zip(layers, runs.values(), strict=True)
    )


@contextlib.contextmanager
def _wait_for_kernels() -> Iterator[None]:
    """CUDA reads this when a process begins to use it; in one that has, nothing changes."""
    before = os.environ.get(_BLOCKING)
    os.environ[_BLOCKING] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_BLOCKING]
        else:
            os.environ[_BLOCKING] = before


class _Optimized:
    """The optimized graph: where the values of a profiled node go."""

    def __init__(self, path: Path) -> None:
        nodes = onnx.load(path, load_external_data=False).graph.node
        self._named = {node.name: node for node in nodes if node.name}
        self._unnamed: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in nodes:
            for name in node.input:
                self._readers[name].append(node)
            if not node.name:
                self._unnamed[node.op_type].append(node)

    def find_origins(self, event: Any) -> tuple[str, ...]:
        """The node's name and the tensors it makes; for a node without a name, of a later one.

        What ONNX Runtime takes a function apart into has no names; the profiler calls such a node
        by operator and index, and they come in the order of the graph.
        """
        name, arguments = event["name"].removesuffix(_SUFFIX), event["args"]
        node = self._named.get(name)
        if node is None and name == f"{arguments['op_name']}_{arguments['node_index']}":
            waiting = self._unnamed[arguments["op_name"]]
            node = waiting.pop(0) if waiting else None
            while node is not None and not node.name:
                readers = [reader for made in node.output for reader in self._readers[made]]
                node = readers[0] if readers else None
            return (node.name,) if node is not None else (name,)
        return (name, *(node.output if node is not None else ()))


def _describe(events: list[Any], optimized: _Optimized, source: set[str]) -> ExecutedLayer:
    event = events[0]
    name, op = event["name"].removesuffix(_SUFFIX), event["args"]["op_name"]
    shuffles = op == "Transpose" and name not in source
    return ExecutedLayer(
        name=name,
        op=op,
        precision=_read_precision(op, event["args"]),
        seconds=median(item["dur"] for item in events[WARM_CALLS:]) / 1e6,
        reformat=op in _REFORMATS or shuffles,
        origins=optimized.find_origins(event),
    )


def _read_precision(op: str, arguments: dict[str, Any]) -> str:
    """By the operator where its name says so, else by the first typed tensor that it reads."""
    if op.startswith(_INTEGER_OPERATORS) or op in _DYNAMIC_OPERATORS:
        return "int8"
    for typed in (*arguments["input_type_shape"], *arguments["output_type_shape"]):
        for kind in typed:
            if kind in _INTEGERS:
                return "int8"
            if kind in _PRECISIONS:
                return _PRECISIONS[kind]
    return "other"
