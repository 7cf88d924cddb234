"""Answers arrive as they left the engine, in JSON and raw; what JSON cannot hold is said."""

import json

import ml_dtypes
import numpy as np
import pytest

from deploy.engines.base import Array
from deploy.serving.errors import MalformedRequestError
from deploy.serving.http.encoding import JOIN_BELOW, encode_error, encode_response, is_finite
from deploy.serving.protocol import InferRequest, InferResponse, OutputRequest


def encode(binary: bool, **outputs: Array) -> tuple[list[bytes | memoryview], int | None]:
    wanted = tuple(OutputRequest(name, binary) for name in outputs)
    return encode_response(
        InferResponse("m", "1", "id", outputs), InferRequest("id", {}, 1, wanted)
    )


def test_json_holds_values_that_read_back_exactly() -> None:
    y = np.array([[0.1, -1e-30], [3e38, 1]], np.float32)
    parts, header = encode(False, y=y, n=np.array([2**62]), b=np.array([True]))
    assert header is None
    content = json.loads(b"".join(parts))
    assert (content["model_name"], content["model_version"], content["id"]) == ("m", "1", "id")
    first, second, third = content["outputs"]
    assert (first["datatype"], first["shape"]) == ("FP32", [2, 2])
    np.testing.assert_array_equal(np.array(first["data"], np.float32).reshape(2, 2), y)
    assert (second["data"], third["data"]) == ([2**62], [True])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, bool])
def test_raw_tensors_follow_in_row_major_order(dtype: type) -> None:
    y = np.arange(6).reshape(2, 3).astype(dtype)
    parts, header = encode(True, y=y.T, z=y)
    body = b"".join(parts)
    assert header is not None
    sizes = [out["parameters"]["binary_data_size"] for out in json.loads(body[:header])["outputs"]]
    assert sizes == [y.nbytes, y.nbytes]
    np.testing.assert_array_equal(
        np.frombuffer(body[header : header + y.nbytes], dtype).reshape(3, 2), y.T
    )
    assert body[header + y.nbytes :] == y.tobytes()


def test_a_large_raw_tensor_is_not_copied() -> None:
    y = np.zeros(JOIN_BELOW, np.float32)
    parts, _ = encode(True, y=y)
    assert np.shares_memory(np.frombuffer(parts[1], np.float32), y)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_json_cannot_hold_is_said(value: float) -> None:
    y = np.array([1, value], np.float32)
    with pytest.raises(MalformedRequestError, match="ask for binary_data"):
        encode(False, y=y)
    assert encode(True, y=y)[1] is not None
    with pytest.raises(MalformedRequestError, match="JSON has no FP16"):
        encode(False, y=np.ones(1, np.float16))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1000), (3, 7, 1001), (1, 16384)], ids=str)
def test_finite_is_told_from_what_is_not(dtype: type, shape: tuple[int, ...]) -> None:
    largest: Array = np.full(shape, float(ml_dtypes.finfo(dtype).max)).astype(dtype)
    assert is_finite(largest)  # though its sum is not
    for value in (np.nan, np.inf, -np.inf):
        for place in ((0,) * len(shape), tuple(size - 1 for size in shape)):
            spoilt = largest.copy()
            spoilt[place] = value
            assert not is_finite(spoilt)
            assert not is_finite(spoilt.T)
    assert is_finite(np.arange(5))


def test_an_error_is_an_object_with_one_key() -> None:
    assert json.loads(encode_error('a "quoted" reason')) == {"error": 'a "quoted" reason'}
