"""Arrays survive the wire bit by bit; answers that are not what the protocol says are refused."""

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oip_server import NAMES, read_inputs, write_outputs

from deploy.client.tensors import HEAD_LENGTH, decode_answer, encode_request, read_signature
from deploy.datatypes import name_datatype, read_datatype, to_wire
from deploy.inputs.declared import DTYPES
from export.errors import ServerError

_ARRAYS = hnp.arrays(
    st.sampled_from([np.dtype(code) for code in NAMES]), hnp.array_shapes(min_dims=0, min_side=0)
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), _ARRAYS, min_size=1, max_size=3))
def test_arrays_reach_a_server_and_come_back_bit_by_bit(feeds: dict[str, Any]) -> None:
    request = encode_request(feeds)
    seen = read_inputs(request.body, request.headers[HEAD_LENGTH])
    headers, body = write_outputs(seen, binary=True)
    returned = decode_answer(body, headers[HEAD_LENGTH])
    for found in (seen, returned):
        assert list(found) == list(feeds)
        for name, array in feeds.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert found[name].tobytes() == array.tobytes()


def test_binary_outputs_are_asked_for() -> None:
    request = encode_request({"x": np.zeros((1, 2), np.float32)})
    head = json.loads(request.body[: int(request.headers[HEAD_LENGTH])])
    assert head["parameters"] == {"binary_data_output": True}
    assert head["inputs"][0]["parameters"] == {"binary_data_size": 8}


@pytest.mark.parametrize("layout", ["transposed", "big-endian", "sliced"])
def test_bytes_are_row_major_and_little_endian(layout: str) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    given = {
        "transposed": np.asfortranarray(array),
        "big-endian": array.astype(">f4"),
        "sliced": np.repeat(array, 2, axis=1)[:, ::2],
    }[layout]
    assert to_wire(given) == b"".join(np.float32(v).tobytes() for v in range(6))


def test_bfloat16_is_raw() -> None:
    array = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    request = encode_request({"x": array})
    head, raw = np.split(np.frombuffer(request.body, np.uint8), [int(request.headers[HEAD_LENGTH])])
    assert json.loads(head.tobytes())["inputs"][0]["datatype"] == "BF16"
    assert raw.tobytes() == array.tobytes() == b"\xc0\x3f\x00\xc0"


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_an_engine_has_a_name_and_back(dtype: str) -> None:
    assert str(read_datatype(name_datatype(dtype))) == dtype


def test_answers_in_json_are_read_as_well() -> None:
    array = np.array([[1.5, 2.0]], np.float32)
    _, body = write_outputs({"y": array, "n": np.array([3])}, binary=False)
    found = decode_answer(body, None)
    np.testing.assert_array_equal(found["y"], array)
    assert (found["y"].dtype, found["n"].dtype) == (np.float32, np.int64)


OUTPUT = {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}


def answer(raw: bytes = b"\0" * 8, *, length: object = None, **changes: Any) -> Any:
    head = json.dumps({"outputs": [{**OUTPUT, **changes}]}).encode()
    return head + raw, str(len(head) if length is None else length)


@pytest.mark.parametrize(
    ("body", "length"),
    [
        answer(b"\0" * 7),
        answer(b"\0" * 9),
        answer(length=0),
        answer(length=-5),
        answer(length=10**6),
        answer(length="many"),
        answer(datatype="BYTES"),
        answer(datatype="FP64"),
        answer(shape=[1, -2]),
        answer(shape=["1"] * 3),
        answer(shape=7),
        answer(name=["y"]),
        answer(parameters=[]),
        answer(parameters={"binary_data_size": "8"}),
        (b"", None),
        (b"not json", None),
        (b"[]", None),
        (b'{"outputs": 3}', None),
        (b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}]}', None),
        *(
            (b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": %b}]}' % rest, None)
            for rest in (
                b'[2], "data": ["a", "b"]',
                b'[-1], "data": [1, 2]',
                b'[1e400], "data": [1]',
                b'[1], "data": [1%b]' % (b"0" * 400),
                b'[1], "data": %b' % (b"[" * 10_000),
            )
        ),
    ],
)
def test_an_answer_that_is_not_what_the_protocol_says_is_refused(
    body: bytes, length: str | None
) -> None:
    with pytest.raises(ServerError, match="The server's answer cannot be read: "):
        decode_answer(body, length)


def test_a_signature_has_the_batch_in_front_and_names_for_other_axes() -> None:
    (spec,) = read_signature([{"name": "ids", "datatype": "INT64", "shape": [-1, -1, 8]}])
    assert (spec.name, spec.shape, spec.dtype) == ("ids", ("batch", "axis1", 8), "int64")
    assert read_signature([{"name": "s", "datatype": "BOOL", "shape": []}])[0].shape == ()
    sizes = {"ids": {"1": [4, 64, 256]}}
    (spec,) = read_signature([{"name": "ids", "datatype": "INT64", "shape": [-1, -1, 8]}], sizes)
    assert spec.with_batch(2) == (2, 64, 8)
    for wrong in (
        {"name": "x"},
        {"name": "x", "datatype": "BYTES", "shape": [1]},
        {"name": "x", "datatype": "FP32", "shape": [math.inf]},
    ):
        with pytest.raises(ServerError, match="describes a tensor that cannot be used"):
            read_signature([wrong])
