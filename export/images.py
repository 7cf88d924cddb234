"""Inputs that take images as they are decoded: uint8, channels last. No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from export.errors import ConfigError

FLOATS = ("float16", "float32", "float64")
"""What a model may take its images as."""


@dataclass(frozen=True)
class ImageInput:
    """An input that takes uint8 [N, H, W, C] where the model takes floats [N, C, H, W].

    The model is given ``(image / scale - mean) / std``, with one number or one a channel.

    Attributes:
        name: of the input.
        mean, std: in the unit of ``image / scale``; `std` is more than 0.
        scale: what white is before `mean` and `std`: 255 brings pixels to 0..1, 1 leaves them.
        dtype: that the model takes, of `FLOATS`. For float16 images are prepared in float32 and
            rounded once: in float16 itself the shift alone would lose up to a bit of the pixels.
    """

    name: str
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 255.0
    dtype: str = "float32"

    @property
    def shift(self) -> tuple[float, ...]:
        """The pixel that becomes 0: ``(image - shift) / factor`` is the same preparation."""
        return tuple(value * self.scale for value in self.mean)

    @property
    def factor(self) -> tuple[float, ...]:
        """How many pixels are one unit of the model's input."""
        return tuple(value * self.scale for value in self.std)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Self:
        """From plain values, as `dataclasses.asdict` writes them."""
        values = {**entry, "mean": tuple(entry["mean"]), "std": tuple(entry["std"])}
        return cls(**values)


@dataclass(frozen=True)
class ImageCall:
    """A model some of whose inputs take images; it is called by position.

    Attributes:
        inputs: those that take images.
        keyword: the user's own module is called by name.
    """

    inputs: tuple[ImageInput, ...]
    keyword: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs that take images."""
        return tuple(image.name for image in self.inputs)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Self:
        """From plain values, as `dataclasses.asdict` writes them."""
        return cls(tuple(map(ImageInput.from_dict, entry["inputs"])), bool(entry["keyword"]))


def channels_last(shape: Sequence[Any]) -> tuple[Any, ...]:
    """[N, C, H, W] as [N, H, W, C].

    Raises:
        ConfigError: it has not four axes.
    """
    return _reorder(shape, (0, 2, 3, 1))


def channels_first(shape: Sequence[Any]) -> tuple[Any, ...]:
    """[N, H, W, C] as [N, C, H, W].

    Raises:
        ConfigError: it has not four axes.
    """
    return _reorder(shape, (0, 3, 1, 2))


def _reorder(shape: Sequence[Any], order: tuple[int, ...]) -> tuple[Any, ...]:
    if len(shape) != len(order):
        raise ConfigError(f"An image input has four axes, not {len(shape)}: {list(shape)}.")
    return tuple(shape[axis] for axis in order)
