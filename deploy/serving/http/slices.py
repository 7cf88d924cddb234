"""Large answers as JSON, written in slices, between which the event loop does what is due.

Writing numbers as text keeps the interpreter to itself, in whatever thread it happens, so a thread
would have others wait just as long.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import orjson

from deploy.datatypes import RAW_ONLY, datatype_of
from deploy.engines.base import Array
from deploy.serving.errors import MalformedRequestError
from deploy.serving.http.encoding import (
    describe_output,
    describe_response,
    encode_response,
    is_finite,
    view_bytes,
)
from deploy.serving.protocol import InferRequest, InferResponse

LARGE = 256 * 2**10
"""Bytes of a tensor from which on it is written in slices."""

_SLICE = 2**14
"""Values of a slice: about half a millisecond."""

Parts = list[bytes | memoryview]
Hold = Callable[[int], None]


def is_large(request: InferRequest, outputs: Mapping[str, Array]) -> bool:
    """Whether an answer takes so long to write as JSON that others should have their turn."""
    for name, binary in ((wanted.name, wanted.binary) for wanted in request.outputs):
        if not binary and _is_large(outputs[name]):
            return True
    return False


async def encode_in_slices(
    response: InferResponse, request: InferRequest, hold: Hold
) -> tuple[Parts, int | None]:
    """As `encode_response`; what is large is written bit by bit.

    Args:
        response: what is answered.
        request: what was asked for.
        hold: told of every slice's bytes, and may refuse to hold more.

    Raises:
        MalformedRequestError: an output was asked for as JSON, which cannot hold it.
        RequestError: of `hold`.
    """
    outputs = response.outputs
    if not is_large(request, outputs):
        return encode_response(response, request)
    parts: Parts = []
    raw: Parts = []
    before = orjson.dumps(describe_response(response))[:-1] + b',"outputs":['
    for wanted in request.outputs:
        array = outputs[wanted.name]
        entry = orjson.dumps(describe_output(wanted, array))
        if wanted.binary:
            raw.append(view_bytes(array))
            parts.append(before + entry)
        else:
            parts.append(before + entry[:-1] + b',"data":[')
            for piece in _write_slices(wanted.name, array):
                parts.append(piece)
                hold(len(piece))
                await asyncio.sleep(0)
            parts.append(b"]}")
        before = b","
    parts.append(b"]}")
    return [*parts, *raw], sum(map(len, parts)) if raw else None


def _is_large(array: Array) -> bool:
    """JSON cannot hold some types, which is found out elsewhere."""
    return array.nbytes >= LARGE and datatype_of(array.dtype) not in RAW_ONLY


def _write_slices(name: str, array: Array) -> Iterator[bytes]:
    """The values of `array` as JSON, without the brackets of their list."""
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _SLICE):
        values = flat[start : start + _SLICE]
        if not is_finite(values):
            raise MalformedRequestError(
                f"output {name!r} holds NaN or infinity, which JSON cannot; ask for binary_data"
            )
        text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        yield b"," + text if start else text
