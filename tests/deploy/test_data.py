"""Every source is opened lazily, split without overlap, and refused with a message that helps."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deploy.config import ImageConfig
from deploy.data import Dataset, check_data, check_labels, open_data, split_data
from export.artifacts import TensorSpec
from export.errors import ConfigError, DataError, DeployError

PLAIN = ImageConfig()
IMAGE = TensorSpec("image", ("batch", 3, 4, 5), "float32")
RNG_SEED = 20240501


def open_plain(path: Path | str, names: list[str] | None = None) -> Dataset:
    return open_data(str(path), images=PLAIN, input_names=names)


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(RNG_SEED).standard_normal(shape, dtype=np.float32)


def save_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def save_image(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def refuse(call: Callable[[], object], *parts: str, kind: type[DeployError] = DataError) -> None:
    with pytest.raises(kind) as raised:
        call()
    for part in parts:
        assert part in str(raised.value), f"{part!r} is not in: {raised.value}"
    assert raised.value.exit_code == 2


class TestArrays:
    def test_npz_with_labels(self, tmp_path: Path) -> None:
        x, y = floats(6, 3, 4, 5), np.arange(6)
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=x, y=y))
        assert len(dataset) == 6
        (spec,) = dataset.specs()
        assert (spec.name, spec.shape, spec.dtype) == (None, (1, 3, 4, 5), "float32")
        np.testing.assert_array_equal(dataset.batch([4, 1])["x"], x[[4, 1]])
        assert dataset.labels is not None
        np.testing.assert_array_equal(dataset.labels, y)

    def test_npz_with_named_inputs(self, tmp_path: Path) -> None:
        ids, mask = np.ones((4, 7), np.int64), np.zeros((4, 7), np.bool_)
        path = save_npz(tmp_path / "d.npz", ids=ids, mask=mask, y=np.zeros(4, int))
        dataset = open_plain(path)
        assert {spec.name: spec.dtype for spec in dataset.specs()} == {
            "ids": "int64",
            "mask": "bool",
        }
        refuse(lambda: open_plain(path, ["ids", "attention"]), "ids, mask", "ids, attention")

    def test_input_that_is_called_y_is_an_input_where_the_model_says_so(
        self, tmp_path: Path
    ) -> None:
        path = save_npz(tmp_path / "d.npz", x=floats(4, 2), y=floats(4, 2))
        dataset = open_plain(path, ["x", "y"])
        assert set(dataset.inputs) == {"x", "y"}
        assert dataset.labels is None

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


class TestTensors:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_tensor_pair_and_dict(self, tmp_path: Path, zipped: bool) -> None:
        x, y = torch.from_numpy(floats(5, 2)), torch.arange(5)
        for number, content in enumerate((x, (x, y), [x, y], {"x": x, "y": y})):
            path = tmp_path / f"{number}.pt"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            dataset = open_plain(path)
            np.testing.assert_array_equal(dataset.batch([3, 0])["x"], x[[3, 0]].numpy())
            assert (dataset.labels is None) == (number == 0)

    def test_bfloat16_and_gradients(self, tmp_path: Path) -> None:
        x = torch.tensor([[1.5], [-2.0]], dtype=torch.bfloat16, requires_grad=True)
        torch.save({"image": x}, tmp_path / "d.pt")
        dataset = open_plain(tmp_path / "d.pt")
        assert dataset.specs()[0].dtype == "bfloat16"
        assert dataset.batch([1])["image"].astype(float) == -2.0
        check_data(dataset, [TensorSpec("image", ("batch", 1), "float32")])

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        torch.save(torch.nn.Linear(2, 2), tmp_path / "d.pt")
        refuse(lambda: open_plain(tmp_path / "d.pt"), "d.pt", "more than tensors", "torch.save")

    @pytest.mark.parametrize(
        "content", [{"x": "text"}, 3.0, None, torch.eye(2).to_sparse(), {"x": None}]
    )
    def test_other_content_is_refused(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "d.pt")
        refuse(lambda: open_plain(tmp_path / "d.pt"), "d.pt", "x")


class TestSourcesRefused:
    @pytest.mark.parametrize("name", ["no.npz", "no.npy", "no.pt", "folder/no.npz"])
    def test_missing_file(self, tmp_path: Path, name: str) -> None:
        refuse(lambda: open_plain(tmp_path / name), name, "no such file")

    def test_unknown_suffix_lists_what_is_taken(self, tmp_path: Path) -> None:
        path = tmp_path / "d.csv"
        path.write_text("1,2")
        refuse(lambda: open_plain(path), "d.csv", ".npz, .npy, .pt", "folder", "callable")
        refuse(lambda: open_plain(tmp_path / "nothing"), "no such file", ".npz")

    @pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt"])
    def test_damaged_file(self, tmp_path: Path, suffix: str) -> None:
        for content in (b"", b"\x00garbage", b"PK\x03\x04rest"):
            path = tmp_path / f"d{suffix}"
            path.write_bytes(content)
            refuse(lambda path=path: open_plain(path), "d" + suffix)

    def test_truncated_files(self, tmp_path: Path) -> None:
        np.save(tmp_path / "d.npy", floats(100, 10))
        save_npz(tmp_path / "d.npz", x=floats(100, 10))
        for name in ("d.npy", "d.npz"):
            path = tmp_path / name
            path.write_bytes(path.read_bytes()[:-900])
            refuse(lambda path=path: open_plain(path), name)

    def test_flipped_bytes_in_an_archive(self, tmp_path: Path) -> None:
        path = save_npz(tmp_path / "d.npz", x=floats(100, 10))
        content = bytearray(path.read_bytes())
        content[2000] ^= 255
        path.write_bytes(content)
        refuse(lambda: open_plain(path), "d.npz", "CRC")

    def test_python_objects_are_refused(self, tmp_path: Path) -> None:
        ragged = np.array([np.zeros(2), np.zeros(3)], dtype=object)
        np.save(tmp_path / "d.npy", ragged, allow_pickle=True)
        save_npz(tmp_path / "d.npz", x=ragged)
        for name in ("d.npy", "d.npz"):
            path = tmp_path / name
            refuse(lambda path=path: open_plain(path), name, "Python objects", "one shape")

    def test_archive_that_declares_more_than_memory_is_refused_unread(self, tmp_path: Path) -> None:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 100)}
        )
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.writestr("x.npy", header.getvalue())
        refuse(lambda: open_plain(tmp_path / "d.npz"), "GiB", ".npy")

    def test_archive_with_other_files(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
            archive.writestr("readme.txt", "hello")
        refuse(lambda: open_plain(tmp_path / "d.npz"), "readme.txt", "numpy.savez")

    @pytest.mark.parametrize(
        ("arrays", "parts"),
        [
            ({"x": np.zeros((0, 3), np.float32)}, ("x holds no samples",)),
            ({"x": np.float32(1)}, ("x holds no samples",)),
            ({"y": np.arange(3)}, ("no array of inputs",)),
            ({}, ("no array of inputs",)),
            ({"x": np.zeros((4, 2)), "y": np.arange(3)}, ("x 4", "y 3")),
            ({"ids": np.zeros((4, 2)), "mask": np.zeros((5, 2))}, ("ids 4", "mask 5")),
            ({"x": np.zeros((4, 2), complex)}, ("complex128",)),
            ({"x": np.array(["a", "b"])}, ("<U1",)),
        ],
    )
    def test_arrays_that_cannot_be_samples(
        self, tmp_path: Path, arrays: dict[str, np.ndarray], parts: tuple[str, ...]
    ) -> None:
        refuse(lambda: open_plain(save_npz(tmp_path / "d.npz", **arrays)), "d.npz", *parts)


class TestImages:
    def test_class_folders_are_labels_in_their_order(self, tmp_path: Path) -> None:
        values = {"cat/b.png": 20, "cat/a.png": 10, "ant/x.PNG": 30, "dog/deep/z.bmp": 40}
        for name, value in values.items():
            save_image(tmp_path / name, np.full((4, 5, 3), value, np.uint8))
        (tmp_path / "cat" / "notes.txt").write_text("not an image")
        (tmp_path / ".hidden").mkdir()
        dataset = open_plain(tmp_path)
        assert dataset.labels is not None
        assert dataset.labels.tolist() == [0, 1, 1, 2]
        batch = dataset.batch(range(4))["x"]
        assert batch.dtype == np.float32
        assert batch.shape == (4, 3, 4, 5)
        np.testing.assert_allclose(batch[:, 0, 0, 0] * 255, [30, 10, 20, 40], rtol=1e-6)

    def test_flat_folder_is_unlabelled(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
        dataset = open_plain(tmp_path, ["image"])
        assert dataset.labels is None
        assert dataset.specs()[0].name == "image"
        assert dataset.specs()[0].shape == (1, 3, 4, 5)

    def test_scaling_normalization_and_channel_order(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(RNG_SEED).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        save_image(tmp_path / "a.png", pixels)
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
        images = ImageConfig(mean=mean, std=std)
        dataset = open_data(str(tmp_path), images=images, input_names=None)
        expected = ((pixels.astype(np.float64) / 255 - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(dataset.batch([0])["x"][0], expected, rtol=1e-5, atol=1e-6)

    def test_resize_takes_the_shorter_side_and_crop_the_centre(self, tmp_path: Path) -> None:
        pixels = np.zeros((20, 40, 3), np.uint8)
        pixels[:, 15:25] = 255  # after the resize: columns 7.5 to 12.5 of 20
        save_image(tmp_path / "wide.png", pixels)
        save_image(tmp_path / "tall.png", pixels.transpose(1, 0, 2))
        only_resize = ImageConfig(resize=10)
        save_image(tmp_path / "alone" / "wide.png", pixels)
        alone = open_data(str(tmp_path / "alone"), images=only_resize, input_names=None)
        assert alone.specs()[0].shape == (1, 3, 10, 20)
        (tmp_path / "alone" / "wide.png").unlink()
        (tmp_path / "alone").rmdir()
        both = ImageConfig(resize=10, crop=4)
        dataset = open_data(str(tmp_path), images=both, input_names=None)
        assert dataset.batch([0, 1])["x"].shape == (2, 3, 4, 4)
        assert (dataset.batch([0, 1])["x"] > 0.9).all()

    def test_crop_is_the_centre_to_the_pixel(self, tmp_path: Path) -> None:
        pixels = np.arange(6 * 10, dtype=np.uint8).reshape(6, 10)
        save_image(tmp_path / "a.png", np.stack([pixels] * 3, axis=2))
        dataset = open_data(str(tmp_path), images=ImageConfig(crop=2), input_names=None)
        np.testing.assert_allclose(dataset.batch([0])["x"][0, 0] * 255, pixels[2:4, 4:6])

    def test_grey_palette_and_transparent_images_become_rgb(self, tmp_path: Path) -> None:
        grey = Image.fromarray(np.full((4, 4), 100, np.uint8))
        grey.save(tmp_path / "a.png")
        grey.convert("RGB").convert("P").save(tmp_path / "b.png", transparency=b"\x00\x80")
        grey.convert("RGBA").save(tmp_path / "c.png")
        batch = open_plain(tmp_path).batch([0, 1, 2])["x"]
        assert batch.shape == (3, 3, 4, 4)
        np.testing.assert_allclose(batch * 255, 100, atol=3)

    def test_orientation_of_the_camera_is_undone(self, tmp_path: Path) -> None:
        pixels = np.zeros((8, 16, 3), np.uint8)
        pixels[:, :8] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        batch = open_plain(tmp_path).batch([0])["x"]
        assert batch.shape == (1, 3, 16, 8)
        assert (batch[0, :, :8] == 1).all()
        assert (batch[0, :, 8:] == 0).all()

    def test_images_are_decoded_only_when_read(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
        (tmp_path / "b.png").write_bytes(b"not an image")
        dataset = open_plain(tmp_path)
        assert len(dataset) == 2
        assert dataset.batch([0])["x"].shape == (1, 3, 4, 5)
        refuse(lambda: dataset.batch([0, 1]), "b.png", "cannot be read")

    def test_truncated_image_names_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-200])
        refuse(lambda: open_plain(tmp_path), "a.jpg", "cannot be read")

    def test_more_than_eight_bits_are_refused(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "a.png")
        refuse(lambda: open_plain(tmp_path), "a.png", "8 bits")

    def test_different_sizes_name_both_files_and_the_fix(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
        save_image(tmp_path / "b.png", np.zeros((4, 6, 3), np.uint8))
        dataset = open_plain(tmp_path)
        refuse(
            lambda: dataset.batch([0, 1]),
            *("a.png", "b.png", "5x4", "6x4", "--image-resize", "--image-crop"),
        )

    def test_image_smaller_than_the_crop(self, tmp_path: Path) -> None:
        save_image(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
        call = lambda: open_data(  # noqa: E731
            str(tmp_path), images=ImageConfig(crop=5), input_names=None
        )
        refuse(call, "a.png", "5x4", "--image-resize 5")

    def test_folders_that_cannot_be_classes(self, tmp_path: Path) -> None:
        refuse(lambda: open_plain(tmp_path), "holds no images", ".png")
        (tmp_path / "cat").mkdir()
        refuse(lambda: open_plain(tmp_path), "cat", "holds no images")
        save_image(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
        refuse(lambda: open_plain(tmp_path), "a.png", "cat", "both")

    @pytest.mark.parametrize(
        ("images", "option"),
        [
            (ImageConfig(resize=0), "--image-resize"),
            (ImageConfig(crop=-1), "--image-crop"),
            (ImageConfig(mean=(0.5, 0.5)), "--image-mean"),
            (ImageConfig(mean=(float("nan"),)), "--image-mean"),
            (ImageConfig(std=(1.0, 0.0, 1.0)), "--image-std"),
        ],
    )
    def test_impossible_options(self, tmp_path: Path, images: ImageConfig, option: str) -> None:
        save_image(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
        refuse(lambda: open_data(str(tmp_path), images=images, input_names=None), option)


class TestCallables:
    CODE = """
import numpy as np
import torch

def pairs():
    buffer = np.empty((4, 2), np.float32)
    for number in range(3):
        buffer[:] = number
        yield buffer, np.full(4, number)

def endless():
    while True:
        yield {"ids": torch.ones(5, 3, dtype=torch.int64)}

def loader():
    data = torch.utils.data.TensorDataset(torch.ones(6, 2))
    return torch.utils.data.DataLoader(data, batch_size=4)

def nothing():
    return []

def fails():
    yield np.zeros((2, 2))
    raise KeyError("lost")

def changes_size():
    yield np.zeros((2, 2))
    yield np.zeros((2, 3))

def changes_keys():
    yield {"a": np.zeros((2, 2))}
    yield {"b": np.zeros((2, 2))}

def text():
    yield "hello"

number = 3
"""

    @pytest.fixture(autouse=True)
    def batches(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "made_batches.py").write_text(self.CODE)
        monkeypatch.syspath_prepend(str(tmp_path))

    def test_pairs_are_copied_as_they_come(self) -> None:
        dataset = open_plain("made_batches:pairs")
        assert dataset.labels is not None
        assert dataset.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
        np.testing.assert_array_equal(dataset.batch(range(12))["x"][:, 0], dataset.labels)

    def test_endless_callable_is_stopped_at_the_limit(self) -> None:
        dataset = open_data("made_batches:endless", images=PLAIN, input_names=["ids"], limit=12)
        assert len(dataset) == 12
        assert dataset.specs()[0].dtype == "int64"
        assert len(open_plain("made_batches:endless")) == 4096

    def test_data_loader_of_lone_tensors(self) -> None:
        dataset = open_plain("made_batches:loader")
        assert len(dataset) == 6
        assert dataset.labels is None

    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("nothing", ("no batches",)),
            ("fails", ("KeyError", "lost")),
            ("changes_size", ("batch 1", "[2, 3]")),
            ("changes_keys", ("batch 1", "'a'", "'b'")),
            ("text", ("batch 0", "str")),
            ("number", ("TypeError", "not callable")),
        ],
    )
    def test_what_is_wrong_is_named(self, name: str, parts: tuple[str, ...]) -> None:
        refuse(lambda: open_plain(f"made_batches:{name}"), f"made_batches:{name}", *parts)

    def test_missing_module_and_missing_name(self) -> None:
        refuse(lambda: open_plain("made_batches:absent"), "--data", kind=ConfigError)
        refuse(lambda: open_plain("no_such_module_here:f"), "--data", kind=ConfigError)


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
        dataset = open_plain(save_npz(tmp_path / "d.npz", x=floats(50, 1)))
        split = split_data(dataset, calibration_samples=200, evaluation_samples=800, seed=0)
        assert (len(split.calibration), len(split.evaluation)) == (10, 40)

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

    def test_bind_gives_the_models_names_and_dtypes(self, tmp_path: Path) -> None:
        x = np.random.default_rng(RNG_SEED).standard_normal((4, 2))
        bound = open_plain(save_npz(tmp_path / "d.npz", x=x)).bind(
            [TensorSpec("image", ("batch", 2), "float64")]
        )
        np.testing.assert_array_equal(bound.batch(range(4))["image"], x)
        ids = open_plain(save_npz(tmp_path / "i.npz", x=np.ones((4, 2), np.int32)))
        bound = ids.bind([TensorSpec("ids", ("batch", 2), "int64")])
        assert bound.batch([0])["ids"].dtype == np.int64

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

    @pytest.mark.parametrize(
        ("labels", "parts"),
        [
            (np.array([0, 1, -1]), ("label -1", "row 2", "negative")),
            (np.array([0.0, 1.0, 2.0]), ("float64", "integer")),
            (np.array([[0], [1], [2]]), ("[3, 1]", "integer")),
            (np.array([True, False, True]), ("bool", "integer")),
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

    def test_labels_must_be_classes_of_the_model(self) -> None:
        check_labels(np.array([0, 9]), 10)
        refuse(lambda: check_labels(np.array([0, 9, 10, 11]), 10), "Label 10", "row 2", "0..9", "2")
        refuse(lambda: check_labels(np.array([-1]), 10), "Label -1", "row 0")
