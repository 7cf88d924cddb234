"""One set of shapes in ONNX Runtime that has a CUDA graph, and which models can have one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from deploy.engines.base import Array, Feeds

_NEEDED = (1, 23)
_DATA_SHAPES = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""How much these return depends on data, for which the host waits in the midst of a run."""


@dataclass(frozen=True)
class GraphPlan:
    """One set of shapes: inputs and outputs on the GPU, and the run that works on them.

    On the GPU it holds the weights, its inputs, outputs and intermediate results, and what cuBLAS
    and cuDNN keep for a session.

    Attributes:
        session: has run these shapes alone since the capture.
        inputs: values of ONNX Runtime by name; their addresses are in the graph.
        outputs: likewise.
        binding: both, as the session takes them.
        options: those of a run, with the number of the graph.
    """

    session: Any
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]
    binding: Any
    options: onnxruntime.RunOptions

    def fill(self, feeds: Feeds) -> None:
        """Copy arrays of the host to where the graph reads."""
        for name, value in self.inputs.items():
            value.update_inplace(np.ascontiguousarray(feeds[name]))

    def run(self) -> None:
        """Capture the graph, or replay it; returns when the GPU has finished."""
        self.session.run_with_iobinding(self.binding, self.options)

    def read(self) -> dict[str, Array]:
        """The answers, in memory of the caller's own."""
        return {name: value.numpy() for name, value in self.outputs.items()}


def make_plan(
    session: Any, feeds: Feeds, answers: Mapping[str, Array], number: int, device: str
) -> GraphPlan:
    """Memory for a graph, of which nothing is captured yet.

    Args:
        session: opened with CUDA graphs.
        feeds: arrays of the shapes.
        answers: what the model returns for them.
        number: of the graph, from 1 on.
        device: as ONNX Runtime calls it.
    """
    inputs = {name: _place(array, device) for name, array in feeds.items()}
    outputs = {name: _place(array, device) for name, array in answers.items()}
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    return GraphPlan(session, inputs, outputs, binding, _number(number))


def bind_plainly(session: Any, feeds: Feeds, names: Sequence[str], device: str) -> Any:
    """Inputs on the GPU and the outputs `names`, which the run allocates there."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, _place(array, device))
    for name in names:
        binding.bind_output(name, device, 0)
    return binding


def count_bytes(graph: onnx.GraphProto) -> int:
    """Those of the weights, wherever they are stored."""
    kind = onnx.helper.tensor_dtype_to_np_dtype
    return sum(math.prod(each.dims) * kind(each.data_type).itemsize for each in graph.initializer)


def explain_no_graphs() -> str | None:
    """Why CUDA graphs of the ONNX Runtime that is installed are not used; None: they are."""
    found = onnxruntime.__version__
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if numbers >= _NEEDED:
        return None
    return (
        f"ONNX Runtime {found} does not tell which inputs the CPU reads, and a CUDA graph would "
        "miss those. Install a later one: pip install 'onnxruntime-gpu>=1.23'"
    )


def explain_uncapturable(session: Any, graph: onnx.GraphProto) -> str | None:
    """What of a model no graph can hold, as far as it is known before a run."""
    found = {node.op_type for node in graph.node} & _DATA_SHAPES
    if found:
        names = ", ".join(sorted(found))
        return f"how much {names} returns depends on data, which no CUDA graph can hold"
    for value, memory in zip(session.get_inputs(), session.get_input_memory_infos(), strict=True):
        if memory.name == "Cpu":  # it would be read at the capture, and never again
            return f"input {value.name!r} is read by the CPU, which no CUDA graph does"
    return None


def _place(array: Array, device: str) -> Any:
    """A copy on the GPU."""
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
        list(array.shape), array.dtype.type, device, 0
    )
    value.update_inplace(np.ascontiguousarray(array))
    return value


def _number(graph: int) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


UNCAPTURED = _number(-1)
"""Options of a run that is neither captured nor replayed."""
