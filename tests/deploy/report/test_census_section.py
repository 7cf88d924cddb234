"""The census in words: what is called out, what is too little to mention, and old reports."""

import io
import re

from rich.console import Console
from samples import labelled_report, no_data_report

from deploy.report import print_report, render_html
from deploy.report.census import (
    FLOAT_SHARE,
    describe_census,
    describe_cpu,
    describe_float,
    describe_stray,
)


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


def test_what_the_cpu_runs_of_an_engine_for_the_gpu_is_a_sentence_of_its_own() -> None:
    candidate = _candidate("openvino-int8")
    assert describe_cpu(candidate) is None
    places = candidate["census"]["remainder"]
    places[1]["on_cpu"] = True
    operators = ", ".join(places[1]["operators"])
    assert describe_cpu(candidate) == (
        f"openvino-int8 has no kernel on the GPU for {operators}, which the CPU runs: 6.7% of its "
        "time, copies not counted, in head.act 6.7%."
    )
    assert "head.act" not in str(describe_float(candidate))


def test_what_was_not_run_says_why_and_a_report_of_before_has_nothing() -> None:
    assert describe_float(_candidate("tensorrt_rtx-fp16")) is None
    assert describe_float(_candidate("openvino-fp32")) is None
    assert describe_census(no_data_report()) is None
    text = _text(describe_census(labelled_report()) or "")
    assert "tensorrt_rtx-fp16: not run: no NVIDIA GPU" in text


def test_what_several_lack_is_said_once() -> None:
    report = labelled_report()
    waiting = next(row for row in report["candidates"] if row["name"] == "tensorrt_rtx-fp16")
    report["candidates"].append({**waiting, "name": "tensorrt_rtx-int8"})
    text = _text(describe_census(report) or "")
    assert "tensorrt_rtx-fp16, tensorrt_rtx-int8: not run: no NVIDIA GPU" in text


def test_the_table_has_every_precision_and_the_reformats() -> None:
    text = _text(describe_census(labelled_report()) or "")
    assert "openvino-int8 int8 20 990 99.0% 5.00 66.7%" in text
    assert "openvino-int8 fp32 2 10 1.0% 2.00 26.7%" in text
    assert "openvino-int8 reformats 3 – – 0.500 6.7%" in text
    assert "What stays in more bits: 2" in text


def test_layers_left_in_float32_between_int8_are_a_finding_on_the_page_and_the_terminal() -> None:
    report = labelled_report()
    candidate = next(c for c in report["candidates"] if c["name"] == "tensorrt_rtx-fp16")
    candidate["stray_float"] = ["stages.0.gate", "stages.1.gate", "head.norm", "head.act"]
    sentence = describe_stray(candidate)
    assert sentence is not None
    assert sentence.startswith(
        "tensorrt_rtx-fp16 keeps 4 layers in float32 between int8 layers, which costs two "
        "conversions each: stages.0.gate, stages.1.gate, head.norm and 1 more."
    )
    assert sentence in _text(render_html(report))
    console = Console(file=io.StringIO(), width=400)
    print_report(report, console)
    assert sentence in console.file.getvalue()
    candidate["stray_float"] = ["head.norm"]
    assert "keeps 1 layer in float32" in str(describe_stray(candidate))
    assert describe_stray({**candidate, "stray_float": []}) is None
    del candidate["stray_float"]  # as reports had it before
    assert describe_stray(candidate) is None
