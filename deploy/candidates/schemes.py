"""What int8 is on this machine: the presets of `quantize.scheme`, as its CPU needs them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from deploy.engines.base import EngineSpec
from export.cpu import saturates_int8
from export.onnx.files import read_model
from quantize.scheme import NARROW, PRESETS, QuantScheme

_ENGINES = ("onnxruntime", "openvino")
_WEIGHT_INPUT = {"DequantizeLinear": 0, "MatMulInteger": 1}


def choose_scheme(engine: str) -> QuantScheme:
    """The preset of `engine`, a key of `PRESETS`.

    Where the kernels of ONNX Runtime and OpenVINO would saturate, weights are kept to 7 bits, so
    that they cannot. What is built so is right on any CPU.
    """
    scheme = PRESETS[engine]
    if scheme.unsigned_activations and saturates_int8():
        return replace(scheme, weight_levels=NARROW)
    return scheme


def choose_levels() -> int:
    """The largest code of weights that meet activations quantized as they come."""
    return choose_scheme("onnxruntime").weight_levels


def explain_saturation(spec: EngineSpec, *, saturates: bool | None = None) -> str | None:
    """In words, why this CPU may not compute an int8 engine as the one that it was built on.

    Args:
        spec: of any engine.
        saturates: whether the CPU does; None: see `export.cpu.saturates_int8`.

    Returns:
        None where the CPU computes it exactly, as any does narrow weights.

    Raises:
        LoadError: the file is not ONNX.
    """
    if spec.engine not in _ENGINES or spec.precision not in ("int8", "mixed"):
        return None
    if not (saturates_int8() if saturates is None else saturates):
        return None
    widest = max(_list_peaks(read_model(Path(spec.path))), default=0)
    if widest <= NARROW:
        return None
    return (
        f"{spec.name}: its int8 weights have codes up to {widest}, and this CPU, without VNNI, "
        "adds up two products of them in 16 bits, which saturate: answers may differ from those "
        "of the machine that it was built on. Build the bundle again here, or hold it with "
        "deploy verify --data."
    )


def _list_peaks(model: onnx.ModelProto) -> Iterator[int]:
    """The largest code of every constant matrix of int8 that is multiplied."""
    weights = {
        node.input[_WEIGHT_INPUT[node.op_type]]
        for node in model.graph.node
        if node.op_type in _WEIGHT_INPUT
        and all(item.name != "block_size" or not item.i for item in node.attribute)
    }
    for tensor in model.graph.initializer:
        if tensor.name in weights and tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:
            yield int(np.abs(numpy_helper.to_array(tensor).astype(np.int16)).max(initial=0))
