"""OpenVINO on the CPU: fp32 and bf16 from the float ONNX file, int8 from its Q/DQ file."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.engines.base import Array, BackendEngine, EngineSpec, Feeds
from deploy.engines.openvino_concats import keep_tokens_apart
from deploy.engines.openvino_core import import_openvino, open_core
from deploy.engines.openvino_extremes import keep_extremes_apart
from deploy.engines.openvino_gathers import gather_from_splits
from deploy.engines.openvino_messages import condense_message
from deploy.engines.openvino_picks import pick_rows_of_one
from deploy.engines.openvino_reductions import keep_axes_beside_codes, reduce_in_four_axes
from deploy.engines.openvino_remainders import compute_exact_remainders
from deploy.engines.openvino_snippets import (
    has_joined_products,
    has_mish_of_matrices,
    swaps_equal_axes,
)
from deploy.engines.openvino_ties import keep_order_of_equals
from export.artifacts import BATCH, SizeRange, TensorSpec
from export.errors import EngineError
from export.ranges import take_ranges

_HINTS = {
    "fp32": "f32",
    "fp16": "f32",
    "bf16": "bf16",
    "int8": "f32",
    "int4": "f32",
    "mixed": "bf16",
}
"""By precision of the file what is not int8 is computed in; CPUs compute float16 in float32.

What is float in a mix is bf16, and float32 on a CPU that has none.
"""
_BLOCK = "32"
"""Activations that share a scale where they meet packed weights, as many as weights do."""
_INT32 = np.iinfo(np.int32)
_COMPILED_BATCHES = 4
"""How many batch sizes keep a program compiled for their static shape."""
_Shapes = tuple[tuple[int | tuple[int, int], ...], ...]
"""Of every input; two numbers are the bounds of a size."""


class OpenVinoEngine(BackendEngine):
    """A model compiled for the CPU, once for each batch size in use.

    A program compiled for a static shape is faster than one for a dynamic batch; compiling takes
    tenths of a second, so the last few batch sizes are kept. Where other axes have a range, their
    best sizes have programs of their own, and one program takes all others.

    Args:
        spec: what to open.
        profile: count the time of every layer, which costs some time itself.
    """

    def __init__(self, spec: EngineSpec, *, profile: bool = False) -> None:
        openvino = import_openvino()
        if spec.precision not in _HINTS:
            raise EngineError(
                f"OpenVINO has no precision {spec.precision!r}; choose {', '.join(_HINTS)}."
            )
        self._core = open_core()
        if spec.precision == "bf16" and not _supports_bf16(self._core):
            raise EngineError("This CPU has no bf16 instructions; OpenVINO would run fp32 instead.")
        hint = _HINTS[spec.precision]
        if hint == "bf16" and not _supports_bf16(self._core):
            hint = "f32"
        self._options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": spec.threads,
            "NUM_STREAMS": 1,
            # unless told not to, OpenVINO quantizes whatever meets packed weights
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": _BLOCK if spec.variant == "weights" else "0",
            "PERF_COUNT": profile,
        }
        try:
            self._model = self._core.read_model(spec.path)
        except RuntimeError as error:
            why = condense_message(str(error).replace(spec.path, Path(spec.path).name))
            raise EngineError(f"OpenVINO cannot open {Path(spec.path).name}: {why}") from error
        reduce_in_four_axes(self._model)
        keep_axes_beside_codes(self._model)
        keep_extremes_apart(self._model)
        keep_tokens_apart(self._model)
        pick_rows_of_one(self._model)
        gather_from_splits(self._model)
        keep_order_of_equals(self._model)
        self._divides = compute_exact_remainders(self._model)
        if has_joined_products(self._model) or has_mish_of_matrices(self._model):
            self._options["SNIPPETS_MODE"] = "DISABLE"
        found = [_spec(port) for port in self._model.inputs]
        self.inputs = take_ranges(found, spec.inputs)
        self._names = [port.name for port in self.inputs]
        self._ranged = any(port.ranges for port in self.inputs)
        self._tensor = openvino.Tensor
        known = {output.name: output.shape for output in spec.outputs}
        self.outputs = tuple(_spec(port, known) for port in self._model.outputs)
        self._requests: OrderedDict[_Shapes, Any] = OrderedDict()

    def request(self, feeds: Feeds) -> Any:
        """OpenVINO's own request that runs inputs of these shapes."""
        return self._request_for(tuple(feeds[spec.name].shape for spec in self.inputs))

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        arrays = [_shareable(feeds[name]) for name in self._names]
        if self._divides:
            _refuse_large(dict(zip(self._names, arrays, strict=True)))
        request = self._request_for(tuple([array.shape for array in arrays]))
        try:
            for index, array in enumerate(arrays):  # cheaper than a list for `infer`
                request.set_input_tensor(index, self._tensor(array, shared_memory=True))
            request.infer(share_outputs=True)
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on this input: {error}") from error
        return {
            spec.name: np.array(request.get_output_tensor(index).data)
            for index, spec in enumerate(self.outputs)
        }

    def _request_for(self, sizes: tuple[tuple[int, ...], ...]) -> Any:
        shapes = self._program_shapes(sizes)
        if shapes in self._requests:
            self._requests.move_to_end(shapes)
            return self._requests[shapes]
        try:
            model = self._model.clone()
            model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
            options = dict(self._options)
            if swaps_equal_axes(model):
                options["SNIPPETS_MODE"] = "DISABLE"
            compiled = self._core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            wanted = zip(self._names, shapes, strict=True)
            sizes_of = ", ".join(f"{name} {_join_sizes(shape)}" for name, shape in wanted)
            raise EngineError(
                f"OpenVINO cannot compile this model for {sizes_of}: {condense_message(str(error))}"
            ) from error
        self._requests[shapes] = compiled.create_infer_request()
        if len(self._requests) > _COMPILED_BATCHES:
            self._requests.popitem(last=False)
        return self._requests[shapes]

    def _program_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> _Shapes:
        """What a program is compiled for: these sizes, or ranges where they are not the best."""
        if not self._ranged:
            return shapes
        batches = [shape[0] if shape else 1 for shape in shapes]
        best = tuple(s.with_batch(rows) for s, rows in zip(self.inputs, batches, strict=True))
        if shapes == best:
            return shapes
        return tuple(
            tuple(
                size if isinstance(size, int) else _span(spec.ranges.get(size))
                for size in spec.shape
            )
            for spec in self.inputs
        )

    def _release(self) -> None:
        self._requests.clear()


def _span(sizes: SizeRange | None) -> int | tuple[int, int]:
    """As OpenVINO takes a dimension: bounds, or -1 where there are none."""
    return -1 if sizes is None else (sizes.least, sizes.most)


def _join_sizes(shape: tuple[int | tuple[int, int], ...]) -> str:
    """``1x3x128:512x?``: bounds of a size, and one that may be any."""
    words = (f"{s[0]}:{s[1]}" if isinstance(s, tuple) else "?" if s < 0 else str(s) for s in shape)
    return "x".join(words) or "a number"


def _shareable(array: Array) -> Array:
    """The array, or a copy where OpenVINO cannot read its memory in place."""
    flags = array.flags
    if flags.c_contiguous and flags.writeable:
        return array
    return np.require(array, requirements=("C", "W"))


def _refuse_large(feeds: Feeds) -> None:
    """Integers that OpenVINO, which computes int64 in int32, would take for others.

    Raises:
        EngineError: there is one.
    """
    for name, array in feeds.items():
        if array.dtype != np.int64 or not array.size:
            continue
        if array.max() > _INT32.max or array.min() < _INT32.min:
            raise EngineError(
                f"Input {name!r} holds integers beyond {_INT32.max}, which OpenVINO does not have; "
                "run this model with ONNX Runtime, or take the remainder before."
            )


def cpu_has_bf16() -> bool:
    """Whether the CPU runs bf16 natively, by OpenVINO's own word."""
    return _supports_bf16(open_core())


def _supports_bf16(core: Any) -> bool:
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _spec(port: Any, known: Mapping[str, tuple[int | str, ...]] | None = None) -> TensorSpec:
    """What OpenVINO knows of a port: no names of axes, unless `known` has the shape by name."""
    shape: list[int | str] = []
    name, sizes = port.get_any_name(), port.get_partial_shape()
    given = (known or {}).get(name, ())
    if len(given) == len(sizes):
        return TensorSpec(name, given, str(np.dtype(port.element_type.to_dtype())))
    for axis, size in enumerate(sizes):
        if size.is_static:
            shape.append(size.get_length())
        else:
            shape.append(BATCH if axis == 0 else f"axis_{axis}")
    return TensorSpec(name, tuple(shape), str(np.dtype(port.element_type.to_dtype())))
