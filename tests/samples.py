"""Small data for the tests of `deploy.inputs`: arrays, images, and how a refusal is checked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.config import ImageConfig
from deploy.inputs.data import Dataset, open_data
from export.artifacts import TensorSpec
from export.errors import DataError, DeployError

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
