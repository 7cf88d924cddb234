"""What reports show where several outputs have labels: the accuracy of each."""

import copy
import io
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from rich.console import Console
from samples import accuracy, f1, heads_report, labelled_report

from deploy.report import compare_reports, load_schema, print_comparison
from deploy.report.facts import accuracies_of, accuracy_of, winner_of
from deploy.report.html import render_html
from deploy.report.json_file import write_json
from deploy.report.reading import read_report
from deploy.report.terminal import print_report
from deploy.report.wording import UNKNOWN
from export.errors import BundleError


def show(report: dict[str, Any], width: int = 100) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width))
    return stream.getvalue()


def test_it_fits_the_schema_and_is_read_as_it_was_written(tmp_path: Any) -> None:
    report = heads_report()
    jsonschema.validate(report, load_schema())
    write_json(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report


def test_each_output_has_its_own() -> None:
    report = heads_report()
    found = accuracies_of(report, winner_of(report))
    assert [(n, a.measure, a.value) for n, a in found.items()] == [
        ("kind", "accuracy", winner_of(report)["parity"]["accuracy"]["candidate"]),
        ("age", "R²", 0.8123),
    ]
    assert found["age"].rmse == 2.1042
    assert accuracy_of(report, winner_of(report)) == found["kind"]
    references = accuracies_of(report, report["baseline"])
    assert [(n, a.value, a.drop) for n, a in references.items()] == [
        ("kind", 0.9462, 0.0),
        ("age", 0.8345, 0.0),
    ]


def test_one_goes_by_the_output_that_its_labels_are_of() -> None:
    report = labelled_report()
    assert list(accuracies_of(report, report["baseline"])) == [report["data"]["classes_of"]]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_has_a_table_of_the_winners_outputs(width: int) -> None:
    said = show(heads_report(), width)
    age = next(line for line in said.splitlines() if line.startswith("  age "))
    assert re.findall(r"R²|[\d.]+%|[\d.]+", age)[:4] == ["R²", "83.45%", "81.23%", "2.22"]
    assert not any(line.startswith("  age ") for line in show(labelled_report()).splitlines())
    assert max(map(len, said.splitlines())) <= width
    assert "in kind" in said.split("─")[0]
    assert "in kind" not in show(labelled_report(), width)


def test_where_eager_wins_it_stands_alone() -> None:
    report = heads_report()
    report["winner"] = report["baseline"]["name"]
    age = next(line for line in show(report).splitlines() if line.startswith("  age "))
    assert "83.45%" in age
    assert "81.23%" not in age
    assert "Accuracy by output" in render_html(report)


def test_the_page_has_a_figure_and_a_table_of_each() -> None:
    page = render_html(heads_report())
    for shown in (
        ">Accuracy by output</h2>",
        ">Accuracy in kind</h3>",
        ">R² in age</h3>",
        '<span class="term">R² in age</span>',
        ">kind, age<",
    ):
        assert shown in page
    assert page.count(">RMSE</th>") == 1
    assert "<h3" not in render_html(labelled_report())


def test_two_reports_are_compared_output_by_output() -> None:
    a, b = heads_report(), heads_report()
    assert not compare_reports(a, b).regressions
    worse = accuracy(0.70, 0.8345) | {"measure": "R²"}
    winner_of(b)["parity"]["accuracies"]["age"] = worse
    assert {row.what for row in compare_reports(a, b).regressions} == {
        "R² in age",
        "drop in age, points",
    }
    assert not compare_reports(b, a).regressions
    del winner_of(b)["parity"]["accuracies"]["age"]
    (gone,) = (row for row in compare_reports(a, b).differences if row.what == "R² in age")
    assert gone.regression
    assert "not judged on labelled data" in gone.note


def test_with_labels_of_one_alone_it_is_compared_by_its_name() -> None:
    """Both have accuracies of `kind`, one of `age` as well."""
    a, b = labelled_report(), heads_report()
    a["data"]["classes_of"] = "kind"
    found = {row.what: row for row in compare_reports(a, b).differences}
    assert found["accuracy in kind"].change == "+0.00"
    assert not found["R² in age"].regression
    assert found["R² in age"].a == UNKNOWN


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: winner_of(r)["parity"].update(accuracies=3), "accuracies has the wrong"),
        (lambda r: winner_of(r)["parity"]["accuracies"].update(age=3), "accuracies.age is not a"),
        (lambda r: winner_of(r)["parity"]["accuracies"]["age"].pop("drop"), "age.drop is missing"),
        (lambda r: winner_of(r)["parity"]["accuracies"]["age"].update(f1=3), "age.f1 has the"),
        (
            lambda r: winner_of(r)["parity"]["accuracies"]["age"].update(f1={"classes": 2}),
            "age.f1.reference is missing",
        ),
        (
            lambda r: winner_of(r)["parity"]["accuracy"].update(f1={**f1(0.9), "drop_ci95": [1]}),
            "accuracy.f1.drop_ci95 is not two",
        ),
        (lambda r: r["data"].update(labelled=3), "data.labelled has the wrong"),
        (
            lambda r: r["data"].update(labelled={"output": "kind", "axis": None}),
            "data.labelled has the wrong",
        ),
        (lambda r: r["data"].update(labelled=[3]), r"labelled\[0\] is not a table"),
        (lambda r: r["data"].update(labelled=[{"output": 3}]), "output has the wrong type"),
        (lambda r: r["data"].update(labelled=[{"output": "a"}]), "axis is missing"),
    ],
)
def test_what_is_none_of_it_is_refused(
    spoil: Callable[[dict[str, Any]], object], words: str, tmp_path: Any
) -> None:
    report = copy.deepcopy(heads_report())
    spoil(report)
    write_json(report, tmp_path / "report.json")
    with pytest.raises(BundleError, match=words):
        read_report(tmp_path / "report.json")


def test_an_output_may_be_called_as_what_accuracies_hold(tmp_path: Any) -> None:
    report = heads_report()
    for row in report["candidates"]:
        if row["parity"] and (tables := row["parity"].get("accuracies")):
            tables["rmse"], tables["drop_ci95"] = tables.pop("age"), tables.pop("kind")
    write_json(report, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == report


def test_outputs_of_one_row_alone_break_no_page() -> None:
    report = heads_report()
    report["baseline"]["parity"] = None
    tables = winner_of(report)["parity"]["accuracies"]
    tables["other"] = tables.pop("age")
    for text in (show(report), render_html(report)):
        assert "kind" in text


def test_a_hostile_name_reaches_no_terminal() -> None:
    report = heads_report()
    for row in report["candidates"]:
        if row["parity"] and row["parity"].get("accuracies"):
            tables = row["parity"]["accuracies"]
            tables["\x1b[31m<i>"] = tables.pop("age")
    report["data"]["labelled"][1]["output"] = "\x1b[31m<i>"
    assert "\x1b" not in show(report)
    assert "<i>" not in render_html(report)
    stream = io.StringIO()
    print_comparison(compare_reports(report, report), Console(file=stream, width=200))
    assert "\x1b" not in stream.getvalue()
