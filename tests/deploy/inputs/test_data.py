"""Data is split without overlap, and every row and label is held against the model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.inputs.data import check_data, split_data
from export.artifacts import TensorSpec
from tests.samples import IMAGE, floats, open_plain, refuse, save_image, save_npz


class TestSplit:
    @pytest.mark.parametrize("size", [2, 3, 10, 99, 100, 101, 1000])
    @pytest.mark.parametrize(("calibration", "evaluation"), [(20, 80), (1, 99), (99, 1), (1, 1)])
    @pytest.mark.parametrize("seed", [0, 7])
    def test_views_never_overlap(
        self, tmp_path: Path, size: int, calibration: int, evaluation: int, seed: int
    ) -> None:
        x = np.arange(size, dtype=np.float32)[:, None]
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=x, y=np.arange(size)))
        split = split_data(
            dataset, calibration_samples=calibration, evaluation_samples=evaluation, seed=seed
        )
        first = np.concatenate([b["x"] for b in split.calibration.batches(7)])[:, 0]
        second = np.concatenate([b["x"] for b in split.evaluation.batches(7)])[:, 0]
        assert not set(first) & set(second)
        assert 1 <= len(first) == len(split.calibration) <= calibration
        assert 1 <= len(second) == len(split.evaluation) <= evaluation
        assert len(first) + len(second) == min(size, calibration + evaluation)
        assert split.evaluation.labels is not None
        np.testing.assert_array_equal(split.evaluation.labels, second)

    def test_few_samples_are_shared_in_proportion(self, tmp_path: Path) -> None:
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=floats(500, 1)))
        split = split_data(dataset, calibration_samples=200, evaluation_samples=800, seed=0)
        assert (len(split.calibration), len(split.evaluation)) == (100, 400)

    @pytest.mark.parametrize(
        ("size", "asked", "expected"),
        [(96, 32, 32), (96, 256, 32), (50, 256, 25), (96, 20, 20), (2, 256, 1), (400, 256, 82)],
    )
    def test_calibration_keeps_what_ranges_need(
        self, tmp_path: Path, size: int, asked: int, expected: int
    ) -> None:
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=floats(size, 1)))
        split = split_data(dataset, calibration_samples=asked, evaluation_samples=1000, seed=0)
        assert len(split.calibration) == expected
        assert len(split.evaluation) == size - expected

    def test_seed_decides(self, tmp_path: Path) -> None:
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=floats(100, 1)))
        rows = [
            split_data(dataset, calibration_samples=10, evaluation_samples=10, seed=seed)
            for seed in (0, 0, 1)
        ]
        numbers = [split.calibration.row_numbers(range(10)).tolist() for split in rows]
        assert numbers[0] == numbers[1] != numbers[2]

    def test_one_sample_cannot_be_kept_apart(self, tmp_path: Path) -> None:
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=floats(1, 1)))
        refuse(
            lambda: split_data(dataset, calibration_samples=1, evaluation_samples=1, seed=0),
            *("d.npz", "one sample"),
        )

    def test_images_are_not_read_by_the_split(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
        for name in "bcd":
            (tmp_path / f"{name}.png").write_bytes(b"")
        split = split_data(
            open_plain(tmp_path), calibration_samples=2, evaluation_samples=2, seed=0
        )
        assert len(split.calibration) == len(split.evaluation) == 2


class TestCalibrationApart:
    def test_all_calibration_rows_come_from_it(self, tmp_path: Path) -> None:
        arrays = {"x": np.zeros((5, 2)), "y": np.arange(5), "calibration_x": np.ones((9, 2))}
        np.savez(tmp_path / "d.npz", **arrays)
        torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, tmp_path / "d.pt")
        for name in ("d.npz", "d.pt"):
            dataset = open_plain(tmp_path / name, ["image"])
            split = split_data(dataset, calibration_samples=4, evaluation_samples=100, seed=0)
            assert len(split.calibration) == 4
            assert len(split.evaluation) == 5
            assert (split.calibration.batch(range(4))["image"] == 1).all()
            assert (split.evaluation.batch(range(5))["image"] == 0).all()
            assert split.calibration.labels is None

    def test_it_is_bound_and_checked_with_the_rest(self, tmp_path: Path) -> None:
        apart = np.ones((3, 2), np.float32)
        apart[1, 0] = np.nan
        path = save_npz(tmp_path / "d.npz", x=floats(5, 2), calibration_x=apart)
        spec = TensorSpec("image", ("batch", 2), "float32")
        dataset = open_plain(path)
        bound = dataset.bind([spec])
        assert bound.calibration is not None
        assert set(bound.calibration.inputs) == {"image"}
        refuse(lambda: check_data(dataset, [spec]), "calibration", "NaN", "row 1")

    def test_it_must_look_like_the_rest(self, tmp_path: Path) -> None:
        path = save_npz(tmp_path / "d.npz", x=floats(5, 2), calibration_x=floats(5, 3))
        refuse(lambda: open_plain(path), "calibration_", "x:Nx3", "x:Nx2")
        path = save_npz(tmp_path / "d.npz", ids=floats(5, 2), calibration_mask=floats(5, 2))
        refuse(lambda: open_plain(path), "mask", "ids")


class TestChecks:
    def test_matching_data_passes(self, tmp_path: Path) -> None:
        path = save_npz(tmp_path / "d.npz", x=floats(6, 3, 4, 5), y=np.arange(6))
        check_data(open_plain(path), [IMAGE])
        check_data(open_plain(path), [TensorSpec("i", ("batch", 3, "height", 5), "float16")])
        check_data(open_plain(path), [TensorSpec("i", (1, 3, 4, 5), "float32")])

    def test_minus_infinity_of_a_mask_is_answered_with_a_large_number(self, tmp_path: Path) -> None:
        mask = np.zeros((4, 3), np.float32)
        mask[2, 1:] = -np.inf
        spec = TensorSpec("mask", ("batch", 3), "float32")
        dataset = open_plain(save_npz(tmp_path / "d.npz", mask=mask))
        refuse(lambda: check_data(dataset, [spec]), "'mask'", "-Inf in row 2.", "-1e9")

    def test_nan_of_missing_values_is_answered_with_a_mask_of_them(self, tmp_path: Path) -> None:
        table = floats(4, 3)
        table[2, 1] = np.nan
        spec = TensorSpec("x", ("batch", 3), "float32")
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=table))
        what = "a mask of what is missing as an input"
        refuse(lambda: check_data(dataset, [spec]), "NaN in row 2.", "a number in its place", what)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("row", [0, 5, 11])
    def test_row_that_is_not_finite_is_named(self, tmp_path: Path, bad: float, row: int) -> None:
        x = floats(12, 3, 4, 5)
        x[row, 1, 2, 3] = bad
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=x))
        what = "NaN" if np.isnan(bad) else "Inf"
        refuse(lambda: check_data(dataset, [IMAGE]), "d.npz", what, f"row {row}.")
        view = dataset.select([row])
        refuse(lambda: check_data(view, [IMAGE]), f"row {row}.")

    def test_bad_row_in_a_later_chunk(self, tmp_path: Path) -> None:
        x = np.zeros((9, 1024, 1024), np.float32)
        x[7, 3, 3] = np.nan
        np.save(tmp_path / "d.npy", x)
        spec = TensorSpec("x", ("batch", 1024, 1024), "float32")
        refuse(lambda: check_data(open_plain(tmp_path / "d.npy"), [spec]), "row 7.")

    def test_value_too_large_for_the_models_float(self, tmp_path: Path) -> None:
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=np.array([[1.0], [1e39]])))
        spec = TensorSpec("x", ("batch", 1), "float32")
        refuse(lambda: check_data(dataset, [spec]), "Inf", "row 1", "float32")

    @pytest.mark.parametrize(
        ("labels", "parts"),
        [
            (np.array([0, 1, -1]), ("label -1", "row 2", "negative")),
            (np.array([0.5, np.inf, 2.0]), ("the labels hold Inf", "row 1", "NaN")),
        ],
    )
    def test_labels_that_are_no_classes(
        self, tmp_path: Path, labels: np.ndarray, parts: tuple[str, ...]
    ) -> None:
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=floats(3, 2), y=labels))
        spec = TensorSpec("x", ("batch", 2), "float32")
        refuse(lambda: check_data(dataset, [spec]), "d.npz", *parts)

    def test_negative_label_of_a_view_names_the_row_of_the_source(self, tmp_path: Path) -> None:
        labels = np.array([0, 1, 2, -5])
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=floats(4, 2), y=labels))
        spec = TensorSpec("x", ("batch", 2), "float32")
        refuse(lambda: check_data(dataset.select([2, 3]), [spec]), "label -5", "row 3")
        check_data(dataset.select([0, 2]), [spec])
