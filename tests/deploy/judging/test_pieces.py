"""Batches of any size on engines that take a few samples: the same answers, nothing lost."""

from dataclasses import replace

import numpy as np
import pytest

from deploy.engines import EngineSpec
from deploy.judging.pieces import largest_batch, run_in_pieces
from export.errors import EngineError
from export.tensorrt.options import ShapeProfile
from export.tensorrt.record import EngineRecord

SPEC = EngineSpec("tensorrt", "fp16", "model.engine", 1)


def spec(*sizes: int) -> EngineSpec:
    profiles = tuple(ShapeProfile({"x": ((1, 3), (1, 3), (most, 3))}) for most in sizes)
    record = EngineRecord("tensorrt", "11.4", ("SM89",), (), profiles, "0" * 64, "0" * 64)
    return replace(SPEC, record=record)


def strict(most: int, seen: list[int]):
    def run(feeds):
        seen.append(len(feeds["x"]))
        assert len(feeds["x"]) <= most
        return {"twice": 2 * feeds["x"], "across": feeds["x"].T}

    return run


def test_the_largest_profile_counts_and_other_engines_take_any_batch() -> None:
    assert largest_batch(spec(1, 16, 4)) == 16
    assert largest_batch(spec()) is None
    assert largest_batch(SPEC) is None


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 11])
def test_pieces_are_put_together_on_the_axis_of_samples(rows: int) -> None:
    seen: list[int] = []
    x = np.random.default_rng(0).standard_normal((rows, 3))
    found = run_in_pieces(strict(4, seen), 4, {"twice": 0, "across": 1})({"x": x})
    np.testing.assert_array_equal(found["twice"], 2 * x)
    np.testing.assert_array_equal(found["across"], x.T)
    assert sum(seen) == rows


def test_an_engine_without_a_limit_is_called_as_it_is() -> None:
    run = strict(99, [])
    assert run_in_pieces(run, None, {"twice": 0}) is run


def test_an_output_without_samples_cannot_be_put_together() -> None:
    run = run_in_pieces(strict(4, []), 4, {"twice": 0, "across": None})
    assert run({"x": np.zeros((4, 3))})["across"].shape == (3, 4)  # of one piece it need not be
    with pytest.raises(EngineError, match=r"'across' has no axis.*--batch 1,4,9"):
        run({"x": np.zeros((9, 3))})


def test_the_input_that_takes_the_fewest_samples_is_the_limit() -> None:
    shapes = {"x": ((1, 3), (1, 3), (16, 3)), "mask": ((1, 9), (1, 9), (4, 9))}
    record = EngineRecord(
        "tensorrt", "11.4", ("SM89",), (), (ShapeProfile(shapes),), "0" * 64, "0" * 64
    )
    assert largest_batch(replace(SPEC, record=record)) == 4
