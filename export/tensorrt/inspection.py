"""The inspector's JSON of a built engine → its layers: precision, reformats, what they came from.

TensorRT 10 writes a tensor's type and layout as one text under ``Format/Datatype`` and the engine's
tensors as names under ``Bindings``; TensorRT 11 has ``DataType`` beside ``Format``, and ``I/O
Tensors`` (NVIDIA, "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"). Both are read. An
engine that was built without detailed profiling verbosity tells the names of its layers alone.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from export.errors import EngineError

OTHER = "other"
"""The precision of what computes indices and shapes, or does not say."""

_PRECISIONS = (
    (re.compile(r"\bint8\b|\bint4\b|\buint8\b", re.IGNORECASE), "int8"),
    (re.compile(r"\bbf16\b|\bbfloat16\b", re.IGNORECASE), "bf16"),
    (re.compile(r"\bfp16\b|\bhalf\b|\bfloat16\b", re.IGNORECASE), "fp16"),
    (re.compile(r"\bfp32\b|\bfloat\b|\bfloat32\b", re.IGNORECASE), "fp32"),
)
_REFORMATS = frozenset({"reformat", "noop", "copy", "cast"})
_COMPUTES = ("conv", "gemm", "matmul", "matrixmultiply", "deconv", "fullyconnected")
_ONNX_LAYER = re.compile(r"\[ONNX Layer:\s*([^\]]+)\]")
_JOINED = re.compile(r"\s*\+\s*")


@dataclass(frozen=True)
class InspectedLayer:
    """One layer of a built engine.

    Attributes:
        name: the engine's own.
        kind: the engine's own type of layer.
        precision: ``int8``, ``fp16``, ``bf16``, ``fp32`` or `OTHER`; what it reads, and for a layer
            that multiplies the narrowest of that.
        reformat: it only changes layout or precision.
        origins: names of the ONNX nodes that it was made from.
        tactic: the kernel; empty where it does not say.
    """

    name: str
    kind: str
    precision: str
    reformat: bool
    origins: tuple[str, ...]
    tactic: str = ""


def read_inspection(document: str) -> tuple[InspectedLayer, ...]:
    """The layers of what ``EngineInspector.get_engine_information`` returns as JSON.

    Raises:
        EngineError: it is no such document.
    """
    try:
        layers = json.loads(document)["Layers"]
        return tuple(_read_layer(layer) for layer in layers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            f"What the engine's inspector says cannot be read ({type(error).__name__}: {error})."
        ) from error


def read_name(name: str) -> InspectedLayer:
    """What the name of a layer tells by itself: that it reformats, and what it was made from."""
    return InspectedLayer(name, "", OTHER, _is_reformat(name, ""), _split_name(name))


def _read_layer(layer: Mapping[str, Any] | str) -> InspectedLayer:
    if isinstance(layer, str):
        return read_name(layer)
    name, kind = str(layer["Name"]), str(layer.get("LayerType", ""))
    named = tuple(_ONNX_LAYER.findall(str(layer.get("Metadata", ""))))
    inputs = [_precision(tensor) for tensor in _tensors(layer, "Inputs")]
    outputs = [_precision(tensor) for tensor in _tensors(layer, "Outputs")]
    tactic = layer.get("TacticName", layer.get("TacticValue", ""))
    return InspectedLayer(
        name=name,
        kind=kind,
        precision=_choose(kind, inputs, outputs),
        reformat=_is_reformat(name, kind),
        origins=named or _split_name(name),
        tactic=str(tactic),
    )


def _tensors(layer: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    return [tensor for tensor in layer.get(key, ()) if isinstance(tensor, Mapping)]


def _precision(tensor: Mapping[str, Any]) -> str:
    """Of one tensor, in either layout."""
    text = f"{tensor.get('DataType', '')} {tensor.get('Format/Datatype', '')}".strip()
    text = text or str(tensor.get("Format", ""))
    return next((name for pattern, name in _PRECISIONS if pattern.search(text)), OTHER)


def _choose(kind: str, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    known = [name for name in inputs if name != OTHER]
    if not known:
        return next((name for name in outputs if name != OTHER), OTHER)
    if any(part in kind.lower() for part in _COMPUTES):
        order = [name for _, name in _PRECISIONS]
        return min(known, key=order.index)
    return known[0]


def _is_reformat(name: str, kind: str) -> bool:
    return kind.lower() in _REFORMATS or name.startswith("Reformatting CopyNode")


def _split_name(name: str) -> tuple[str, ...]:
    """The names that TensorRT joins into that of a fused layer."""
    return tuple(part for part in _JOINED.split(name) if part)
