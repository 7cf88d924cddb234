"""The report on a terminal of 80 columns and in a pipe: nothing cut off, nothing smuggled in."""

import io
import re
from typing import Any

import pytest
from rich.console import Console
from samples import SAMPLES, hostile_report, labelled_report, no_data_report, torch_report

from deploy.report import print_report, render_html
from deploy.report.wording import clean


def _print(report: dict[str, Any], *, width: int = 80, terminal: bool = False) -> str:
    stream = io.StringIO()
    print_report(
        report,
        Console(
            file=stream,
            width=width,
            force_terminal=terminal,
            color_system="truecolor" if terminal else None,
        ),
    )
    return stream.getvalue()


def _joined(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", SAMPLES)
def test_keeps_all_reasons_and_warnings(name: str, width: int) -> None:
    report = SAMPLES[name]()
    text = _joined(_print(report, width=width))
    wanted = [report["verdict"], *report["warnings"]]
    wanted += [c["reason"] for c in report["candidates"] if c["reason"]]
    for sentence in wanted:
        assert _joined(clean(sentence)) in text


@pytest.mark.parametrize("name", SAMPLES)
def test_fits_80_columns_without_an_ellipsis(name: str) -> None:
    text = _print(SAMPLES[name]())
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize("name", SAMPLES)
def test_a_pipe_gets_no_escape_codes(name: str) -> None:
    assert "\x1b" not in _print(SAMPLES[name]())


def test_hostile_names_bring_no_escape_codes_of_their_own_to_a_terminal() -> None:
    codes = set(re.findall(r"\x1b\[([\d;]*)m", _print(labelled_report(), terminal=True)))
    assert codes
    hostile = _print(hostile_report(), terminal=True)
    assert set(re.findall(r"\x1b\[([\d;]*)m", hostile)) <= codes | {"33"}
    assert "\u202e" not in hostile


def test_markup_in_names_is_text() -> None:
    report = no_data_report()
    report["warnings"] = ["[bold]not bold[/bold] [/]"]
    assert "[bold]not bold[/bold] [/]" in _print(report)


def test_shows_every_candidate_with_its_status_and_numbers() -> None:
    text = _print(labelled_report())
    rows = {line[2:].split()[0]: line for line in text.splitlines() if len(line.split()) >= 6}
    assert re.search(r"^> openvino-int8 +winner +0\.298 +7\.09x +94\.41% +318 kB", text, re.M)
    assert "0.294-0.302" in text
    assert "rejected" in rows["onnxruntime-int8"]
    assert "failed" in rows["onnxruntime-bf16"]
    assert "not run" in rows["tensorrt_rtx-fp16"]


def test_a_long_name_has_two_lines_beside_its_times_where_the_terminal_is_narrow() -> None:
    report = labelled_report()
    for candidate in report["candidates"]:
        if candidate["name"] == "openvino-int8":
            candidate["name"] = report["winner"] = "onnxruntime-tf32-cuda-graphs"
    narrow, wide = _print(report, width=80), _print(report, width=120)
    assert re.search(r"^> onnxruntime-tf32 +winner +0\.298 .*\n +-cuda-graphs +0\.29", narrow, re.M)
    assert re.search(r"^> onnxruntime-tf32-cuda-graphs +winner +0\.298 ", wide, re.M)


def test_a_reason_that_several_share_is_said_once() -> None:
    report, reason = labelled_report(), "some_package is not installed"
    for name in ("tensorrt_rtx-fp32", "tensorrt_rtx-tf32"):
        lost = next(c for c in report["candidates"] if c["name"] == "tensorrt_rtx-fp16")
        report["candidates"].append({**lost, "name": name})
    for candidate in report["candidates"]:
        if candidate["name"].startswith("tensorrt"):
            candidate["reason"] = reason
    text = _print(report)
    assert text.count(reason) == 1
    for precision in ("fp16", "fp32", "tf32"):  # in the table, and beside the reason
        assert len(re.findall(rf"^  tensorrt_rtx-{precision}\b", text, re.M)) == 2


def test_a_tie_that_a_more_precise_engine_won_is_told() -> None:
    report = labelled_report()
    assert "told apart" not in _print(report)
    report["winner"] = "openvino-fp32"
    told = _joined("openvino-int8 and openvino-bf16 came out faster, but not beyond doubt")
    assert told in _joined(_print(report))
    assert told in _joined(render_html(report))
    assert "told apart" not in _print(torch_report())


def test_three_that_came_out_faster_are_listed_as_in_a_sentence() -> None:
    report = labelled_report()
    report["winner"] = "openvino-fp32"
    fast = next(c for c in report["candidates"] if c["name"] == "openvino-int8")
    report["candidates"].insert(0, {**fast, "name": "onnxruntime-int8-dynamic"})
    text = _joined(_print(report))
    first, second = "onnxruntime-int8-dynamic", "openvino-int8"
    assert any(
        _joined(f"{', '.join(pair)} and openvino-bf16 came out faster") in text
        for pair in ((first, second), (second, first))
    )


def test_only_the_winner_is_marked() -> None:
    assert len(re.findall(r"^> ", _print(labelled_report()), re.M)) == 1
    assert re.search(r"^> torch-fp32 +winner", _print(torch_report()), re.M)


def test_without_labels_the_sqnr_stands_in_place_of_accuracy() -> None:
    text = _print(no_data_report())
    assert "129.4 dB" in text
    assert "accuracy" not in text.split("─")[0]


def test_control_says_whether_the_machine_was_quiet() -> None:
    assert "holds 1" in _print(labelled_report())
    off = labelled_report()
    off["control"] = {"ratio": 1.03, "ci95": [1.01, 1.05]}
    assert "leaves1out" in _joined(_print(off))
    assert "everyspeed-up'sintervalwaswidened" in _joined(_print(off))
    off["measurement"]["openings"] = 2  # by what the openings differ by, then
    assert "widened" not in _print(off)
    assert "nottobetrusted" in _joined(_print(off))
    off["control"] = {"ratio": 1.01, "ci95": [1.003, 1.02]}
    assert "1.0030to1.02" in _joined(_print(off))  # and not 1.00, which it leaves out
    report = labelled_report() | {"control": None}
    assert "A/A control: not run" in _print(report)


def test_survives_a_stream_that_knows_only_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_report(labelled_report(), Console(file=stream, width=80))
    stream.flush()
    assert b"openvino-int8" in raw.getvalue()


@pytest.mark.parametrize(
    ("ratio", "ci95", "noisy"),
    [
        (1.01, [0.98, 1.04], False),
        (0.60, [0.045, 1.0], True),
        (1.08, [1.05, 1.1], True),
        (1.0, [0.6, 1.3], True),
    ],
)
def test_a_noisy_machine_is_not_called_calm(ratio: float, ci95: list[float], noisy: bool) -> None:
    report = labelled_report()
    report["control"] = {"ratio": ratio, "ci95": ci95}
    text = " ".join(_print(report).split())
    assert ("too noisy to trust these times" in text) == noisy
    assert ("as it should" in text) == (not noisy)
