"""The report says what int8 costs and saves in every block, and how far recovery had to go."""

import copy
import io
import re
from typing import Any

import jsonschema
import pytest
from rich.console import Console
from samples import labelled_report

from deploy.report import load_schema, print_report, render_html
from deploy.report.search import describe_blocks, describe_recovery, describe_search
from deploy.search.rungs import OUT_OF_TIME


def block(
    name: str, sqnr: float | None, int8: float | None, wide: float | None, layers: int = 1
) -> dict[str, Any]:
    return {
        "name": name,
        "layers": layers,
        "sqnr_db": sqnr,
        "int8_seconds": int8,
        "float_seconds": wide,
    }


@pytest.fixture
def report() -> dict[str, Any]:
    """A report of a build whose int8 had to be recovered, and that found a mix."""
    report = copy.deepcopy(labelled_report())
    report["search"] = {
        "effort": "normal",
        "seconds": 12.5,
        "engine": "openvino",
        "float_precision": "fp32",
        "blocks": [
            block("stem", 30.0, 1e-4, 3e-4),
            block("stages.<1>", 40.0, 2e-4, 1e-4, layers=3),
            block("head", None, None, None),
        ],
        "notes": ["mixes for speed: not all tried, after 180 s of --effort normal"],
    }
    row = next(c for c in report["candidates"] if c["precision"] == "int8" and c["parity"])
    plain = {"step": "plain", "words": "nearest rounding", "passed": False}
    row["recovery"] = [
        {**plain, "reason": "accuracy drops by 3.00%", "sqnr_db": 12.0, "accuracy": 0.95},
        {
            "step": "bias",
            "words": "bias correction",
            "passed": True,
            "reason": None,
            "sqnr_db": 21.0,
            "accuracy": 0.98,
        },
    ]
    row["kept_float"] = ["head"]
    return report


def widths(markup: str, kind: str) -> list[float]:
    return [float(w) for w in re.findall(rf'width="([\d.]+)%" height="6" class="{kind}', markup)]


def test_a_report_with_a_search_holds_the_schema(report: dict[str, Any]) -> None:
    jsonschema.validate(report, load_schema())
    jsonschema.validate({**report, "search": None}, load_schema())


def test_bars_are_in_proportion_to_noise_and_to_time(report: dict[str, Any]) -> None:
    markup = str(describe_blocks(report))
    noise, saving = widths(markup, "noise"), widths(markup, "saving")
    assert noise == pytest.approx([95, 9.5, 0], abs=0.01)
    assert saving == pytest.approx([95, 47.5, 0], abs=0.01)


def test_where_int8_is_slower_the_bar_says_so(report: dict[str, Any]) -> None:
    markup = str(describe_blocks(report))
    assert markup.count("saving slower") == 1
    assert "plain rounding on a few calibration samples" in markup  # as candidates are not made
    assert "-100 µs" in markup
    assert "openvino against fp32" in markup


def test_names_from_the_model_are_escaped(report: dict[str, Any]) -> None:
    markup = str(describe_blocks(report))
    assert "stages.&lt;1&gt;" in markup
    assert "<1>" not in markup


def test_the_rungs_are_told_in_order(report: dict[str, Any]) -> None:
    markup = str(describe_recovery(report))
    assert markup.index("does not hold") < markup.index("bias correction")
    assert "accuracy drops by 3.00%" in markup


def test_a_rung_that_no_time_was_left_for_did_not_fail(report: dict[str, Any]) -> None:
    row = next(c for c in report["candidates"] if c.get("recovery"))
    row["recovery"][1] |= {"passed": False, "reason": OUT_OF_TIME, "sqnr_db": None}
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", str(describe_recovery(report)))
    assert "not tried" in cells
    assert "the time of the search was over" in cells
    assert cells.count("does not hold") == 1


def test_what_was_cut_short_is_said(report: dict[str, Any]) -> None:
    report["search"]["notes"].append("recovery of openvino-int8: not all tried")
    markup = str(describe_search(report))
    assert markup.endswith(
        "Cut short or not done: mixes for speed: not all tried, after 180 s of --effort normal; "
        "recovery of openvino-int8: not all tried.</p>"
    )
    assert "keeps head out of int8" in markup


def test_a_search_that_had_nothing_to_do_says_so(report: dict[str, Any]) -> None:
    report["search"] = {**report["search"], "blocks": [], "notes": []}
    for candidate in report["candidates"]:
        candidate["recovery"], candidate["kept_float"] = (), ()
    assert "Effort normal: nothing was searched." in str(describe_search(report))


def test_the_terminal_says_how_far_recovery_had_to_go(report: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_report(report, console)
    text = console.file.getvalue()
    why = "accuracy drops by 3.00%; SQNR 12.0 dB"
    assert f"plain int8 did not hold the gate ({why}); with bias correction it does" in text
    assert "keeps head out of int8" in text


def test_without_a_search_there_is_no_section() -> None:
    report = labelled_report()
    assert describe_blocks(report) is None
    assert describe_recovery(report) is None
    assert describe_search(report) is None
    assert "block by block" not in render_html(report)


def test_the_page_has_the_section(report: dict[str, Any]) -> None:
    assert "Precision, block by block" in render_html(report)
