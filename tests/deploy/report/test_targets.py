"""What reports show of a regression: R² in place of the accuracy, and the error in its unit."""

import copy
import io
from typing import Any

import jsonschema
import pytest
from rich.console import Console
from samples import labelled_report, targets_report

from deploy.report import compare_reports, load_schema, print_comparison
from deploy.report.facts import winner_of
from deploy.report.html import render_html
from deploy.report.json_file import write_json
from deploy.report.reading import read_report
from deploy.report.terminal import print_report
from export.errors import BundleError


def show(report: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=200))
    return stream.getvalue()


def test_it_fits_the_schema_also_where_the_mean_would_do_better() -> None:
    report = targets_report()
    score = winner_of(report)["parity"]["accuracy"]
    score.update(candidate=-0.31, drop=1.2562, candidate_ci95=[-0.5, -0.1])
    jsonschema.validate(report, load_schema())
    assert "-31.00%" in render_html(report)


def test_the_terminal_and_the_page_name_it() -> None:
    said = show(targets_report())
    assert " R² " in said
    assert "accuracy  " not in said
    assert "accuracy" in show(labelled_report())
    page = render_html(targets_report())
    for shown in (">R²</h2>", ">R²</th>", ">RMSE</th>", ">2.104</td>", ">2.091</td>"):
        assert shown in page
    assert ">Accuracy</th>" not in page
    assert ">RMSE</th>" not in render_html(labelled_report())


def test_two_of_a_kind_are_compared_by_it() -> None:
    worse = targets_report()
    winner_of(worse)["parity"]["accuracy"].update(candidate=0.7, candidate_ci95=[0.69, 0.71])
    comparison = compare_reports(targets_report(), worse)
    assert [row.what for row in comparison.regressions] == ["R²"]
    assert not compare_reports(targets_report(), targets_report()).regressions


def test_r2_is_not_held_against_an_accuracy() -> None:
    comparison = compare_reports(labelled_report(), targets_report())
    assert not comparison.regressions
    (row,) = (row for row in comparison.differences if row.what == "accuracy")
    assert row.b.startswith("R²")
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, width=200))
    assert "classes in one report, targets of a regression in the other" in stream.getvalue()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("measure", 5, "measure has the wrong type"),
        ("rmse", 5, "rmse has the wrong type"),
        ("rmse", [1.0], "rmse is not two numbers"),
        ("rmse", ["a", "b"], "rmse is not two numbers"),
    ],
)
def test_what_is_none_of_it_is_refused(key: str, value: object, words: str, tmp_path: Any) -> None:
    report = copy.deepcopy(targets_report())
    winner_of(report)["parity"]["accuracy"][key] = value
    write_json(report, tmp_path / "report.json")
    with pytest.raises(BundleError, match=words):
        read_report(tmp_path / "report.json")


def test_a_hostile_name_reaches_no_terminal() -> None:
    report = targets_report()
    for row in report["candidates"]:
        if row["parity"] and row["parity"]["accuracy"]:
            row["parity"]["accuracy"]["measure"] = "\x1b[31m<i>"
    assert "\x1b" not in show(report)
    assert "<i>" not in render_html(report)
    stream = io.StringIO()
    print_comparison(compare_reports(report, report), Console(file=stream, width=200))
    assert "\x1b[31m" not in stream.getvalue()
