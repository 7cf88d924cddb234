"""A folder of images as rows of one array, decoded only when they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.config import ImageConfig
from deploy.engines.base import Array
from export.errors import DataError
from export.optional import require

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_PILLOW_MODES = {"rgb": "RGB", "gray": "L"}


@dataclass(frozen=True, eq=False)
class ImageRows:
    """Images, RGB or gray. Only the rows that are read are in memory.

    Each is turned upright by its EXIF orientation, resized so that its shorter side has
    ``images.resize`` pixels, and cropped at its centre to ``images.crop`` pixels square. Where
    ``images.uint8``, that is all: [N, H, W, C] uint8. Otherwise it is scaled to 0..1 and normalized
    by ``images.mean`` and ``images.std`` (in units of 0..1): [N, C, H, W] float32.
    """

    paths: tuple[Path, ...]
    images: ImageConfig
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, indices: Array) -> Array:
        """The images at `indices`.

        Raises:
            DataError: a file is no image, or its size differs from the first one's.
        """
        batch = np.empty((len(indices), *self.shape[1:]), self.dtype)
        for row, index in enumerate(indices):
            path = self.paths[index]
            image = decode_image(path, self.images)
            if image.shape != batch.shape[1:]:
                raise DataError(
                    f"{path} is {_describe_size(image.shape, self.images)} and {self.paths[0]} is "
                    f"{_describe_size(self.shape[1:], self.images)}. Bring all to one size: "
                    "--image-resize for the shorter side and --image-crop for a square from the "
                    "centre."
                )
            batch[row] = image
        return batch


def open_images(folder: Path, images: ImageConfig) -> tuple[ImageRows, Array | None]:
    """The rows of a folder, and int64 labels where it has subfolders: their order is the class.

    Files and folders whose names start with a dot, and files that are no images by their suffix,
    are passed over. Only the first image is decoded.

    Raises:
        DataError: no images, an empty class, images beside classes, or impossible options.
    """
    _check_options(images)
    paths, labels = _list_images(folder)
    first = decode_image(paths[0], images)
    rows = ImageRows(paths, images, (len(paths), *first.shape), first.dtype)
    return rows, labels


def decode_image(path: Path, images: ImageConfig) -> Array:
    """One image, [C, H, W] float32 or [H, W, C] uint8, as `ImageRows` describes.

    Raises:
        DataError: the file cannot be read, has more than 8 bits a channel, or is smaller than the
            crop.
    """
    pillow = require("PIL.Image", extra="build")
    operations = require("PIL.ImageOps", extra="build")
    try:
        with pillow.open(path) as opened:
            if opened.mode.startswith("I") or opened.mode == "F":
                raise DataError(
                    f"{path} has more than 8 bits a channel ({opened.mode}). Convert it to 8 bits."
                )
            upright = operations.exif_transpose(opened)
            # Pillow warns on palettes with transparency unless they pass through RGBA.
            image = upright.convert("RGBA").convert("RGB") if upright.mode == "P" else upright
            image = image.convert(_PILLOW_MODES[images.mode])
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
        raise DataError(
            f"{path} cannot be read as an image: {error}. Mend the file or take it out."
        ) from error
    decoded = np.atleast_3d(np.asarray(_resize_and_crop(image, images, path), dtype=np.uint8))
    if images.uint8:
        return decoded
    pixels: Array = decoded.astype(np.float32) / np.float32(255)
    if images.mean:
        pixels = pixels - np.asarray(images.mean, np.float32)
    if images.std:
        pixels = pixels / np.asarray(images.std, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resize_and_crop(image: Any, images: ImageConfig, path: Path) -> Any:
    resampling = require("PIL.Image", extra="build").Resampling.BILINEAR
    if images.resize:
        shorter = min(image.size)
        size = tuple(
            images.resize if side == shorter else int(images.resize * side / shorter)
            for side in image.size
        )
        image = image.resize(size, resampling)
    if not images.crop:
        return image
    width, height = image.size
    if min(width, height) < images.crop:
        raise DataError(
            f"{path} is {width}x{height} pixels, too small for --image-crop {images.crop}. "
            f"Pass --image-resize {images.crop} or more, or a smaller crop."
        )
    left, top = round((width - images.crop) / 2), round((height - images.crop) / 2)
    return image.crop((left, top, left + images.crop, top + images.crop))


def _list_images(folder: Path) -> tuple[tuple[Path, ...], Array | None]:
    """Paths in the order of their names, and labels where there are class folders."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    classes = [entry for entry in entries if entry.is_dir()]
    flat = _keep_images(entries)
    if not classes:
        if not flat:
            raise DataError(
                f"{folder} holds no images. Put images in it, or one subfolder of images a class "
                f"(taken: {' '.join(SUFFIXES)})."
            )
        return tuple(flat), None
    if flat:
        raise DataError(
            f"{folder} holds both images ({flat[0].name}) and folders ({classes[0].name}). "
            "Use one subfolder a class, or images alone."
        )
    found = [_keep_images(sorted(entry.rglob("*"))) for entry in classes]
    for entry, paths in zip(classes, found, strict=True):
        if not paths:
            raise DataError(
                f"{entry} holds no images, and the order of the folders numbers the classes. "
                "Put images in it or take it away."
            )
    labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in found])
    return tuple(path for paths in found for path in paths), labels.astype(np.int64)


def _keep_images(entries: Sequence[Path]) -> list[Path]:
    return [
        entry
        for entry in entries
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    ]


def _check_options(images: ImageConfig) -> None:
    for option, size in (("resize", images.resize), ("crop", images.crop)):
        if size is not None and size < 1:
            raise DataError(f"--image-{option} {size}: must be 1 pixel or more.")
    for option, values in (("mean", images.mean), ("std", images.std)):
        counts = (0, 1, 3) if images.mode == "rgb" else (0, 1)
        if len(values) not in counts or not np.isfinite(values).all():
            three = (
                ", or three for red, green, blue" if images.mode == "rgb" else " for gray images"
            )
            raise DataError(f"--image-{option} {values}: give one finite number{three}.")
    if any(value <= 0 for value in images.std):
        raise DataError(f"--image-std {images.std}: must be more than 0; images are in 0..1.")


def _describe_size(shape: Sequence[int], images: ImageConfig) -> str:
    height, width = shape[:2] if images.uint8 else shape[1:]
    return f"{width}x{height} pixels"
