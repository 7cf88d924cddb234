"""The census in words: what is called out, what is too little to mention, and old reports."""

import re

from samples import labelled_report, no_data_report

from deploy.report.census import FLOAT_SHARE, describe_census, describe_float


def _candidate(name: str) -> dict:
    return next(c for c in labelled_report()["candidates"] if c["name"] == name)


def _text(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", markup).split())


def test_a_float_remainder_is_one_sentence_with_places_and_shares() -> None:
    assert describe_float(_candidate("openvino-int8")) == (
        "openvino-int8 spends 26.7% of its time in fp32: stages.0.attn 20.0%, head.act 6.7%."
    )


def test_only_the_three_slowest_places_are_named() -> None:
    candidate = _candidate("openvino-int8")
    place = candidate["census"]["remainder"][0]
    candidate["census"]["remainder"] = [{**place, "where": f"m{i}"} for i in range(5)]
    sentence = describe_float(candidate)
    assert sentence is not None
    assert sentence.endswith("m0 20.0%, m1 20.0%, m2 20.0% and 2 more places.")


def test_a_small_remainder_is_not_called_out() -> None:
    candidate = _candidate("openvino-int8")
    candidate["census"]["remainder"] = candidate["census"]["remainder"][1:]
    assert candidate["census"]["remainder"][0]["share_of_time"] < FLOAT_SHARE
    assert describe_float(candidate) is None


def test_what_was_not_run_says_why_and_a_report_of_before_has_nothing() -> None:
    assert describe_float(_candidate("tensorrt_rtx-fp16")) is None
    assert describe_float(_candidate("openvino-fp32")) is None
    assert describe_census(no_data_report()) is None
    text = _text(describe_census(labelled_report()) or "")
    assert "tensorrt_rtx-fp16: not run: no NVIDIA GPU" in text


def test_the_table_has_every_precision_and_the_reformats() -> None:
    text = _text(describe_census(labelled_report()) or "")
    assert "openvino-int8 int8 20 990 99.0% 5.00 66.7%" in text
    assert "openvino-int8 fp32 2 10 1.0% 2.00 26.7%" in text
    assert "openvino-int8 reformats 3 – – 0.500 6.7%" in text
    assert "What stays in more bits: 2" in text
