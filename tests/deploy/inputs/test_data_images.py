"""Images become the arrays that training saw, decoded only when they are read."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.config import ImageConfig
from deploy.inputs.data import open_data
from export.artifacts import TensorSpec
from export.errors import DataError
from tests.samples import RNG_SEED, open_plain, refuse, save_image


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

    def test_gray_images_have_one_channel_whatever_the_files_hold(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(RNG_SEED).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        save_image(tmp_path / "colour.png", pixels)
        save_image(tmp_path / "gray.png", pixels[:, :, 0])
        gray = Image.fromarray(pixels[:, :, 0])
        gray.convert("RGB").convert("P").save(tmp_path / "palette.png")
        images = ImageConfig(mean=(0.25,), std=(0.5,), mode="gray")
        dataset = open_data(str(tmp_path), images=images, input_names=None)
        batch = dataset.batch([0, 1, 2])["x"]
        assert batch.shape == (3, 1, 6, 8)
        wide = pixels.astype(np.float64)
        luma = wide @ [0.299, 0.587, 0.114]  # ITU-R BT.601
        np.testing.assert_allclose((batch[0, 0] * 0.5 + 0.25) * 255, luma, atol=1)
        np.testing.assert_allclose((batch[1, 0] * 0.5 + 0.25) * 255, wide[:, :, 0], atol=1e-3)

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

    @pytest.mark.parametrize(
        ("expected", "uint8", "words"),
        [
            ((3, 8, 8), False, "Pass --image-resize 8 or more, and --image-crop 8."),
            ((8, 8, 3), True, "Pass --image-resize 8 or more, and --image-crop 8."),
            ((3, 8, 12), False, "to that size before: --image-crop cuts squares"),
            ((4, 5, 3), False, "The channels are first"),
        ],
        ids=["square", "uint8", "oblong", "channels last"],
    )
    def test_images_of_another_size_than_the_models_say_how_they_come_to_it(
        self, tmp_path: Path, expected: tuple[int, ...], uint8: bool, words: str
    ) -> None:
        save_image(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
        images = ImageConfig(uint8=uint8)
        dataset = open_data(str(tmp_path), images=images, input_names=None)
        spec = TensorSpec("x", ("batch", *expected), "uint8" if uint8 else "float32")
        with pytest.raises(DataError, match=re.escape(words)):
            dataset.bind([spec])

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
            (ImageConfig(mean=(0.5, 0.5, 0.5), mode="gray"), "--image-mean"),
            (ImageConfig(mean=(float("nan"),)), "--image-mean"),
            (ImageConfig(std=(1.0, 0.0, 1.0)), "--image-std"),
        ],
    )
    def test_impossible_options(self, tmp_path: Path, images: ImageConfig, option: str) -> None:
        save_image(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
        refuse(lambda: open_data(str(tmp_path), images=images, input_names=None), option)
