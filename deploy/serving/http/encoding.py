"""An answer → an HTTP body: JSON, with raw tensors behind it where they were asked for so."""

import math
from typing import Any

import numpy as np
import orjson

from deploy.datatypes import RAW_ONLY, datatype_of
from deploy.engines.base import Array
from deploy.serving.errors import MalformedRequestError
from deploy.serving.protocol import InferRequest, InferResponse, OutputRequest

FEW = 64
"""Values up to which Python looks at them sooner than numpy, whose code is cold after a run."""

_MANY = 2**14
"""Values from which numpy adds them sooner without the care for rounding that its own sum takes."""

JOIN_BELOW = 64 * 2**10
"""Bytes up to which one copy costs less than one more write to the socket."""


def encode_response(
    response: InferResponse, request: InferRequest
) -> tuple[list[bytes | memoryview], int | None]:
    """The body in parts, and the length of its JSON where raw tensors follow, else None.

    Large raw tensors are views of the engine's own arrays, so nothing is copied.

    Raises:
        MalformedRequestError: an output was asked for as JSON, which cannot hold it.
    """
    described: list[dict[str, Any]] = []
    raw: list[bytes | memoryview] = []
    for wanted in request.outputs:
        array = response.outputs[wanted.name]
        entry = describe_output(wanted, array)
        if wanted.binary:
            raw.append(view_bytes(array))
        else:
            entry["data"] = _to_json(wanted.name, array)
        described.append(entry)
    content = describe_response(response)
    content["outputs"] = described
    header = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in header:  # what orjson writes for NaN and infinity; names may hold it too
        _check_finite(request, response)
    if not raw:
        return [header], None
    parts = [header, *raw]
    if sum(map(len, parts)) <= JOIN_BELOW:
        parts = [b"".join(parts)]
    return parts, len(header)


def describe_response(response: InferResponse) -> dict[str, Any]:
    """What stands in an answer beside its outputs."""
    content: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id:
        content["id"] = response.id
    return content


def describe_output(wanted: OutputRequest, array: Array) -> dict[str, Any]:
    """What stands in an answer of an output, but for its data."""
    entry: dict[str, Any] = {
        "name": wanted.name,
        "datatype": datatype_of(array.dtype),
        "shape": array.shape,
    }
    if wanted.binary:
        entry["parameters"] = {"binary_data_size": array.nbytes}
    return entry


def encode_error(message: str) -> bytes:
    """The body of every refusal."""
    return orjson.dumps({"error": message})


def view_bytes(array: Array) -> memoryview:
    """The bytes of an array in row-major order, over its own memory where it is so already."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).data


def is_finite(array: Array) -> bool:
    """Whether no value of it is NaN or infinite."""
    if array.dtype.kind not in "fV":  # V: bfloat16
        return True
    if array.size <= FEW and array.dtype.kind == "f":
        return all(map(math.isfinite, array.ravel().tolist()))
    if array.dtype.itemsize >= 4:
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(_add(array)):
                return True  # a sum passes every NaN and infinity on; only it is read
    return bool(np.isfinite(array).all())


def _add(array: Array) -> float:
    """About the sum of all values."""
    if array.size >= _MANY and array.flags.c_contiguous:
        return float(np.einsum("i->", array.reshape(-1)))
    return float(np.add.reduce(array, axis=None))


def _check_finite(request: InferRequest, response: InferResponse) -> None:
    for wanted in request.outputs:
        if not wanted.binary and not is_finite(response.outputs[wanted.name]):
            raise MalformedRequestError(
                f"output {wanted.name!r} holds NaN or infinity, which JSON cannot; "
                "ask for binary_data"
            )


def _to_json(name: str, array: Array) -> Any:
    """Something that orjson writes as a flat list."""
    datatype = datatype_of(array.dtype)
    if datatype in RAW_ONLY:
        raise MalformedRequestError(f"output {name!r}: JSON has no {datatype}; ask for binary_data")
    return np.ascontiguousarray(array).reshape(-1)
