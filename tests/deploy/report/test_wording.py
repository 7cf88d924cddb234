"""Numbers as people read them."""

import math

import pytest

from deploy.report.wording import (
    clean,
    format_bytes,
    format_conditions,
    format_count,
    format_decibel,
    format_error,
    format_images,
    format_number,
    format_percent,
    format_points,
    format_ratio,
    format_samples,
    format_seconds,
    format_time,
)


@pytest.mark.parametrize(
    ("decibel", "text"),
    [(0, "100%"), (20, "10%"), (26, "5.0%"), (40, "1.0%"), (129, "less than 0.001%")],
)
def test_an_sqnr_reads_as_the_share_that_is_error(decibel: float, text: str) -> None:
    assert format_error(decibel) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1234, "0.123"),
        (4.0, "4.00"),
        (40.16, "40.2"),
        (9.996, "10.0"),
        (1234.5, "1,234"),
        (0, "0"),
        (1.4e-7, "1.40e-07"),
        (None, "-"),
        (math.nan, "NaN"),
        (-0.5, "-0.500"),
    ],
)
def test_numbers_keep_three_digits(value: float | None, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999 B"), (318464, "318 kB"), (999_600, "1.00 MB"), (4.2e9, "4.20 GB"), (None, "-")],
)
def test_sizes(value: float | None, text: str) -> None:
    assert format_bytes(value) == text


def test_small_losses_do_not_vanish_in_rounding() -> None:
    assert format_percent(0.94415) == "94.42%"
    assert format_points(-0.0005) == "-0.05"
    assert format_points(-0.0) == "0.00"
    assert format_points(-0.00004) == "0.00"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "100.00%"),
        (0.0, "0.00%"),
        (0.9995, "99.95%"),
        (0.99996, "99.996%"),
        (0.9999999, "99.99999%"),
        (0.00003, "0.003%"),
        (1 - 1e-12, "100.000000%"),
    ],
)
def test_all_but_all_is_not_all(value: float, text: str) -> None:
    assert format_percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1.00"),
        (0.9996, "0.9996"),
        (1.003, "1.0030"),
        (1.00001, "1.00"),
        (1.006, "1.01"),
        (0.5, "0.500"),
        (0.04, "0.04"),
        (36.42, "36.4"),
    ],
)
def test_what_is_not_as_fast_does_not_read_so(value: float, text: str) -> None:
    assert format_ratio(value) == text


def test_no_error_at_all_is_called_identical() -> None:
    assert format_decibel(math.inf) == "identical"
    assert format_decibel(-math.inf) == format_decibel(-300.0) == "no signal"
    assert format_decibel(None) == "-"


def test_counts_and_times() -> None:
    assert format_count(11689512) == "11.7 million"
    assert format_count(272474) == "272,474"
    assert format_count(999_999_999) == "1.00 billion"
    assert format_count(999_999) == "999,999"
    assert format_seconds(185) == "3 min 5 s"
    assert format_time("2026-11-24T03:00:00Z") == "2026-11-24 03:00 UTC"
    assert format_time("yesterday") == "yesterday"


def test_control_and_direction_characters_are_spelled_out() -> None:
    assert clean("a\x1b[31m\u202eb\x00") == r"a\x1b[31m\u202eb\x00"
    assert clean("two\n lines\t") == "two lines"
    assert clean("Größe 模型 é") == "Größe 模型 é"
    assert clean("\ud800").encode("utf-8") == rb"\ud800"


@pytest.mark.parametrize(
    ("gpu", "measured", "words"),
    [
        (None, {"device": "cpu"}, "CPU A, 4 threads, batch 1, 2026-11-25 12:00 UTC"),
        ("NVIDIA L4", {}, "CPU A and NVIDIA L4, 4 threads, batch 1, 2026-11-25 12:00 UTC"),
        ("NVIDIA L4", {"device": "cuda"}, "batch 1, eager on the GPU, 2026"),
        ("NVIDIA L4", {"device": "cpu"}, "batch 1, eager on the CPU, 2026"),
    ],
)
def test_conditions_say_where_eager_ran_where_that_is_not_plain(
    gpu: str | None, measured: dict[str, str], words: str
) -> None:
    report = {
        "machine": {"cpu": "CPU A", "gpu": gpu},
        "measurement": {"threads": 4, "batch": 1, **measured},
        "created": "2026-11-25T12:00:00Z",
    }
    assert words in format_conditions(report)


def test_what_becomes_of_images_is_a_formula() -> None:
    images = {"name": "x", "mean": [0.5], "std": [0.25], "scale": 255.0, "dtype": "float32"}
    assert format_images(images) == "x: the model is given (image / 255 - 0.5) / 0.25"
    colours = {**images, "mean": [0.485, 0.456, 0.406], "scale": 1.0}
    assert format_images(colours).endswith("(image / 1 - [0.485, 0.456, 0.406]) / 0.25")


def test_one_sample_is_no_plural() -> None:
    assert format_samples(1) == "1 sample"
    assert format_samples(1, "evaluation") == "1 evaluation sample"
    assert format_samples(1234) == "1,234 samples"
