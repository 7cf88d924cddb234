"""What an engine really runs, layer by layer: its own word on names, precisions and time."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.engines.base import EngineSpec, Feeds
from export.errors import EngineError
from export.tensorrt.products import PRODUCTS

WARM_CALLS = 3
_MIN_BLOCKS, _MAX_BLOCKS = 5, 20
_SECONDS = 0.5


@dataclass(frozen=True)
class ExecutedLayer:
    """One node of the graph that an engine made of the file and runs.

    Attributes:
        name: the engine's own name for it.
        op: the engine's own operator.
        precision: ``int8``, ``bf16``, ``fp16``, ``fp32``, ``fp64``; ``other`` where it computes
            indices and shapes.
        seconds: of one inference.
        reformat: it computes nothing: it changes layout or precision, or is a Q/DQ left over.
        origins: names of nodes or tensors of the file that it was made from, as far as the engine
            knows, last ones last; they may carry suffixes of the engine's.
        on_cpu: of an engine that runs on a GPU: the CPU ran it.
    """

    name: str
    op: str
    precision: str
    seconds: float
    reformat: bool
    origins: tuple[str, ...]
    on_cpu: bool = False


def read_layers(spec: EngineSpec, feeds: Feeds) -> tuple[ExecutedLayer, ...]:
    """Run the engine of `spec` on `feeds` under its own profiler, in this process.

    Returns:
        The layers that were executed, in the engine's order.

    Raises:
        MissingExtraError: the backend is not installed.
        EngineError: the backend refuses the file or the input, or has no profile to give.
    """
    if spec.engine == "onnxruntime":
        from deploy.engines.onnxruntime_layers import profile_onnxruntime

        return profile_onnxruntime(spec, feeds)
    if spec.engine == "openvino":
        from deploy.engines.openvino_layers import profile_openvino

        return profile_openvino(spec, feeds)
    if spec.engine in PRODUCTS:
        from deploy.engines.tensorrt_layers import profile_tensorrt

        return profile_tensorrt(spec, feeds)
    raise EngineError(f"The layers of {spec.engine} cannot be read by this version.")


def count_calls() -> Iterator[int]:
    """Numbers of calls, one block after the other, for about half a second of them in all.

    Blocks grow by a quarter of the calls so far.
    """
    started, total = time.perf_counter(), WARM_CALLS
    for block in range(_MAX_BLOCKS):
        if block >= _MIN_BLOCKS and time.perf_counter() - started > _SECONDS:
            return
        calls = max(1, total // 4)
        total += calls
        yield calls
