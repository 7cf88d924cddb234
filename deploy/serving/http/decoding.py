"""An HTTP body → a request: JSON, or JSON with raw tensors behind it.

What is malformed in any way is a `MalformedRequestError`, never another error: bodies come from
strangers. Raw tensors are views of the body.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import orjson

from deploy.datatypes import RAW_ONLY
from deploy.engines.base import Array
from deploy.serving.errors import MalformedRequestError
from deploy.serving.protocol import (
    MAX_ID,
    InferRequest,
    ModelSignature,
    OutputRequest,
    TensorType,
    check_count,
    check_shape,
    choose_outputs,
    count_bytes,
    count_rows,
    find_input,
    read_parameters,
    view_raw,
)

HEADER_LENGTH = "inference-header-content-length"
_NUMBERS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
"""By kind of dtype, what its values are in JSON."""

_LOOKED_AT = 2**18
"""Bytes of JSON from which its parts are counted before it is read, as many at a time."""

_MOST = {b",": 2**22, b"[": 2**20, b"{:": 2**15}
"""How often these may be there. Three bytes of JSON may become a hundred of memory and hold the
event loop meanwhile, keys of objects longest; a large tensor should come raw."""


class _RawTensors:
    """The bytes behind the JSON, handed out from first to last."""

    def __init__(self, rest: memoryview | None) -> None:
        self._rest = rest

    def take(self, size: object, expected: int, name: str) -> memoryview:
        """The next `size` bytes, which must be as many as shape and type come to."""
        if self._rest is None:
            raise MalformedRequestError(
                f"input {name!r} has binary_data_size, and the header "
                "Inference-Header-Content-Length is missing"
            )
        if type(size) is not int or size != expected:
            raise MalformedRequestError(
                f"input {name!r}: binary_data_size must be {expected} by its shape and datatype"
            )
        if size > len(self._rest):
            raise MalformedRequestError(
                f"input {name!r} needs {size} bytes of raw data and {len(self._rest)} are left"
            )
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def finish(self) -> None:
        """Every byte belongs to an input."""
        if self._rest:
            raise MalformedRequestError(f"{len(self._rest)} bytes of raw data belong to no input")


def decode_request(
    body: memoryview, header_length: int | None, signature: ModelSignature
) -> InferRequest:
    """Read the body of an infer request.

    Args:
        body: all of it.
        header_length: bytes of JSON before the raw tensors; None: all of it is JSON.
        signature: what the model takes and gives.

    Raises:
        MalformedRequestError: it is not such a body, or does not fit the model.
    """
    content = _parse_json(body if header_length is None else body[:header_length])
    raw = _RawTensors(None if header_length is None else body[header_length:])
    parameters = _take_object(content, "parameters")
    identity = content.get("id", "")
    if not isinstance(identity, str) or len(identity) > MAX_ID:
        raise MalformedRequestError(f"id must be text of at most {MAX_ID} characters")
    feeds: dict[str, Array] = {}
    for entry in _take_list(content, "inputs"):
        name, array = _decode_input(entry, raw, signature)
        if name in feeds:
            raise MalformedRequestError(f"input {name!r} is there twice")
        feeds[name] = array
    raw.finish()
    priority, timeout_s = read_parameters(parameters)
    return InferRequest(
        id=identity,
        feeds=feeds,
        rows=count_rows(signature, feeds),
        outputs=_decode_outputs(content, parameters, signature),
        priority=priority,
        timeout_s=timeout_s,
    )


def parse_header_length(text: str, body_size: int) -> int:
    """The header that says where the raw tensors begin.

    Raises:
        MalformedRequestError: it is no number of bytes within the body.
    """
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= body_size):
        raise MalformedRequestError(
            "Inference-Header-Content-Length must be a number of bytes within the body"
        )
    return int(text)


def _parse_json(data: memoryview) -> dict[str, Any]:
    if len(data) > _LOOKED_AT:
        _check_parts(data)
    try:
        content = orjson.loads(data)
    except orjson.JSONDecodeError as error:  # also where it nests too deeply
        raise MalformedRequestError(f"the body is not valid JSON: {error}"[:300]) from error
    if not isinstance(content, dict):
        raise MalformedRequestError("the body must be a JSON object")
    return content


def _check_parts(data: memoryview) -> None:
    found = dict.fromkeys(_MOST, 0)
    for start in range(0, len(data), _LOOKED_AT):
        window = np.frombuffer(data[start : start + _LOOKED_AT], np.uint8)
        for kinds in _MOST:
            found[kinds] += sum(int(np.count_nonzero(window == kind)) for kind in kinds)
    for kinds, most in _MOST.items():
        if found[kinds] > most:
            raise MalformedRequestError(
                f"the body has more than {most} of {kinds.decode()!r}: too many parts for JSON; "
                "send tensors raw"
            )


def _take_object(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedRequestError(f"{key} must be an object")
    if "shared_memory_region" in value:
        raise MalformedRequestError("shared memory is not offered; send the tensor itself")
    return value


def _take_list(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = content.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise MalformedRequestError(f"{key} must be a list of objects")
    return value


def _take_text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise MalformedRequestError(f"every input and output needs a {key}, as text")
    return value


def _decode_input(
    entry: dict[str, Any], raw: _RawTensors, signature: ModelSignature
) -> tuple[str, Array]:
    name = _take_text(entry, "name")
    tensor = find_input(signature, name, _take_text(entry, "datatype"))
    shape = check_shape(tensor, entry.get("shape"))
    size = _take_object(entry, "parameters").get("binary_data_size")
    if size is not None:
        if "data" in entry:
            raise MalformedRequestError(f"input {name!r} has both data and binary_data_size")
        return name, view_raw(tensor, shape, raw.take(size, count_bytes(tensor, shape), name))
    if tensor.datatype in RAW_ONLY:
        raise MalformedRequestError(
            f"input {name!r}: JSON has no {tensor.datatype}; send it raw, with binary_data_size"
        )
    return name, _decode_data(tensor, shape, entry.get("data"))


def _decode_data(tensor: TensorType, shape: tuple[int, ...], data: object) -> Array:
    """JSON values, flat in row-major order or nested as the shape says, as an array."""
    if not isinstance(data, list):
        raise MalformedRequestError(f"input {tensor.name!r} needs data, as a list")
    flat = _flatten(data, shape) if data and type(data[0]) is list else data
    if flat is None or len(flat) * tensor.dtype.itemsize != count_bytes(tensor, shape):
        raise MalformedRequestError(
            f"input {tensor.name!r}: data does not have the shape {list(shape)}"
        )
    if not set(map(type, flat)) <= _NUMBERS[tensor.dtype.kind]:
        raise MalformedRequestError(f"input {tensor.name!r}: data is not all {tensor.datatype}")
    return _make_array(tensor, flat).reshape(shape)


def _flatten(data: list[Any], shape: tuple[int, ...]) -> list[Any] | None:
    """The values of lists nested as `shape` says; None where they are not."""
    if not shape or len(data) != shape[0]:
        return None
    for size in shape[1:]:
        if set(map(type, data)) != {list} or set(map(len, data)) != {size}:
            return None
        data = list(chain.from_iterable(data))
    return data


def _make_array(tensor: TensorType, flat: list[Any]) -> Array:
    beyond = f"input {tensor.name!r}: a value is beyond the range of {tensor.datatype}"
    low, high = tensor.limits
    if min(flat) < low or max(flat) > high:
        raise MalformedRequestError(beyond)
    return np.array(flat, dtype=tensor.dtype)


def _decode_outputs(
    content: Mapping[str, Any], parameters: Mapping[str, Any], signature: ModelSignature
) -> tuple[OutputRequest, ...]:
    by_default = parameters.get("binary_data_output", False)
    requested = []
    entries = _take_list(content, "outputs") if content.get("outputs") is not None else []
    check_count(signature, len(entries))
    for entry in entries:
        options = _take_object(entry, "parameters")
        if options.get("classification"):
            raise MalformedRequestError("classification is not offered; take the output itself")
        binary = options.get("binary_data", by_default)
        if type(binary) is not bool:
            raise MalformedRequestError("parameter binary_data must be true or false")
        requested.append(OutputRequest(_take_text(entry, "name"), binary))
    if type(by_default) is not bool:
        raise MalformedRequestError("parameter binary_data_output must be true or false")
    return choose_outputs(signature, requested, binary=by_default)
