"""What reports show where a sample has many labels: how they were read, and F1 of the classes."""

import io

import pytest
from rich.console import Console
from samples import f1, labelled_report, places_report

from deploy.report import compare_reports, print_comparison
from deploy.report.facts import winner_of
from deploy.report.html import render_html
from deploy.report.terminal import print_report

WORDS = "each of the 12x12 labels of a sample is 0 or 1, for one value of the output"


def show(**changes: object) -> str:
    stream = io.StringIO()
    report = places_report()
    report["data"].update(changes)
    print_report(report, Console(file=stream, width=200))
    return stream.getvalue()


def test_the_terminal_says_how_the_labels_were_read_and_nothing_of_plain_classes() -> None:
    assert f"Labels: {WORDS}" in show()
    assert "Labels:" not in show(labels=None)


def test_the_page_has_the_f1_of_both_with_its_drop() -> None:
    page = render_html(places_report())
    for shown in ("Labels read as", WORDS, ">F1</th>", "81.23%", "83.45%", "1.82 to 2.62"):
        assert shown in page
    assert ">F1</th>" not in render_html(labelled_report())


@pytest.mark.parametrize(("candidate", "worse"), [(0.8100, False), (0.80, True)])
def test_a_larger_drop_of_the_f1_is_a_regression(candidate: float, worse: bool) -> None:
    b = places_report()
    winner_of(b)["parity"]["accuracy"]["f1"] = f1(candidate)
    comparison = compare_reports(places_report(), b)
    assert [row.what for row in comparison.regressions] == ["F1, and its drop"] * worse
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, width=120))
    assert "81.23%" in stream.getvalue()
    assert f"{100 * candidate:.2f}%" in stream.getvalue()


def test_reports_of_which_one_has_no_f1_are_compared_without() -> None:
    rows = compare_reports(labelled_report(), places_report()).differences
    assert "F1, and its drop" not in [row.what for row in rows]
