"""Arrays as a request of the Open Inference Protocol, and its answer as arrays.

Tensors go and come in the binary extension: a JSON head without data, then the raw bytes of every
tensor in the order of the head. A server that answers in JSON is understood as well.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.datatypes import name_datatype, read_datatype, to_wire
from deploy.engines.base import Array, Feeds
from export.artifacts import BATCH, SizeRange, TensorSpec
from export.errors import ConfigError, ServerError

HEAD_LENGTH = "Inference-Header-Content-Length"
_NONSENSE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What comes of an answer that is not what the protocol says."""


@dataclass(frozen=True)
class WireRequest:
    """Headers and body of one inference request."""

    headers: Mapping[str, str]
    body: bytes


def encode_request(feeds: Feeds) -> WireRequest:
    """Named arrays as a request that asks for binary outputs.

    Raises:
        ServerError: the protocol has no such dtype.
    """
    inputs, chunks = [], []
    for name, array in feeds.items():
        raw = to_wire(array)
        inputs.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": _name(str(array.dtype)),
                "parameters": {"binary_data_size": len(raw)},
            }
        )
        chunks.append(raw)
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", HEAD_LENGTH: str(len(head))}
    return WireRequest(headers, b"".join([head, *chunks]))


def decode_answer(body: bytes, head_length: str | None) -> dict[str, Array]:
    """The named outputs of an answer.

    Args:
        body: of the answer.
        head_length: the header `HEAD_LENGTH`; None: the answer has none, and is JSON throughout.

    Raises:
        ServerError: it is not what the protocol says.
    """
    try:
        size = len(body) if head_length is None else int(head_length)
        if not 0 < size <= len(body):
            raise ValueError(f"a head of {size} bytes in a body of {len(body)}")
        head, raw = json.loads(body[:size]), memoryview(body)[size:]
        outputs = {}
        for entry in head["outputs"]:
            count = entry.get("parameters", {}).get("binary_data_size")
            outputs[entry["name"]] = _read_output(entry, None if count is None else raw[:count])
            raw = raw[count or 0 :]
        if len(raw):
            raise ValueError(f"{len(raw)} bytes belong to no output")
    except _NONSENSE as error:
        reason = f"{type(error).__name__}: {error}"
        raise ServerError(f"The server's answer cannot be read: {reason}.") from error
    return outputs


def read_signature(
    described: Sequence[Mapping[str, Any]], sizes: object = None
) -> tuple[TensorSpec, ...]:
    """The inputs or outputs of a model's metadata; -1 in front is the batch.

    `sizes` are those of other axes that are -1, as servers of this project say them under
    ``parameters``: by tensor and axis the least, the best, the greatest and their step.

    Raises:
        ServerError: it is not what the protocol says, or a dtype that no engine has.
    """
    specs = []
    for entry in described:
        try:
            dtype = str(read_datatype(entry["datatype"]))
            name, shape = str(entry["name"]), [int(size) for size in entry["shape"]]
            known = sizes.get(name) if isinstance(sizes, dict) else None
            ranges = {
                f"axis{int(axis)}": SizeRange(*found) for axis, found in (known or {}).items()
            }
            specs.append(TensorSpec(name, _name_axes(shape), dtype, ranges))
        except (*_NONSENSE, ConfigError) as error:
            raise ServerError(
                f"The server describes a tensor that cannot be used: {entry!r}."
            ) from error
    return tuple(specs)


def _name_axes(sizes: Sequence[int]) -> tuple[int | str, ...]:
    names = (BATCH, *(f"axis{index}" for index in range(1, len(sizes))))
    return tuple(name if size < 0 else size for name, size in zip(names, sizes, strict=False))


def _read_output(entry: Mapping[str, Any], raw: memoryview | None) -> Array:
    shape, dtype = [int(size) for size in entry["shape"]], read_datatype(entry["datatype"])
    if min(shape, default=0) < 0:
        raise ValueError(f"a shape of {shape}")
    if raw is None:
        return np.array(entry["data"]).astype(dtype).reshape(shape)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes for {entry['datatype']} of shape {shape}")
    return np.frombuffer(raw, dtype).reshape(shape)


def _name(dtype: str) -> str:
    try:
        return name_datatype(dtype)
    except KeyError as error:
        raise ServerError(f"The protocol has no name for dtype {dtype}.") from error
