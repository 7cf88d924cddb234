"""Samples are read when they are asked for, and bound to a model only where they fit."""

from pathlib import Path

import numpy as np
import pytest

from deploy.inputs.data import check_data
from export.artifacts import TensorSpec
from tests.samples import IMAGE, RNG_SEED, floats, open_plain, refuse, save_npz


class TestRows:
    def test_npy_is_not_read_before_it_is_asked_for(self, tmp_path: Path) -> None:
        x = floats(6, 2)
        np.save(tmp_path / "d.npy", x)
        dataset = open_plain(tmp_path / "d.npy", ["image"])
        assert dataset.labels is None
        batch = dataset.batch([5])["image"]
        assert type(batch) is np.ndarray
        np.testing.assert_array_equal(batch, x[[5]])
        changed = np.load(tmp_path / "d.npy", mmap_mode="r+")
        changed[5] = 9
        changed.flush()
        assert (dataset.batch([5])["image"] == 9).all()

    def test_batch_is_the_callers_own(self, tmp_path: Path) -> None:
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=floats(3, 2)))
        first = dataset.batch([0])["x"]
        first[:] = 0
        assert (dataset.batch([0])["x"] != 0).any()

    def test_float64_and_foreign_byte_order_become_native_float32(self, tmp_path: Path) -> None:
        x = floats(3, 2)
        for name, array in (("a", x.astype(np.float64)), ("b", x.astype(">f4"))):
            dataset = open_plain(save_npz(tmp_path / f"{name}.npz", x=array))
            assert dataset.specs()[0].dtype == "float32"
            batch = dataset.batch([0, 1, 2])["x"]
            assert batch.dtype == np.float32
            assert batch.dtype.isnative
            np.testing.assert_array_equal(batch, x)

    def test_batches_cover_all_samples_in_order(self, tmp_path: Path) -> None:
        x = floats(7, 2)
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=x))
        batches = [batch["x"] for batch in dataset.batches(3)]
        assert [len(batch) for batch in batches] == [3, 3, 1]
        np.testing.assert_array_equal(np.concatenate(batches), x)


class TestBinding:
    def test_bind_gives_the_models_names_and_dtypes(self, tmp_path: Path) -> None:
        x = np.random.default_rng(RNG_SEED).standard_normal((4, 2))
        bound = open_plain(save_npz(tmp_path / "d.npz", x=x)).bind(
            [TensorSpec("image", ("batch", 2), "float64")]
        )
        np.testing.assert_array_equal(bound.batch(range(4))["image"], x)
        ids = open_plain(save_npz(tmp_path / "i.npz", x=np.ones((4, 2), np.int32)))
        bound = ids.bind([TensorSpec("ids", ("batch", 2), "int64")])
        assert bound.batch([0])["ids"].dtype == np.int64

    @pytest.mark.parametrize(
        ("array", "spec", "parts"),
        [
            (floats(2, 4, 5, 3), IMAGE, ("4x5x3", "3x4x5", "transpose")),
            (floats(3, 4, 5), IMAGE, ("4x5", "axis of the samples")),
            (floats(2, 3, 4, 6), IMAGE, ("3x4x6", "3x4x5")),
            (np.zeros((2, 3, 4, 5), np.uint8), IMAGE, ("uint8", "float32", "scaled", "/ 255")),
            (np.zeros((2, 3, 4, 5), np.int64), IMAGE, ("int64", "float32", ".astype('float32')")),
            (floats(2, 7), TensorSpec("ids", ("batch", 7), "int64"), ("float32", "int64")),
            (
                np.zeros((2, 7), np.int64),
                TensorSpec("ids", ("batch", 7), "int32"),
                ("int64", "int32"),
            ),
        ],
    )
    def test_mismatch_says_what_to_do(
        self, tmp_path: Path, array: np.ndarray, spec: TensorSpec, parts: tuple[str, ...]
    ) -> None:
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=array))
        refuse(lambda: check_data(dataset, [spec]), "d.npz", repr(spec.name), *parts)

    def test_inputs_that_are_missing_or_too_many(self, tmp_path: Path) -> None:
        specs = [TensorSpec("ids", ("batch", 2), "float32"), TensorSpec("m", ("batch",), "bool")]
        lone = open_plain(save_npz(tmp_path / "d.npz", x=floats(3, 2)))
        refuse(lambda: check_data(lone, specs), "x:Nx2:float32", "ids:batchx2:float32", "m:batch")
        two = open_plain(save_npz(tmp_path / "e.npz", ids=floats(3, 2), other=floats(3)))
        refuse(lambda: check_data(two, specs), "other", "m:batch")
