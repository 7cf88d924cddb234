"""Large answers as JSON: written as small ones are, and others have their turn meanwhile."""

import asyncio
import json

import numpy as np
import pytest

from deploy.engines.base import Array
from deploy.serving.errors import MalformedRequestError
from deploy.serving.http.slices import LARGE, encode_in_slices
from deploy.serving.protocol import InferRequest, InferResponse, OutputRequest


def encode_large(binary: set[str], **outputs: Array) -> tuple[bytes, int | None, int]:
    """Body, length of its JSON, and how often something else had its turn meanwhile."""
    wanted = tuple(OutputRequest(name, name in binary) for name in outputs)
    turns = 0
    held: list[int] = []

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def scenario() -> tuple[list[bytes | memoryview], int | None]:
        other = asyncio.ensure_future(others())
        try:
            return await encode_in_slices(
                InferResponse("m", "1", "id", outputs),
                InferRequest("id", {}, 1, wanted),
                held.append,
            )
        finally:
            other.cancel()

    parts, header = asyncio.run(scenario())
    text = sum(map(len, parts)) if header is None else header
    if turns:
        assert 0.9 * text < sum(held) <= text
    else:
        assert held == []
    return b"".join(parts), header, turns


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
@pytest.mark.parametrize("extra", [0, 1, 12_345])
def test_a_large_answer_is_written_as_a_small_one_is(dtype: type, extra: int) -> None:
    values = LARGE // np.dtype(dtype).itemsize + extra
    y = (np.random.default_rng(extra).standard_normal(values) * 50).astype(dtype)
    small = np.array([[1, 2]], np.int32)
    body, header, turns = encode_large(set(), a=small, y=y.reshape(1, -1), z=small)
    assert header is None
    content = json.loads(body)
    assert [content[key] for key in ("model_name", "model_version", "id")] == ["m", "1", "id"]
    assert [out["name"] for out in content["outputs"]] == ["a", "y", "z"]
    assert [out["shape"] for out in content["outputs"]] == [[1, 2], [1, values], [1, 2]]
    np.testing.assert_array_equal(np.array(content["outputs"][1]["data"], dtype), y)
    assert content["outputs"][2]["data"] == [1, 2]
    assert turns >= values // 2**14


def test_a_large_tensor_as_json_beside_a_raw_one() -> None:
    y = np.random.default_rng(0).standard_normal((2, LARGE // 8)).astype(np.float32)
    z = np.arange(3, dtype=np.int16)
    body, header, _ = encode_large({"z"}, y=y.T, z=z)
    assert header is not None
    first, second = json.loads(body[:header])["outputs"]
    np.testing.assert_array_equal(np.array(first["data"], np.float32).reshape(y.T.shape), y.T)
    assert second["parameters"] == {"binary_data_size": 6}
    assert body[header:] == z.tobytes()


def test_a_small_answer_is_written_at_once() -> None:
    assert encode_large(set(), y=np.zeros(LARGE // 4 - 1, np.float32))[2] == 0
    assert encode_large({"y"}, y=np.zeros(LARGE, np.float32))[2] == 0


def test_the_last_value_of_a_large_answer_is_looked_at_as_well() -> None:
    y = np.zeros(LARGE, np.float32)
    y[-1] = np.nan
    with pytest.raises(MalformedRequestError, match="ask for binary_data"):
        encode_large(set(), y=y)
    with pytest.raises(MalformedRequestError, match="JSON has no FP16"):
        encode_large(set(), y=y.astype(np.float16))
