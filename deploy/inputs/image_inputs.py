"""What ``--image-input`` says, held against the model's inputs. No torch here."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploy.inputs.dataset import Dataset, describe_inputs
from deploy.inputs.declared import PIXELS, InputSpec
from export.errors import ConfigError, DataError
from export.images import FLOATS, ImageInput, channels_first, channels_last

if TYPE_CHECKING:
    from deploy.config import BuildConfig

_EXAMPLE = (
    "Write [NAME:]mean=M,M,M:std=S,S,S[:scale=255], for (image / scale - mean) / std, such as "
    "mean=0.485,0.456,0.406:std=0.229,0.224,0.225"
)
_LARGEST = 1e30
_TO_PIXELS = (
    "With --image-input engines take images as they are decoded: save them as uint8 "
    "[N, H, W, C], before they are scaled and normalized"
)


@dataclass(frozen=True)
class ImageText:
    """One ``--image-input`` as it was read.

    Attributes:
        name: of the input; None: the only one that the model has.
        image: the rest; its name and dtype are settled with the model's inputs.
    """

    name: str | None
    image: ImageInput


def parse_image_input(text: str) -> ImageText:
    """Read ``[NAME:]mean=M,...:std=S,...[:scale=S]``; what is left out is 0, 1 and 255.

    Raises:
        ConfigError: anything else; the message holds the text, the part at fault and an example.
    """
    fields = [part.strip() for part in text.split(":")]
    name = None
    if re.fullmatch(r"[A-Za-z_][\w.]*", fields[0]):
        name = fields.pop(0)
    values: dict[str, tuple[float, ...]] = {}
    for part in fields:
        key, equals, numbers = part.partition("=")
        if not equals or key not in ("mean", "std", "scale"):
            raise _refuse(text, f"{part!r} is none of mean=..., std=... and scale=...")
        if key in values:
            raise _refuse(text, f"{key} is there twice")
        values[key] = _parse_numbers(text, key, numbers)
    if not values:
        raise _refuse(text, "it says neither mean nor std nor scale")
    scale = values.get("scale", (255.0,))
    if len(scale) != 1:
        raise _refuse(text, "scale is one number")
    image = ImageInput("", values.get("mean", (0.0,)), values.get("std", (1.0,)), scale[0])
    for key, divisors in (("std", image.std), ("scale", scale)):
        if any(number <= 0 for number in divisors):
            raise _refuse(text, f"{key} must be more than 0: the images are divided by it")
    if not all(1 / _LARGEST < number < _LARGEST for number in image.factor) or not all(
        abs(number) < _LARGEST for number in image.shift
    ):
        raise _refuse(text, "mean, std or scale is beyond what float32 holds")
    return ImageText(name, image)


def settle_images(config: "BuildConfig", specs: Sequence[InputSpec]) -> tuple[ImageInput, ...]:
    """The images of `config` for a model that takes `specs`, whose names are known.

    Raises:
        ConfigError: one names no input, is there twice, or fits no input of floats [N, C, H, W]
            with as many channels.
    """
    by_name = {str(spec.name): spec for spec in specs}
    found: dict[str, ImageInput] = {}
    for text in config.image_input:
        read = parse_image_input(text)
        if read.name is None and len(specs) > 1:
            raise _refuse(text, f"the model has {len(specs)} inputs; name one: {_list(by_name)}")
        name = read.name or str(specs[0].name)
        if name not in by_name:
            raise _refuse(text, f"{name!r} is no input of the model; it takes {_list(by_name)}")
        if name in found:
            raise _refuse(text, f"input {name!r} has images already")
        found[name] = _fit(text, replace(read.image, name=name), by_name[name])
    return tuple(found[name] for name in by_name if name in found)


def take_images(spec: InputSpec, images: Sequence[ImageInput]) -> InputSpec:
    """An input of the model as the engines take it: uint8 [N, H, W, C], where it takes images."""
    if spec.name not in {image.name for image in images}:
        return spec
    places: Mapping[int, int] = {1: 3, 2: 1, 3: 2}
    axes = {places[axis]: item for axis, item in spec.axes.items()}
    return InputSpec(spec.name, channels_last(spec.shape), "uint8", PIXELS, axes)


def read_model_specs(
    data: Dataset, config: "BuildConfig", dtype: str = "float32"
) -> tuple[InputSpec, ...]:
    """What the model takes, where its inputs are taken from data that holds images for it.

    Args:
        dtype: that it takes images as.

    Raises:
        DataError: an input that images are declared for is not uint8 [N, H, W, C] in the data.
    """
    read = [parse_image_input(text).name for text in config.image_input]
    specs = []
    for spec in data.specs():
        if spec.name in read or None in read or (read and spec.name is None):
            check_pixels(data, spec)
            spec = InputSpec(spec.name, channels_first(spec.shape), dtype)
        specs.append(spec)
    return tuple(specs)


def check_pixels(data: Dataset, spec: InputSpec) -> None:
    """Hold an input of the data against what image inputs take.

    Raises:
        DataError: it is no uint8 [N, H, W, C]; the message says what to save.
    """
    if spec.dtype == "uint8" and len(spec.shape) == 4:
        return
    what = f"input {spec.name!r}" if spec.name else "the only array"
    raise DataError(
        f"{data.source}, read as {describe_inputs(data)}: {what} holds no images of uint8 "
        f"[N, H, W, C]. {_TO_PIXELS}."
    )


def _fit(text: str, image: ImageInput, spec: InputSpec) -> ImageInput:
    if len(spec.shape) != 4 or spec.dtype not in FLOATS:
        shape = "x".join(str(size) for size in spec.shape)
        raise _refuse(
            text,
            f"input {spec.name!r} is {shape}:{spec.dtype} to the model, and images go to inputs of "
            f"{', '.join(FLOATS)} [N, C, H, W]. --input says what the model's own forward takes",
        )
    channels = spec.shape[1]
    if 1 in spec.axes:
        raise _refuse(text, f"the channels of input {spec.name!r} have a range")
    for key, numbers in (("mean", image.mean), ("std", image.std)):
        if len(numbers) not in (1, channels):
            raise _refuse(
                text,
                f"{key} has {len(numbers)} values, and input {spec.name!r} has {channels} "
                f"channel{'s' * (channels != 1)}, [N, C, H, W] = "
                f"{'x'.join(str(size) for size in spec.shape)}",
            )
    return replace(image, dtype=spec.dtype)


def _parse_numbers(text: str, key: str, numbers: str) -> tuple[float, ...]:
    try:
        found = tuple(float(number) for number in numbers.split(","))
    except ValueError as error:
        raise _refuse(text, f"{key}={numbers} is no list of numbers") from error
    if not all(math.isfinite(number) for number in found):
        raise _refuse(text, f"{key}={numbers} is not finite")
    return found


def _list(names: Mapping[str, object]) -> str:
    return ", ".join(names)


def _refuse(text: str, fault: str) -> ConfigError:
    return ConfigError(f"--image-input {text!r}: {fault}. {_EXAMPLE}.")
