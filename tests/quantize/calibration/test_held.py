"""Which samples of a stream are kept."""

from pathlib import Path

import numpy as np
import pytest

from export.artifacts import OnnxModel, TensorSpec
from quantize.calibration.held import HeldSamples, choose_limit


def _model(*specs: TensorSpec) -> OnnxModel:
    return OnnxModel(Path("m.onnx"), specs, (), 20)


def _keep(total: int, batch: int) -> list[int]:
    held = HeldSamples(_model(TensorSpec("x", ("batch", 2), "float32")))
    for start in range(0, total, batch):
        rows = np.arange(start, min(total, start + batch), dtype=np.float32)
        held.offer({"x": np.stack([rows, rows], axis=1)}, len(rows))
    assert all(feeds["x"].shape == (1, 2) for feeds in held.batches)
    return [int(feeds["x"][0, 0]) for feeds in held.batches]


@pytest.mark.parametrize("total", [1, 5, 16, 17, 100, 512, 1000])
def test_samples_are_spread_over_the_stream(total: int) -> None:
    kept = _keep(total, 8)
    assert min(total, 9) <= len(kept) <= 16
    assert len(set(np.diff(kept))) <= 1
    assert kept[0] == 0
    assert kept[-1] >= total * 7 / 8 - 1
    assert kept == _keep(total, 3)


def test_inputs_without_a_batch_axis_are_kept_whole() -> None:
    specs = TensorSpec("x", ("batch", 2), "float32"), TensorSpec("table", (7,), "float32")
    held = HeldSamples(_model(*specs))
    held.offer({"x": np.ones((3, 2)), "table": np.ones(7)}, 3)
    assert [len(feeds["table"]) for feeds in held.batches] == [7, 7, 7]


def test_batches_of_a_fixed_size_are_kept_whole() -> None:
    held = HeldSamples(_model(TensorSpec("x", (6, 2), "float32")))
    for number in range(9):
        held.offer({"x": np.full((6, 2), number)}, 6)
    assert [feeds["x"].shape for feeds in held.batches] == [(6, 2)] * len(held.batches)
    assert [int(feeds["x"][0, 0]) for feeds in held.batches] in ([0, 8], [0])


def test_one_batch_is_kept_however_large_the_fixed_size() -> None:
    held = HeldSamples(_model(TensorSpec("x", (64, 2), "float32")))
    held.offer({"x": np.ones((64, 2))}, 64)
    held.offer({"x": np.ones((64, 2))}, 64)
    assert len(held.batches) == 1


def test_what_is_kept_is_a_copy() -> None:
    held, batch = HeldSamples(_model(TensorSpec("x", ("batch", 1), "float32"))), np.ones((2, 1))
    held.offer({"x": batch}, 2)
    batch[:] = 5
    assert (held.batches[0]["x"] == 1).all()


@pytest.mark.parametrize(("values", "samples"), [(0, 128), (100, 128), (2**15, 32), (10**7, 16)])
def test_more_samples_are_kept_of_a_model_with_small_activations(values: int, samples: int) -> None:
    assert choose_limit(values) == samples
