"""A planted regression is found, equal reports pass, and unlike things are said to be unlike."""

import io
from typing import Any

import pytest
from rich.console import Console
from samples import (
    SAMPLES,
    accuracy,
    labelled_report,
    latency,
    no_data_report,
    output,
    torch_report,
)

from deploy.report import Comparison, compare_reports, print_comparison


def _winner(report: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in report["candidates"] if c["name"] == report["winner"])


def _regressed(comparison: Comparison) -> set[str]:
    return {difference.what for difference in comparison.regressions}


@pytest.mark.parametrize("name", SAMPLES)
def test_equal_reports_pass(name: str) -> None:
    comparison = compare_reports(SAMPLES[name](), SAMPLES[name]())
    assert comparison.regressions == ()
    assert comparison.same_machine


def test_slower_beyond_the_intervals_is_a_regression() -> None:
    b = labelled_report()
    _winner(b)["latency"] = latency(0.298 * 1.05)
    assert _regressed(compare_reports(labelled_report(), b)) == {"p50 ms"}
    assert _regressed(compare_reports(b, labelled_report())) == set()


def test_slower_within_the_intervals_is_not() -> None:
    b = labelled_report()
    _winner(b)["latency"] = latency(0.298 * 1.02)
    assert _regressed(compare_reports(labelled_report(), b)) == set()


def test_what_eager_itself_was_slower_is_not_held_against_the_winner() -> None:
    b = labelled_report()
    _winner(b)["latency"] = latency(0.298 * 1.05)
    b["baseline"]["latency"] = latency(b["baseline"]["latency"]["p50_ms"] * 1.06, 1.0)
    comparison = compare_reports(labelled_report(), b)
    assert _regressed(comparison) == set()
    assert any("eager and the A/A" in difference.note for difference in comparison.differences)
    b["model"]["sha256"] = "0" * 64  # another model: its baseline says nothing of this one's
    assert _regressed(compare_reports(labelled_report(), b)) == {"p50 ms"}
    noisy = labelled_report()
    _winner(noisy)["latency"] = latency(0.298 * 1.05)
    noisy["control"] = {"ratio": 0.95, "ci95": [0.94, 0.96]}
    assert _regressed(compare_reports(labelled_report(), noisy)) == set()


def test_on_another_machine_the_speed_ups_are_compared_and_it_is_said() -> None:
    b = labelled_report()
    b["machine"]["cpu"] = "AMD EPYC 9654"
    _winner(b)["latency"] = latency(0.596, 4.228)
    comparison = compare_reports(labelled_report(), b)
    assert not comparison.same_machine
    assert comparison.regressions == ()
    assert any("conditions differ" in warning for warning in comparison.warnings)
    _winner(b)["latency"] = latency(0.198, 0.7)
    assert _regressed(compare_reports(labelled_report(), b)) == {"speed-up"}


@pytest.mark.parametrize(
    ("section", "key"), [("measurement", "threads"), ("measurement", "batch"), ("machine", "gpu")]
)
def test_other_conditions_count_as_another_machine(section: str, key: str) -> None:
    b = labelled_report()
    b[section][key] = 8
    assert not compare_reports(labelled_report(), b).same_machine


def test_a_baseline_that_became_faster_is_no_regression_of_the_winner() -> None:
    b = labelled_report()
    _winner(b)["latency"] = latency(0.298, 1.0)
    comparison = compare_reports(labelled_report(), b)
    assert comparison.regressions == ()
    assert any("baseline became faster" in d.note for d in comparison.differences)


def test_less_accurate_beyond_the_intervals_is_a_regression() -> None:
    b = labelled_report()
    _winner(b)["parity"]["accuracy"] = accuracy(0.90)
    assert _regressed(compare_reports(labelled_report(), b)) == {"accuracy", "drop, points"}
    assert _regressed(compare_reports(b, labelled_report())) == set()


def test_a_larger_paired_drop_is_a_regression_though_the_accuracies_overlap() -> None:
    b = labelled_report()
    _winner(b)["parity"]["accuracy"] = accuracy(0.936)
    assert _regressed(compare_reports(labelled_report(), b)) == {"drop, points"}


def test_less_accurate_within_the_intervals_is_not() -> None:
    b = labelled_report()
    _winner(b)["parity"]["accuracy"] = accuracy(0.9421)
    assert _regressed(compare_reports(labelled_report(), b)) == set()


@pytest.mark.parametrize(("sqnr", "expected"), [(31.0, set()), (27.5, {"SQNR"}), (None, set())])
def test_without_labels_three_decibels_are_a_regression(sqnr: float, expected: set[str]) -> None:
    a, b = no_data_report(), no_data_report()
    _winner(a)["parity"]["outputs"] = [output(31.4, top1=None)]
    _winner(b)["parity"]["outputs"] = [output(sqnr, top1=None)]
    assert _regressed(compare_reports(a, b)) == expected


def test_rounding_of_float32_is_not_held_against_it() -> None:
    a, b = no_data_report(), no_data_report()
    _winner(a)["parity"]["outputs"] = [output(None, top1=None)]
    assert compare_reports(a, b).regressions == ()


def test_with_labels_the_sqnr_does_not_decide() -> None:
    b = labelled_report()
    _winner(b)["parity"]["outputs"] = [output(21.0)]
    assert compare_reports(labelled_report(), b).regressions == ()


def test_falling_back_to_torch_is_a_regression() -> None:
    b = labelled_report() | {"winner": "torch"}
    assert "p50 ms" in _regressed(compare_reports(labelled_report(), b))


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("model", {"sha256": "0" * 64}, "models differ"),
        ("model", {"sha256": None, "parameters": 1}, "models differ"),
        ("model", {"inputs": []}, "inputs of the models differ"),
        ("data", {"source": "other.npz"}, "data differ"),
        ("gates", {"max_drop": 0.05}, "gates differ"),
        ("control", {"ci95": [1.02, 1.1]}, "not quiet"),
        ("control", {"ratio": 2.7, "ci95": [0.48, 12.0]}, "too noisy to trust its times"),
    ],
)
def test_warns_where_the_reports_are_not_of_the_same_thing(
    section: str, values: dict[str, Any], words: str
) -> None:
    b = labelled_report()
    b[section].update(values)
    assert any(words in warning for warning in compare_reports(labelled_report(), b).warnings)
    assert not compare_reports(labelled_report(), labelled_report()).warnings


def _print(comparison: Comparison, width: int = 80) -> str:
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, width=width))
    return stream.getvalue()


def test_prints_side_by_side_and_names_the_regression() -> None:
    b = labelled_report()
    _winner(b)["latency"] = latency(0.4)
    text = _print(compare_reports(labelled_report(), b))
    assert "REGRESSION" in text
    assert "Regression in p50 ms." in text
    assert "0.298" in text
    assert "0.400" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_figures_stay_whole_on_a_narrow_terminal() -> None:
    b = labelled_report()
    _winner(b)["latency"] = latency(0.4)
    comparison = compare_reports(labelled_report(), b)
    words = _print(comparison, width=60).split()
    whole = [part for item in comparison.differences for part in item.a.split()]
    assert len(whole) > 8
    assert set(whole) <= {*words}


def test_prints_that_there_is_none() -> None:
    assert "No regression." in _print(compare_reports(labelled_report(), labelled_report()))


def test_prints_what_was_not_timed() -> None:
    b = torch_report()
    b["baseline"]["latency"] = None
    assert "not timed" in _print(compare_reports(labelled_report(), b))


def test_what_rounds_to_nothing_has_no_minus() -> None:
    b = labelled_report()
    _winner(b)["size_bytes"] -= 1
    differences = compare_reports(labelled_report(), b).differences
    changes = {difference.what: difference.change for difference in differences}
    assert (changes["size"], changes["SQNR"], changes["accuracy"]) == ("+0.0%", "+0.0 dB", "+0.00")
