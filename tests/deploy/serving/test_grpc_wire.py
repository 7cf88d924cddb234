"""A message with more parts than a request has is refused before it is parsed."""

import contextlib
import time
from typing import Any

import numpy as np
import pytest

from deploy.serving.errors import MalformedRequestError
from deploy.serving.grpc.codec import decode_message
from deploy.serving.grpc.messages import INFERENCE
from deploy.serving.grpc.wire import LOOKED_AT, MOST_PARTS, MOST_VALUES, check_parts
from deploy.serving.protocol import make_signature
from export.artifacts import TensorSpec

SIGNATURE = make_signature(
    [TensorSpec("x", ("batch", "n"), "int32")], [TensorSpec("y", ("batch", "n"), "float32")]
)
MIB = 2**20


def make_message(**changes: Any) -> Any:
    message = INFERENCE["ModelInferRequest"](model_name="tiny", id="7")
    message.inputs.add(name="x", datatype="INT32", shape=[1, 4])
    for name, values in changes.items():
        getattr(message, name).extend(values)
    return message


def nest(number: int, data: bytes) -> bytes:
    """A nested field of protobuf."""
    size, length = len(data), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


FLOODS = {
    "inputs": b"\x2a\x00" * MIB,
    "outputs": b"\x32\x00" * MIB,
    "raw contents": b"\x3a\x00" * MIB,
    "parameters": b"\x22\x00" * MIB,
    "parameters of an input": nest(5, b"\x22\x00" * MIB),
    "parameters of an output": nest(6, b"\x12\x00" * MIB),
    "texts in contents": nest(5, nest(5, b"\x42\x00" * MIB)),
    "numbers one by one": nest(5, nest(5, b"\x10\x00" * MIB)),
    "fields that nobody knows": b"\x78\x00" * MIB,
    "fixed numbers that nobody knows": b"\x7d\x00\x00\x00\x00" * MIB,
    "long numbers that nobody knows": (b"\x79" + bytes(8)) * MIB,
    "groups without an end": b"\x7b" * MIB,
    "before broken bytes": b"\x32\x00" * MIB + b"\xff" * 20,
}


@pytest.mark.parametrize("flood", FLOODS)
def test_too_many_parts_are_refused_at_once(flood: str) -> None:
    begun = time.process_time()
    with pytest.raises(MalformedRequestError, match=f"more than {MOST_PARTS} parts"):
        check_parts(FLOODS[flood])
    assert time.process_time() - begun < 0.5  # parsed, outputs took three seconds


@pytest.mark.parametrize(
    "place", [nest(5, nest(3, bytes(5 * MIB))), nest(5, nest(5, nest(2, bytes(5 * MIB))))]
)
def test_too_many_values_are_refused(place: bytes) -> None:
    with pytest.raises(MalformedRequestError, match=f"more than {MOST_VALUES} values.* raw"):
        check_parts(place)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("int_contents", np.full(200_000, -1)),
        ("int64_contents", np.arange(300_000)),
        ("uint64_contents", np.full(100_000, 2**64 - 1, np.uint64)),
        ("fp32_contents", np.ones(MOST_VALUES - 2)),  # two are of the shape
        ("fp64_contents", np.ones(100_000)),
        ("bool_contents", np.ones(MOST_VALUES - 2, bool)),  # two are of the shape,
    ],
)
def test_as_many_values_as_may_be_pass(kind: str, values: Any) -> None:
    message = make_message()
    getattr(message.inputs[0].contents, kind).extend(values.tolist())
    data = message.SerializeToString()
    assert len(data) > LOOKED_AT
    check_parts(data)
    getattr(message.inputs[0].contents, kind).extend([1] * (MOST_VALUES + 1 - len(values)))
    with pytest.raises(MalformedRequestError, match="values"):
        check_parts(message.SerializeToString())


def test_large_raw_tensors_pass() -> None:
    message = make_message(raw_input_contents=[bytes(5 * MIB), bytes(3 * MIB), b""])
    message.parameters["timeout"].int64_param = -1
    message.parameters["a"].double_param = 1.5
    check_parts(message.SerializeToString())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_bytes_come_it_ends(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray(make_message(raw_input_contents=[bytes(LOOKED_AT)]).SerializeToString())
    for position in rng.integers(0, 60, 4):
        data[position] = rng.integers(256)
    for whole in (bytes(data), rng.bytes(2 * LOOKED_AT)):
        with contextlib.suppress(MalformedRequestError):
            check_parts(whole)


def test_more_outputs_than_there_are_are_refused_unread() -> None:
    message = make_message()
    message.inputs[0].contents.int_contents.extend([1, 2, 3, 4])
    for _ in range(20_000):
        message.outputs.add(name="y")
    with pytest.raises(MalformedRequestError, match="20000 are asked for; the model gives: y"):
        decode_message(message, SIGNATURE)


def test_shared_memory_is_not_offered_for_outputs_either() -> None:
    message = make_message()
    message.inputs[0].contents.int_contents.extend([1, 2, 3, 4])
    message.outputs.add(name="y").parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(MalformedRequestError, match="shared memory is not offered"):
        decode_message(message, SIGNATURE)
