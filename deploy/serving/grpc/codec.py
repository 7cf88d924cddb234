"""gRPC messages ⇄ requests and answers. Tensors travel raw; typed contents are read as well."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.datatypes import RAW_ONLY
from deploy.engines.base import Array
from deploy.serving.errors import MalformedRequestError
from deploy.serving.grpc.messages import INFERENCE
from deploy.serving.http.encoding import view_bytes
from deploy.serving.protocol import (
    MAX_ID,
    InferRequest,
    InferResponse,
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

_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Where a message holds the values of a type; FP16 and BF16 have no place but raw."""


def decode_message(message: Any, signature: ModelSignature) -> InferRequest:
    """Read a ModelInferRequest.

    Raises:
        MalformedRequestError: it does not fit the protocol or the model.
    """
    if len(message.id) > MAX_ID:
        raise MalformedRequestError(f"id must be text of at most {MAX_ID} characters")
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise MalformedRequestError(
            f"{len(message.inputs)} inputs came with {len(raw)} raw_input_contents"
        )
    feeds: dict[str, Array] = {}
    for position, entry in enumerate(message.inputs):
        tensor = find_input(signature, entry.name, entry.datatype)
        if tensor.name in feeds:
            raise MalformedRequestError(f"input {tensor.name!r} is there twice")
        if "shared_memory_region" in entry.parameters:
            raise MalformedRequestError("shared memory is not offered; send the tensor itself")
        shape = check_shape(tensor, list(entry.shape))
        if raw:
            feeds[tensor.name] = _read_raw(tensor, shape, entry, raw[position])
        else:
            feeds[tensor.name] = _read_contents(tensor, shape, entry.contents)
    priority, timeout_s = read_parameters(_plain(message.parameters))
    check_count(signature, len(message.outputs))
    requested = [_read_output(entry) for entry in message.outputs]
    return InferRequest(
        id=message.id,
        feeds=feeds,
        rows=count_rows(signature, feeds),
        outputs=choose_outputs(signature, requested, binary=True),
        priority=priority,
        timeout_s=timeout_s,
    )


def encode_message(
    response: InferResponse, request: InferRequest, signature: ModelSignature
) -> Any:
    """A ModelInferResponse, all tensors raw."""
    message = INFERENCE["ModelInferResponse"](
        model_name=response.model, model_version=response.version, id=response.id
    )
    for wanted in request.outputs:
        array = response.outputs[wanted.name]
        datatype = signature.outputs[wanted.name].datatype
        message.outputs.add(name=wanted.name, datatype=datatype, shape=array.shape)
        message.raw_output_contents.append(bytes(view_bytes(array)))
    return message


def _read_output(entry: Any) -> OutputRequest:
    if "classification" in entry.parameters:
        raise MalformedRequestError("classification is not offered; take the output itself")
    if "shared_memory_region" in entry.parameters:
        raise MalformedRequestError("shared memory is not offered; take the tensor itself")
    return OutputRequest(entry.name, True)


def _read_raw(tensor: TensorType, shape: tuple[int, ...], entry: Any, raw: bytes) -> Array:
    if entry.HasField("contents"):
        raise MalformedRequestError(f"input {tensor.name!r} has both contents and raw data")
    expected = count_bytes(tensor, shape)
    if len(raw) != expected:
        raise MalformedRequestError(
            f"input {tensor.name!r} has {len(raw)} bytes of raw data; "
            f"its shape and datatype come to {expected}"
        )
    return view_raw(tensor, shape, raw)


def _read_contents(tensor: TensorType, shape: tuple[int, ...], contents: Any) -> Array:
    name = tensor.name
    if tensor.datatype in RAW_ONLY:
        raise MalformedRequestError(
            f"input {name!r}: {tensor.datatype} travels in raw_input_contents alone"
        )
    place = _CONTENTS[tensor.datatype]
    others = [field.name for field, _ in contents.ListFields() if field.name != place]
    if others:
        raise MalformedRequestError(f"input {name!r}: {tensor.datatype} belongs into {place}")
    values = getattr(contents, place)
    if len(values) * tensor.dtype.itemsize != count_bytes(tensor, shape):
        raise MalformedRequestError(
            f"input {name!r}: {len(values)} values do not have the shape {list(shape)}"
        )
    if tensor.dtype.kind in "iu":
        low, high = tensor.limits
        if min(values) < low or max(values) > high:
            raise MalformedRequestError(
                f"input {name!r}: a value is beyond the range of {tensor.datatype}"
            )
    return np.array(values, dtype=tensor.dtype).reshape(shape)


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values."""
    plain = {}
    for key, value in parameters.items():
        choice = value.WhichOneof("parameter_choice")
        plain[key] = getattr(value, choice) if choice else None
    return plain
