"""Specs give concrete shapes and read well; records are frozen."""

import dataclasses
from pathlib import Path

import pytest

from export.artifacts import BATCH, Fused, OnnxModel, Skip, TensorSpec


@pytest.mark.parametrize(
    ("shape", "batch", "expected"),
    [
        ((BATCH, 3, 4), 7, (7, 3, 4)),
        ((BATCH, "height", 4), 2, (2, 1, 4)),
        ((5, 3), 7, (5, 3)),
        ((), 7, ()),
        (("time", BATCH), 3, (1, 3)),
    ],
)
def test_batch_takes_its_size_and_other_symbols_one(
    shape: tuple[int | str, ...], batch: int, expected: tuple[int, ...]
) -> None:
    assert TensorSpec("x", shape, "float32").with_batch(batch) == expected


@pytest.mark.parametrize(
    ("shape", "dynamic"),
    [((BATCH, 3), True), ((BATCH,), True), ((1, 3), False), ((), False), ((3, BATCH), False)],
)
def test_only_a_leading_batch_is_dynamic(shape: tuple[int | str, ...], dynamic: bool) -> None:
    assert TensorSpec("x", shape, "float32").has_dynamic_batch is dynamic


def test_spec_reads_as_the_user_writes_it() -> None:
    assert str(TensorSpec("ids", (BATCH, 128), "int64")) == "ids:batchx128:int64"


@pytest.mark.parametrize(
    "record",
    [
        TensorSpec("x", (1,), "float32"),
        OnnxModel(Path("m.onnx"), (), (), 20),
        Fused(("conv", "bn"), "conv-bn", "bn(conv3x3(x))", 9, 9, 81, 81, 1e-16, 1e-7, 1e-7),
        Skip("stem", "conv-bn", "shared weight"),
    ],
    ids=lambda record: type(record).__name__,
)
def test_records_are_frozen_and_equal_by_value(record: object) -> None:
    name = dataclasses.fields(record)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, None)
    assert dataclasses.replace(record) == record  # type: ignore[type-var]
    assert hash(record) == hash(dataclasses.replace(record))  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((BATCH, 3), 0),
        ((1, BATCH, 16), 1),
        ((3, 4, BATCH), 2),
        ((2, 3), None),
        ((), None),
        ((BATCH, BATCH), None),  # each answer belongs to two samples
        (("2*batch", 3), None),
    ],
)
def test_the_axis_of_the_samples_is_the_only_one_of_the_batch(
    shape: tuple[int | str, ...], axis: int | None
) -> None:
    assert TensorSpec("x", shape, "float32").batch_axis == axis
