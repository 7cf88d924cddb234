"""``--input`` is read exactly or refused helpfully; synthetic arrays are the same for a seed."""

import hashlib
import subprocess
import sys
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from deploy.inputs.declared import (
    DTYPES,
    InputAxis,
    InputSpec,
    numpy_dtype,
    parse_input,
    synthetic_feeds,
)
from export.artifacts import SizeRange, TensorSpec
from export.errors import ConfigError

IMAGE = TensorSpec("image", ("batch", 3, "height", 4), "float32")
IDS = TensorSpec("ids", ("batch", 128), "int64")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1x3x224x224", InputSpec(None, (1, 3, 224, 224))),
        ("7", InputSpec(None, (7,))),
        ("1x128:int64", InputSpec(None, (1, 128), "int64")),
        ("ids:1x128:int64", InputSpec("ids", (1, 128), "int64")),
        ("ids:1x128:int64:30522", InputSpec("ids", (1, 128), "int64", 30522)),
        ("1x128:int32:5", InputSpec(None, (1, 128), "int32", 5)),
        ("x:1x3", InputSpec("x", (1, 3))),
        ("x1:2x3:bool", InputSpec("x1", (2, 3), "bool")),
        (" ids : 1x2 : uint8 : 256 ", InputSpec("ids", (1, 2), "uint8", 256)),
    ],
)
def test_input_is_read(text: str, expected: InputSpec) -> None:
    assert parse_input(text) == expected


@pytest.mark.parametrize(
    ("text", "shape", "axes"),
    [
        (
            "1x3x128:224:512x64:96:128",
            (1, 3, 224, 96),
            {2: InputAxis(SizeRange(128, 224, 512)), 3: InputAxis(SizeRange(64, 96, 128))},
        ),
        ("ids:1x8:64:256:int64:30522", (1, 64), {1: InputAxis(SizeRange(8, 64, 256))}),
        ("1xtext=8:64:256x4", (1, 64, 4), {1: InputAxis(SizeRange(8, 64, 256), "text")}),
        ("1x3xmax=2:2:9x7", (1, 3, 2, 7), {2: InputAxis(SizeRange(2, 2, 9), "max")}),
        ("1x5:5:5", (1, 5), {}),
        ("1x3x64:96:128/32:float16", (1, 3, 96), {2: InputAxis(SizeRange(64, 96, 128, 32))}),
    ],
)
def test_a_range_makes_an_axis_dynamic(
    text: str, shape: tuple[int, ...], axes: dict[int, InputAxis]
) -> None:
    spec = parse_input(text)
    assert (spec.shape, spec.axes) == (shape, axes)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1:8:32x3", "the batch comes first and has its range in --batch 1,8,32"),
        ("1x8:4:16", "'8:4:16' does not go up"),
        ("1x0:4:16", "'0:4:16' does not go up"),
        ("1x1:1:16", "has 1 as its best size"),
        ("1x32:32:64/32", "has 32 as its best size, which exporters fix; take 64 or more"),
        ("1x32:64:100/32", "'32:64:100/32' has sizes that are no multiples of its step"),
        ("1x32:64:96/0", "has sizes that are no multiples of its step"),
        ("1xbatch=1:2:3", "'batch=1:2:3' is no range"),
        ("1xlength=7", "'length=7' is no range; write LEAST:BEST:MOST or NAME=LEAST:BEST:MOST"),
        ("1x8:16", "'16' is no known dtype"),
        ("4x2:3:9999999999", r"more than 2\*\*31 elements"),
    ],
)
def test_a_range_that_is_none_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        parse_input(text)


def test_a_signature_says_ranges_as_they_were_given() -> None:
    spec = replace(parse_input("ids:1xlength=8:64:256x4:9:12:int64"), name="ids").describe(2)
    assert str(spec) == "ids:2x8:64:256x4:9:12:int64"
    assert spec.shape == (2, "length", "ids_2")
    assert spec.with_batch(3) == (2, 64, 9)
    assert synthetic_feeds([spec], 3, seed=0)["ids"].shape == (2, 64, 9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_listed_dtype_is_read_and_drawn(dtype: str) -> None:
    assert parse_input(f"1x2:{dtype}").dtype == dtype
    feeds = synthetic_feeds([TensorSpec("x", ("batch", 2), dtype)], 3, seed=0)
    assert feeds["x"].dtype.name == dtype
    assert feeds["x"].shape == (3, 2)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no sizes"),
        ("ids", "no sizes"),
        ("ids:", "no sizes"),
        ("batchx3", "no sizes"),
        ("1x0x3", "'0'"),
        ("1x-1", "'-1'"),
        ("1x3.5", "'3.5'"),
        ("1,3,224", "'1,3,224'"),
        ("1x", "''"),
        ("1X3", "'1X3'"),
        ("1x²", "'²'"),
        ("1x3:float", "'float'"),
        ("1x3:complex64", "'complex64'"),
        ("1x3:", "''"),
        ("ids:1x3:int64:0", "'0'"),
        ("ids:1x3:int64:-4", "'-4'"),
        ("ids:1x3:int8:129", "'129'"),
        ("ids:1x3:float32:10", "'10'"),
        ("ids:1x3:bool:2", "'2'"),
        ("ids:1x3:int64:10:x", "'x'"),
        ("65536x65536", "'65536x65536'"),
        ("1x" + "9" * 5000, "positive whole number"),
    ],
)
def test_wrong_input_names_the_text_the_fault_and_an_example(text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_input(text)
    message = str(raised.value)
    assert repr(text) in message
    assert fault in message
    assert "1x3x224x224" in message
    assert raised.value.exit_code == 2


def test_largest_size_is_still_taken() -> None:
    assert parse_input("2x1073741824").shape == (2, 2**30)


def test_symbolic_axes_become_the_batch_and_one() -> None:
    feeds = synthetic_feeds([IMAGE, IDS], 5, seed=1)
    assert feeds["image"].shape == (5, 3, 1, 4)
    assert feeds["ids"].shape == (5, 128)


def test_images_are_drawn_from_all_pixels_unless_a_bound_is_given() -> None:
    specs = [TensorSpec("x", ("batch", 8, 8, 3), "uint8"), TensorSpec("n", ("batch", 64), "uint8")]
    drawn = synthetic_feeds(specs, 4, seed=0)
    assert drawn["x"].max() > 250
    assert drawn["n"].max() == 1
    assert synthetic_feeds(specs, 4, seed=0, high={"x": 5})["x"].max() == 4


def test_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    first = synthetic_feeds([IMAGE, IDS], 4, seed=3, high={"ids": 1000})
    again = synthetic_feeds([IMAGE, IDS], 4, seed=3, high={"ids": 1000})
    other = synthetic_feeds([IMAGE, IDS], 4, seed=4, high={"ids": 1000})
    for name in first:
        assert first[name].tobytes() == again[name].tobytes()
        assert first[name].tobytes() != other[name].tobytes()


def test_bits_do_not_change_between_processes() -> None:
    code = (
        "import sys, hashlib; from deploy.inputs.declared import synthetic_feeds;"
        "from export.artifacts import SizeRange, TensorSpec;"
        "spec = TensorSpec('ids', ('batch', 128), 'int64');"
        "feed = synthetic_feeds([spec], 2, seed=9, high={'ids': 77})['ids'];"
        "assert 'torch' not in sys.modules;"
        "print(hashlib.sha256(feed.tobytes()).hexdigest())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    here = synthetic_feeds([IDS], 2, seed=9, high={"ids": 77})["ids"]
    assert result.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


def test_floats_are_standard_normal() -> None:
    values = synthetic_feeds([TensorSpec("x", ("batch", 100), "float32")], 1000, seed=0)["x"]
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.02


def test_integers_fill_their_range_and_stay_in_it() -> None:
    small = synthetic_feeds([IDS], 50, seed=0)["ids"]
    assert set(np.unique(small)) == {0, 1}
    wide = synthetic_feeds([IDS], 50, seed=0, high={"ids": 7})["ids"]
    assert set(np.unique(wide)) == set(range(7))
    full = synthetic_feeds([TensorSpec("x", (9999,), "int8")], 1, seed=0, high={"x": 128})["x"]
    assert (full.min(), full.max()) == (0, 127)


@pytest.mark.parametrize("high", [{"ids": 0}, {"ids": -1}, {"ids": 2**63 + 1}, {"tokens": 5}])
def test_impossible_bound_is_refused(high: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="bound"):
        synthetic_feeds([IDS], 1, seed=0, high=high)


def test_dtype_of_a_name() -> None:
    assert numpy_dtype("bfloat16") == ml_dtypes.bfloat16
    assert numpy_dtype("float16") == np.float16
    with pytest.raises(ConfigError, match=r"complex64.*Known"):
        numpy_dtype("complex64")


@pytest.mark.parametrize("dtype", ["int64", "bool", "uint8"])
def test_no_synthetic_mask_hides_or_shows_all_even_if_it_is_cut(dtype: str) -> None:
    mask = synthetic_feeds([TensorSpec("mask", ("batch", 64), dtype)], 500, seed=0)["mask"]
    for length in (2, 8, 64):
        cut = mask[:, :length]
        assert (cut.min(axis=1) == 0).all()
        assert (cut.max(axis=1) == 1).all()
