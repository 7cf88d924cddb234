"""Ranges of dynamic axes are carried on by name, and probed at their ends and between."""

import pytest

from export.artifacts import SizeRange, TensorSpec
from export.errors import ConfigError
from export.ranges import describe_sizes, probe_sizes, take_ranges
from export.tensorrt.options import BuildOptions, make_profiles

HEIGHT, WIDTH = SizeRange(128, 224, 512), SizeRange(64, 96, 97)
IMAGE = TensorSpec("x", ("batch", 3, "h", "w"), "float32", {"h": HEIGHT, "w": WIDTH})


def test_a_spec_has_its_best_sizes_unless_others_are_named() -> None:
    assert IMAGE.with_batch(4) == (4, 3, 224, 96)
    assert IMAGE.with_sizes(1, {"h": 130}) == (1, 3, 130, 96)
    assert TensorSpec("x", ("batch", "n"), "float32").with_batch(4) == (4, 1)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 128, 64), None),
        ((1, 3, 512, 97), None),
        ((1, 3, 127, 64), "has 127 on axis 2, which may be 128 to 512"),
        ((1, 3, 512, 98), "has 98 on axis 3, which may be 64 to 97"),
    ],
)
def test_what_is_out_of_a_range_is_said_by_axis(shape: tuple[int, ...], words: str | None) -> None:
    assert IMAGE.explain_misfit(shape) == words


def test_the_ends_are_probed_and_odd_sizes_that_differ_from_axis_to_axis() -> None:
    assert probe_sizes([IMAGE]) == (
        {"h": 128, "w": 64},
        {"h": 512, "w": 97},
        {"h": 177, "w": 97},
    )
    assert probe_sizes([TensorSpec("x", ("batch", 3), "float32")]) == ()
    square = TensorSpec("x", ("batch", "h", "w"), "float32", dict.fromkeys("hw", HEIGHT))
    odd = probe_sizes([square])[2]
    assert odd["h"] != odd["w"]
    assert odd["h"] % 2 == odd["w"] % 2 == 1
    assert describe_sizes(odd) == "h=177, w=369"


def test_a_step_leaves_multiples_alone() -> None:
    sizes = SizeRange(64, 128, 256, 32)
    assert [size for size in range(300) if size in sizes] == list(range(64, 257, 32))
    assert (str(sizes), sizes.describe()) == ("64,128,256/32", "64 to 256 in steps of 32")
    spec = TensorSpec("x", ("batch", "h", "w"), "float32", dict.fromkeys("hw", sizes))
    assert probe_sizes([spec]) == ({"h": 64, "w": 64}, {"h": 256, "w": 256}, {"h": 96, "w": 224})
    assert "in steps of 32" in str(spec.explain_misfit((1, 80, 64)))
    with pytest.raises(ConfigError, match="not all multiples of 32"):
        SizeRange(64, 100, 256, 32)


def test_what_a_file_says_takes_names_and_ranges_where_axes_are_dynamic() -> None:
    found = TensorSpec("x", ("batch", 3, "s7", 96), "float32")
    (taken,) = take_ranges([found], [IMAGE])
    assert taken == TensorSpec("x", ("batch", 3, "h", 96), "float32", {"h": HEIGHT})
    assert take_ranges([found], [TensorSpec("y", ("n",), "float32")]) == (found,)


def test_a_profile_of_tensorrt_follows_from_the_specs() -> None:
    (profile,) = make_profiles((IMAGE,), BuildOptions(batch=(SizeRange(1, 2, 4),)))
    assert profile.shapes == {"x": ((1, 3, 128, 64), (2, 3, 224, 96), (4, 3, 512, 97))}


def test_sizes_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(ConfigError, match="none below the one before"):
        SizeRange(3, 2, 4)
