"""Sizes of dynamic axes, and the profiles that they make."""

from dataclasses import asdict

import pytest

from export.artifacts import TensorSpec
from export.errors import ConfigError
from export.tensorrt import BuildOptions, EngineRecord, ShapeProfile, SizeRange
from export.tensorrt.options import make_profiles, parse_sizes

X = TensorSpec("x", ("batch", 3, 8, 8), "float32")


@pytest.mark.parametrize(
    ("text", "sizes"), [("1,8,32", (1, 8, 32)), ("4", (4, 4, 4)), ("2,2,2", (2, 2, 2))]
)
def test_sizes_are_read(text: str, sizes: tuple[int, int, int]) -> None:
    assert parse_sizes(text) == SizeRange(*sizes)
    assert parse_sizes(str(parse_sizes(text))) == SizeRange(*sizes)


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "a,b,c", "0,1,2", "8,4,16", "1,8,4", "-1"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_sizes(text)


def test_static_inputs_have_no_profile_and_all_dynamic_ones_share_it() -> None:
    mask = TensorSpec("mask", (3, 8), "bool")
    ids = TensorSpec("ids", ("batch", 16), "int64")
    assert make_profiles((mask,), BuildOptions()) == ()
    (profile,) = make_profiles((X, mask, ids), BuildOptions(batch=(SizeRange(1, 2, 4),)))
    assert set(profile.shapes) == {"x", "ids"}
    assert profile.shapes["ids"] == ((1, 16), (2, 16), (4, 16))


def test_axes_that_there_are_not_and_axes_without_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="No input has a dynamic axis"):
        make_profiles((X,), BuildOptions(axes={"width": SizeRange(1, 2, 3)}))
    tall = TensorSpec("x", ("batch", 3, "height", 8), "float32")
    with pytest.raises(ConfigError, match=r"'height'.*LEAST:BEST:MOST in its place in --input"):
        make_profiles((tall,), BuildOptions())


def test_a_profile_says_what_does_not_fit() -> None:
    (profile,) = make_profiles((X,), BuildOptions(batch=(SizeRange(2, 4, 8),)))
    assert profile.explain_misfit({"x": (2, 3, 8, 8)}) is None
    assert profile.explain_misfit({"x": (8, 3, 8, 8)}) is None
    for shape in ((1, 3, 8, 8), (9, 3, 8, 8), (4, 3, 8, 9), (4, 3, 8)):
        words = profile.explain_misfit({"x": shape})
        assert words is not None
        assert str(list(shape)) in words
        assert "[2, 3, 8, 8] to [8, 3, 8, 8]" in words


@pytest.mark.parametrize(
    "wrong", [{"level": 6}, {"level": -1}, {"workspace": 0}, {"batch": ()}, {"targets": ()}]
)
def test_options_that_no_builder_takes_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        BuildOptions(**wrong)


def test_options_and_records_come_back_from_plain_values() -> None:
    options = BuildOptions(batch=(SizeRange(1, 2, 3),), axes={"h": SizeRange(4, 5, 6)}, level=2)
    assert BuildOptions.from_dict(asdict(options)) == options
    profile = ShapeProfile({"x": ((1, 3), (2, 3), (4, 3))})
    record = EngineRecord(
        "tensorrt_rtx", "1.7", ("SM89",), ("TF32",), (profile,), "a", "b", plugins={"p.so": "c"}
    )
    assert EngineRecord.from_dict(asdict(record)) == record
    with pytest.raises((KeyError, TypeError, ValueError)):
        EngineRecord.from_dict({**asdict(record), "profiles": [{"shapes": {"x": [1, 2]}}]})
