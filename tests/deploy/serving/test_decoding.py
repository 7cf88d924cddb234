"""A body fits the protocol and the model, or it is a 400 that says why; never anything else."""

import json
import math
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.engines.base import Array
from deploy.serving.errors import MalformedRequestError
from deploy.serving.http.decoding import decode_request, parse_header_length
from deploy.serving.protocol import InferRequest, OutputRequest, make_signature
from export.artifacts import TensorSpec

X = TensorSpec("x", ("batch", 4), "float32")
IDS = TensorSpec("ids", ("batch", "axis_1"), "int64")
ONE = make_signature([X], [TensorSpec("y", ("batch", 3), "float32")])
TWO = make_signature([X, IDS], [TensorSpec("y", ("batch", 3), "float32")])


def of_type(dtype: str) -> Any:
    spec = TensorSpec("x", ("batch", 2), dtype)
    return make_signature([spec], [TensorSpec("y", ("batch", 2), dtype)])


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "datatype": "FP32",
        "shape": [1, 4],
        "data": [1, 2, 3, 4],
    } | changes


def body(*inputs: Any, **others: Any) -> dict[str, Any]:
    return {"inputs": list(inputs or (entry(),)), **others}


def decode(content: Any, signature: Any = ONE, raw: bytes | None = None) -> InferRequest:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    length = None if raw is None else len(data)
    return decode_request(memoryview(bytearray(data + (raw or b""))), length, signature)


def refuse(content: Any, match: str, signature: Any = ONE, raw: bytes | None = None) -> None:
    with pytest.raises(MalformedRequestError, match=match) as caught:
        decode(content, signature, raw)
    assert caught.value.status == 400


@pytest.mark.parametrize("data", [[1, 2.5, -3, 4e-3], [[1, 2.5, -3, 4e-3]]])
def test_json_values_may_be_flat_or_nested(data: Any) -> None:
    request = decode(body(entry(data=data), id="a"))
    assert (request.id, request.rows) == ("a", 1)
    assert request.feeds["x"].dtype == np.float32
    np.testing.assert_array_equal(request.feeds["x"], np.array([[1, 2.5, -3, 4e-3]], np.float32))


def test_raw_tensors_are_read_in_the_order_of_the_inputs() -> None:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    ids = np.arange(6, dtype=np.int64).reshape(2, 3)
    request = decode(
        body(
            entry_raw("x", "FP32", x),
            entry_raw("ids", "INT64", ids),
        ),
        TWO,
        x.tobytes() + ids.tobytes(),
    )
    assert request.rows == 2
    np.testing.assert_array_equal(request.feeds["x"], x)
    np.testing.assert_array_equal(request.feeds["ids"], ids)
    assert all(array.flags.aligned for array in request.feeds.values())


def entry_raw(name: str, datatype: str, array: Array) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(array.shape),
        "parameters": {"binary_data_size": array.nbytes},
    }


def test_a_raw_tensor_is_a_view_of_the_body() -> None:
    head = json.dumps(body(entry_raw("x", "FP32", np.zeros((1, 4), np.float32)))).encode()
    head += b" " * (-len(head) % 64)
    data = bytearray(head + np.ones(4, np.float32).tobytes())
    request = decode_request(memoryview(data), len(head), ONE)
    data[len(head) :] = np.full(4, 7, np.float32).tobytes()
    np.testing.assert_array_equal(request.feeds["x"], np.full((1, 4), 7, np.float32))


@pytest.mark.parametrize(
    ("dtype", "datatype", "values"),
    [
        ("bool", "BOOL", [[True, False]]),
        ("uint8", "UINT8", [[0, 255]]),
        ("int8", "INT8", [[-128, 127]]),
        ("uint64", "UINT64", [[0, 2**64 - 1]]),
        ("int64", "INT64", [[-(2**63), 2**63 - 1]]),
        ("float64", "FP64", [[1e300, -1]]),
    ],
)
def test_every_dtype_keeps_its_extremes_in_json(dtype: str, datatype: str, values: Any) -> None:
    request = decode(body(entry(datatype=datatype, shape=[1, 2], data=values)), of_type(dtype))
    assert request.feeds["x"].tolist() == values


@pytest.mark.parametrize(("dtype", "datatype"), [("float16", "FP16"), ("bfloat16", "BF16")])
def test_half_floats_travel_raw_alone(dtype: str, datatype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    x = np.array([[1.5, -2]], kind)
    signature = of_type(dtype)
    request = decode(body(entry_raw("x", datatype, x)), signature, x.tobytes())
    np.testing.assert_array_equal(request.feeds["x"], x)
    refuse(body(entry(datatype=datatype, shape=[1, 2], data=[1, 2])), "send it raw", signature)


def test_outputs_and_how_to_carry_them() -> None:
    assert decode(body()).outputs == (OutputRequest("y", False),)
    raw = body(parameters={"binary_data_output": True})
    assert decode(raw).outputs == (OutputRequest("y", True),)
    asked = body(outputs=[{"name": "y", "parameters": {"binary_data": True}}])
    assert decode(asked).outputs == (OutputRequest("y", True),)
    twice = body(outputs=[{"name": "y"}, {"name": "y"}])
    refuse(twice, "twice")
    refuse(body(outputs=[{"name": "z"}]), "there is no output 'z'; the model gives: y")
    refuse(body(outputs=[{"name": "y", "parameters": {"classification": 3}}]), "classification")


def test_priority_and_timeout() -> None:
    request = decode(body(parameters={"priority": 1, "timeout": 1500, "mine": [1]}))
    assert (request.priority, request.timeout_s) == (1, 0.0015)
    for parameters, expected in (
        ({"timeout": 2}, (0, 2e-6)),
        ({"priority": 3}, (3, None)),
        ({}, (0, None)),
    ):
        request = decode(body(parameters=parameters))
        assert (request.priority, request.timeout_s) == expected
    for wrong in ({"priority": -1}, {"priority": 1.5}, {"priority": True}, {"timeout": "1"}):
        refuse(body(parameters=wrong), "whole number|microseconds")
    refuse(body(parameters={"sequence_id": 4}), "sequences are not offered")


@pytest.mark.parametrize(
    "shape",
    [
        [-1, 4],
        [0, 4],
        [1.0, 4],
        [True, 4],
        ["1", 4],
        "1x4",
        None,
        4,
        [1, 4, 1],
        [4],
        [],
        [1, 5],
        [[1], 4],
        [2**63, 4],
        [2**62, 4],
        [10**30, 4],
    ],
)
def test_shapes_that_are_none_or_not_the_models(shape: Any) -> None:
    refuse(body(entry(shape=shape)), "shape")
    raw = entry(shape=shape, parameters={"binary_data_size": 16})
    del raw["data"]
    refuse(body(raw), "shape|binary_data_size", raw=bytes(16))


@pytest.mark.parametrize("shape", [[1, 5], [1, 3], [4, 1], [1, 4, 1], [4]])
def test_a_shape_that_is_not_the_models_is_refused_though_the_data_has_it(shape: list[int]) -> None:
    size = math.prod(shape)
    refuse(body(entry(shape=shape, data=[1.0] * size)), r"the model takes \[-1, 4\]")
    raw = entry(shape=shape, parameters={"binary_data_size": 4 * size})
    del raw["data"]
    refuse(body(raw), r"the model takes \[-1, 4\]", raw=bytes(4 * size))


def test_a_model_shares_runs_only_where_every_tensor_has_the_batch() -> None:
    whole, lone = TensorSpec("y", ("batch", 3), "float32"), TensorSpec("z", (3,), "float32")
    assert make_signature([X, IDS], [whole]).batched
    assert not make_signature([X], [whole, lone]).batched
    assert not make_signature([X], [lone, whole]).batched
    assert not make_signature([X, TensorSpec("w", (3,), "float32")], [whole]).batched


def test_products_of_sizes_do_not_overflow() -> None:
    """2^32 times 2^32 is 0 in 64 bits, which an empty body would fit."""
    spec = TensorSpec("x", ("batch", "axis_1", "axis_2"), "float32")
    signature = make_signature([spec], [TensorSpec("y", ("batch",), "float32")])
    shape = [2**32, 2**32, 1]
    raw = {"name": "x", "datatype": "FP32", "shape": shape}
    refuse(body(raw | {"parameters": {"binary_data_size": 0}}), "must be", signature, b"")
    refuse(body(raw | {"data": []}), "does not have the shape", signature)


@pytest.mark.parametrize("size", [-16, 15, 17, 0, 16.0, True, "16", 2**70, [16]])
def test_a_false_size_of_raw_data(size: Any) -> None:
    raw = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
    refuse(body(raw | {"parameters": {"binary_data_size": size}}), "must be 16", raw=bytes(16))


def test_raw_data_that_is_short_long_shared_or_not_announced() -> None:
    raw = entry_raw("x", "FP32", np.zeros((1, 4), np.float32))
    ids = entry_raw("ids", "INT64", np.zeros((1, 2), np.int64))
    refuse(body(raw), "needs 16 bytes of raw data and 12", raw=bytes(12))
    refuse(body(raw), "4 bytes of raw data belong to no input", raw=bytes(20))
    refuse(body(raw, ids), "needs 16 bytes of raw data and 0", TWO, bytes(16))
    refuse(body(raw), "Inference-Header-Content-Length is missing")
    refuse(body(entry(parameters={"binary_data_size": 16})), "both data and", raw=bytes(16))
    region = {"shared_memory_region": "a", "shared_memory_byte_size": 16}
    refuse(body(entry(parameters=region)), "shared memory is not offered")


def test_raw_booleans_are_0_or_1() -> None:
    raw = entry_raw("x", "BOOL", np.zeros((1, 2), bool))
    refuse(body(raw), "0 or 1", of_type("bool"), raw=b"\x01\x02")


@pytest.mark.parametrize("length", [b"\xff\xff\xff\xff", struct.pack("<I", 2**31), b"", b"ab"])
def test_texts_with_false_lengths_are_never_read(length: bytes) -> None:
    """No engine takes BYTES, so lengths inside of them are not looked at."""
    raw = entry(datatype="BYTES", parameters={"binary_data_size": len(length)})
    del raw["data"]
    refuse(body(raw), "datatype 'BYTES'; the model takes FP32", raw=length)


@pytest.mark.parametrize(
    "data",
    [
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [],
        [[1, 2], [3, 4]],
        [[1, 2, 3, 4], [5, 6, 7, 8]],
        [[1, 2, 3, [4]]],
        [[[1, 2, 3, 4]]],
        [1, 2, 3, [4]],
        [[1, 2, 3, 4], 5],
        "1234",
        {"0": 1},
        None,
        4,
        [1, 2, 3, "4"],
        [1, 2, 3, None],
        [1, 2, 3, True],
        [1, 2, 3, {}],
        [1, 2, 3, 1e39],
        [1, 2, 3, 10**40],
    ],
)
def test_data_that_is_not_of_its_shape_and_type(data: Any) -> None:
    refuse(body(entry(data=data)), "data|range")


@pytest.mark.parametrize(
    ("dtype", "datatype", "value"),
    [
        ("int8", "INT8", 128),
        ("uint8", "UINT8", -1),
        ("int64", "INT64", 2**63),
        ("uint64", "UINT64", 2**64),
        ("int32", "INT32", 1.5),
        ("int32", "INT32", math.inf),
        ("int32", "INT32", True),
        ("bool", "BOOL", 1),
    ],
)
def test_values_of_another_kind_or_beyond_the_type(dtype: str, datatype: str, value: Any) -> None:
    for data in ([value, value], [value, 0], [0, value]):
        whole = [bool(each) if dtype == "bool" and each == 0 else each for each in data]
        text = json.dumps(body(entry(datatype=datatype, shape=[1, 2], data=whole)))
        refuse(text.replace("Infinity", "1e400").encode(), "data|range|JSON", of_type(dtype))


@pytest.mark.parametrize("value", [1e39, -1e39])
def test_one_value_beyond_float32_is_refused_among_others(value: float) -> None:
    for place in range(4):
        data = [1.0, -2.0, 3.0, 4.0]
        data[place] = value
        refuse(body(entry(data=data)), "a value is beyond the range of FP32")


@pytest.mark.parametrize(
    "data",
    [
        [[1, 2, 3], [4, 5, 6, 7, 8]],
        [[1, 2, 3, 4, 5, 6, 7, 8], []],
        [[1, 2, 3, 4], "5678"],
        [[1, 2, 3, 4], {"5": 5, "6": 6, "7": 7, "8": 8}],
        [[1, 2, 3, 4], 5678],
    ],
)
def test_rows_of_other_lengths_are_refused_though_they_add_up(data: Any) -> None:
    refuse(body(entry(shape=[2, 4], data=data)), "data does not have the shape")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"nonsense",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"x"',
        b"{}",
        b'{"inputs": 1}',
        b'{"inputs": [1]}',
        b'{"inputs": [{}]}',
        b'{"inputs": []}',
        b'{"inputs": [], "id": 3}',
        b'{"inputs": [], "id": null}',
        b'{"inputs": [], "parameters": []}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [NaN,1,1,1]}]}',
        b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1e400,1,1,1]}]}',
    ],
)
def test_what_is_no_request(text: bytes) -> None:
    refuse(text, ".")


@pytest.mark.parametrize(
    ("bracket", "reason"), [(b"[", "not valid JSON"), (b'{"a":', "too many parts")]
)
def test_json_that_nests_without_end(bracket: bytes, reason: str) -> None:
    refuse(bracket * 250_000, reason)
    refuse(bracket * 10_000, "not valid JSON")
    nested = b'{"inputs": ' + b"[" * 250_000 + b"]" * 250_000 + b"}"
    refuse(nested, "not valid JSON")
    refuse(b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": '
           + b"[" * 500 + b"]" * 500 + b"}]}", "data")  # fmt: skip


def test_inputs_that_are_doubled_unknown_missing_or_at_odds() -> None:
    refuse(body(entry(), entry()), "input 'x' is there twice")
    refuse(body(entry(name="z")), "there is no input 'z'; the model takes: x")
    refuse(body(entry()), "input 'ids' is missing", TWO)
    ids = {"name": "ids", "datatype": "INT64", "shape": [2, 1], "data": [1, 2]}
    refuse(body(entry(), ids), "different batch sizes: 2 in 'ids', 1 before", TWO)
    refuse(body(entry(datatype="FP64")), "datatype 'FP64'; the model takes FP32")
    refuse(body(entry(name="z" * 10_000)), r"there is no input 'z{99}\.\.\.")
    assert len(decode(body(entry(), id="i" * 256)).id) == 256
    refuse(body(id="i" * 257), "at most 256")


@pytest.mark.parametrize("text", ["-5", "abc", "", "1e3", "11", "99999999999999999999", "+1", "１"])
def test_a_false_length_of_the_json_header(text: str) -> None:
    with pytest.raises(MalformedRequestError, match="within the body"):
        parse_header_length(text, 10)
    assert parse_header_length("10", 10) == 10


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
KEYS = ("name", "datatype", "shape", "data", "parameters")


@pytest.mark.thorough
@settings(max_examples=200)
@given(
    changes=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3),
    others=st.dictionaries(st.sampled_from(("id", "outputs", "parameters")), JSON, max_size=2),
    raw=st.none() | st.binary(max_size=20),
)
def test_whatever_is_sent_is_read_or_a_400(
    changes: dict[str, Any], others: dict[str, Any], raw: bytes | None
) -> None:
    try:
        request = decode(body(entry(**changes), **others), raw=raw)
    except MalformedRequestError:
        return
    assert request.feeds["x"].shape == (request.rows, 4)


@pytest.mark.parametrize("data", [[[1.0]], [[]], [[[1]]], []])
def test_a_scalar_is_no_list_of_lists(data: Any) -> None:
    spec = TensorSpec("x", (), "float32")
    signature = make_signature([spec], [TensorSpec("y", (), "float32")])
    assert decode(body(entry(shape=[], data=[2.5])), signature).feeds["x"] == 2.5
    refuse(body(entry(shape=[], data=data)), "does not have the shape", signature)


def test_more_outputs_than_there_are_are_refused_unread() -> None:
    refuse(body(outputs=[{}] * 30_000), "30000 are asked for; the model gives: y")
