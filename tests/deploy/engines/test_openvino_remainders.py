"""Remainders of integers are those of integers, however large these are."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from deploy.engines import EngineSpec, open_engine
from export.errors import EngineError

LARGE = [0, 5, -1, 2**24 + 1, 2**25 - 3, 2**30 + 11, 2**31 - 1, -(2**24) - 1, -(2**31) + 1]


def write_remainder(path: Path, kind: type, divisor: int, *, truncates: bool = False) -> EngineSpec:
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        [helper.make_node("Mod", ["ids", "divisor"], ["rows"], fmod=int(truncates))],
        "hashed",
        [helper.make_tensor_value_info("ids", number, ["batch", len(LARGE)])],
        [helper.make_tensor_value_info("rows", number, ["batch", len(LARGE)])],
        [numpy_helper.from_array(np.array(divisor, kind), "divisor")],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return EngineSpec("openvino", "fp32", str(path), 1)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("divisor", [1, 2, 7, 23, 1000, 1_048_576, 4_194_301])
def test_remainders_of_large_integers_are_exact(tmp_path: Path, kind: type, divisor: int) -> None:
    """OpenVINO 2026.4 computes them in float32."""
    random = np.random.default_rng(divisor)
    drawn = random.integers(-(2**31) + 1, 2**31 - 1, (300, len(LARGE)))
    ids = np.concatenate([np.array([LARGE]), drawn]).astype(kind)
    with open_engine(write_remainder(tmp_path / "model.onnx", kind, divisor)) as engine:
        np.testing.assert_array_equal(engine({"ids": ids})["rows"], ids % divisor)


@pytest.mark.parametrize("divisor", [1, 23, 1_048_576, 4_194_301])
def test_remainders_with_the_sign_of_the_number_are_exact(tmp_path: Path, divisor: int) -> None:
    random = np.random.default_rng(divisor)
    drawn = random.integers(-(2**31) + 1, 2**31 - 1, (300, len(LARGE)))
    ids = np.concatenate([np.array([LARGE]), drawn])
    spec = write_remainder(tmp_path / "model.onnx", np.int64, divisor, truncates=True)
    with open_engine(spec) as engine:
        np.testing.assert_array_equal(engine({"ids": ids})["rows"], np.fmod(ids, divisor))


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16])
def test_remainders_of_short_integers_stay_as_they_are(tmp_path: Path, kind: type) -> None:
    ids = np.arange(len(LARGE), dtype=kind)[None] * 13
    with open_engine(write_remainder(tmp_path / "model.onnx", kind, 7)) as engine:
        np.testing.assert_array_equal(engine({"ids": ids})["rows"], ids % 7)


def test_integers_that_it_has_not_are_refused(tmp_path: Path) -> None:
    with (
        open_engine(write_remainder(tmp_path / "model.onnx", np.int64, 23)) as engine,
        pytest.raises(EngineError, match="'ids' holds integers beyond 2147483647"),
    ):
        engine({"ids": np.full((1, len(LARGE)), 2**33 + 5)})


def test_a_divisor_too_large_for_it_is_left(tmp_path: Path) -> None:
    ids = np.arange(len(LARGE), dtype=np.int64)[None] * 1_000_000
    with open_engine(write_remainder(tmp_path / "model.onnx", np.int64, 2**23)) as engine:
        np.testing.assert_array_equal(engine({"ids": ids})["rows"], ids % 2**23)
