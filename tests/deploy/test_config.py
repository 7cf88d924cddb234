"""Every option is of its type and in its range, or refused with the option in the message."""

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args

import pytest

from deploy.config import BuildConfig, Observer
from export.errors import ConfigError
from quantize.observers import AUTO, OBSERVERS


def test_defaults_are_the_gates_of_the_design() -> None:
    config = BuildConfig()
    assert (config.max_drop, config.min_agreement, config.min_sqnr) == (0.01, 0.98, None)


def test_observers_are_those_that_calibration_knows() -> None:
    assert get_args(Observer) == (AUTO, *OBSERVERS)
    assert BuildConfig().observer == AUTO


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BuildConfig().seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs", "1x3x8x8"),
        ("trust", "timm"),
        ("trust", ["timm"]),
        ("image_mean", 0.5),
        ("threads", "2"),
        ("threads", None),
        ("max_drop", "0.1"),
        ("static_batch", "no"),
        ("data", Path("x.npz")),
    ],
)
def test_a_config_made_in_python_is_held_to_the_same_types(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be"):
        BuildConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", -1),
        ("batch", 0),
        ("seed", -1),
        ("max_drop", -0.01),
        ("max_drop", 1.0),
        ("max_drop", math.nan),
        ("min_agreement", 1.01),
        ("min_agreement", math.nan),
        ("min_sqnr", math.nan),
        ("min_sqnr", math.inf),
        ("min_sqnr", -math.inf),
        ("measure_seconds", 0.0),
        ("measure_seconds", math.inf),
        ("measure_seconds", math.nan),
        ("calibration_samples", 0),
        ("evaluation_samples", 0),
        ("opset", 17),
        ("opset", 26),
        ("observer", "entropie"),
        ("observer", ["minmax"]),
        ("image_mode", "grey"),
    ],
)
def test_value_out_of_range_names_the_option_and_what_is_taken(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        BuildConfig(**{name: value})
    message = str(raised.value)
    assert message.startswith(f"--{name.replace('_', '-')} {value}: must be ")
    assert len(message.split("must be ")[1]) > 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 0),
        ("batch", 1),
        ("max_drop", 0.0),
        ("min_agreement", 0.0),
        ("min_agreement", 1.0),
        ("min_sqnr", 0.0),
        ("opset", 18),
        ("opset", 25),
        ("observer", "percentile"),
    ],
)
def test_the_edge_of_each_range_is_taken(name: str, value: Any) -> None:
    assert getattr(BuildConfig(**{name: value}), name) == value


def test_image_options_are_one_record() -> None:
    config = BuildConfig(image_resize=256, image_crop=224, image_mean=(0.5,), image_std=(0.2,))
    assert dataclasses.astuple(config.images_for([])) == (256, 224, (0.5,), (0.2,), "rgb", False)


@pytest.mark.parametrize(
    ("mode", "shapes", "expected"),
    [
        (None, [], "rgb"),
        (None, [(1, 3, 28, 28)], "rgb"),
        (None, [(1, 1, 28, 28)], "gray"),
        (None, [("batch", 1, 28, 28)], "gray"),
        (None, [(1, 1, 28, 28), (1, 4)], "rgb"),
        (None, [(1, 1)], "rgb"),
        ("rgb", [(1, 1, 28, 28)], "rgb"),
        ("gray", [(1, 3, 28, 28)], "gray"),
        ("gray", [], "gray"),
    ],
)
def test_images_are_gray_for_one_channel_unless_the_option_says_otherwise(
    mode: Any, shapes: list[Any], expected: str
) -> None:
    assert BuildConfig(image_mode=mode).images_for(shapes).mode == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (1, 8, 16)),
        ({"batch": 16}, (1, 8, 16)),
        ({"batch": 64}, (1, 64, 64)),
        ({"batch": 2, "batches": ("1,2,4",)}, (1, 2, 4)),
    ],
)
def test_engines_of_tensorrt_take_the_batch_that_is_measured(
    values: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    config = BuildConfig(**values)
    (sizes,) = config.engine_options().batch
    assert (sizes.least, sizes.best, sizes.most) == expected
