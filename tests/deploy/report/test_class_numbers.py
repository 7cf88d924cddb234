"""Outputs of class numbers: how many are equal stands in every table, and no SQNR of numbers."""

import io
from typing import Any

import numpy as np
from rich.console import Console
from samples import labelled_report, no_data_report, output

from deploy.judging.parity import ParityAccumulator
from deploy.report import compare_reports, print_report, render_html
from deploy.report.facts import describe_fidelity, sqnr_of, top1_of, winner_of
from deploy.report.finish import describe_finish
from deploy.report.search import describe_recovery, recovery_sentences
from deploy.report.tables import describe_nearness

Report = dict[str, Any]


def _numbers(share: float) -> Report:
    """A row of class numbers of which a `share` is equal, far apart where they are not."""
    row = output(31.0, top1=share, name="classes")
    return {**row, "max_abs": 0.0 if share == 1 else 49.0, "worst_samples": []}


def _report(share: float, *, dtype: str = "int64", **extra: Any) -> Report:
    """The winner gives scores of 45 dB and class numbers."""
    report = no_data_report()
    report["data"] = {**report["data"], "kind": "unlabelled", "source": "x.npz"}
    report["model"]["outputs"] += [{"name": "classes", "shape": ["batch"], "dtype": dtype}]
    rows = [output(45.0, top1=0.97), {**_numbers(share), **extra}]
    winner_of(report)["parity"]["outputs"] = rows
    return report


def _print(report: Report) -> str:
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=120))
    return stream.getvalue()


def test_where_class_numbers_are_farthest_off_their_share_is_shown() -> None:
    report = _report(0.9)
    assert describe_fidelity(report, winner_of(report)) == "90.00% equal"
    assert sqnr_of(report, winner_of(report)) == 10.0
    assert "90.00% equal" in _print(report)
    assert "31.0 dB" not in _print(report)
    page = render_html(report)
    assert page.count("90.00% equal") >= 3  # above, among the candidates and by output
    assert "31.0 dB" not in page


def test_where_they_are_nearer_the_floats_decide() -> None:
    for share in (1.0, 0.99999):
        report = _report(share)
        assert describe_fidelity(report, winner_of(report)) == "45.0 dB"
        assert sqnr_of(report, winner_of(report)) == 45.0
        assert "45.0 dB" in _print(report)


def test_a_share_that_is_none_is_passed_over() -> None:
    for share in (1.5, -0.1, "0.9"):
        report = _report(0.5, top1_agreement=share)
        assert describe_fidelity(report, winner_of(report)) == "31.0 dB"


def test_colour_images_are_amounts() -> None:
    worst = [{"sample": 3, "sqnr_db": 20.0, "times_median": 4.0}]
    report = _report(0.1, dtype="uint8", worst_samples=worst)
    assert describe_fidelity(report, winner_of(report)) == "31.0 dB"


def test_the_page_names_the_agreement_of_scores_alone() -> None:
    report = _report(0.9)
    assert top1_of(report, winner_of(report)) is None  # of two outputs none is known for scores
    report["data"]["classes_of"] = "logits"
    assert top1_of(report, winner_of(report)) == 0.97
    report["data"]["classes_of"] = "classes"
    assert top1_of(report, winner_of(report)) is None
    winner_of(report)["parity"]["outputs"].pop()
    assert top1_of(report, winner_of(report)) == 0.97


def test_labels_that_judge_nothing_are_not_called_missing() -> None:
    report = _report(1.0)
    assert "evaluation data, no labels" in render_html(_with_data(report))
    report["data"]["kind"] = "labelled"
    page = render_html(_with_data(report))
    assert "evaluation data, labels judge nothing" in page
    assert "no labels" not in page


def _with_data(report: Report) -> Report:
    winner_of(report)["parity"]["data"] = "evaluation"
    return report


def test_two_builds_are_compared_by_how_many_differ() -> None:
    a, b = _report(0.99), _report(0.9)
    found = {each.what: each for each in compare_reports(a, b).differences}["SQNR"]
    assert (found.a, found.b, found.change) == ("99.00% equal", "90.00% equal", "-10.0 dB")
    assert found.regression


def test_what_was_finished_elsewhere_is_shown_alike() -> None:
    report = _report(0.9)
    row = {
        **winner_of(report),
        "name": "tensorrt-int8",
        "status": "rejected",
        "reason": "it differs",
    }
    report["finish"] = {
        "date": "2026-11-24T03:00:00Z",
        "machine": {**report["machine"], "gpu": "NVIDIA L4"},
        "baseline": "onnxruntime-fp32",
        "batch": 1,
        "candidates": [row],
        "winner": "openvino-fp32",
        "winner_before": "openvino-fp32",
    }
    markup = str(describe_finish(report))
    assert "90.00% equal" in markup
    assert '<td class="sentence" data-label="Reason">it differs</td>' in markup


def test_the_other_tables_show_it_alike() -> None:
    parity = ParityAccumulator(("y", "n"))
    values, numbers = np.random.default_rng(0).standard_normal((200, 4)), np.arange(200)
    ours = {"y": values, "n": numbers}
    parity.update(ours, {"y": values * 1.01, "n": np.where(numbers < 20, 500, numbers)}, rows=200)
    assert describe_nearness(parity.result()) == "90.00% equal"
    parity = ParityAccumulator(("y",))
    parity.update({"y": values * 0}, {"y": values}, rows=200)
    assert describe_nearness(parity.result()) == "no signal"  # far from identical


def _climb(equal: float | None) -> list[Report]:
    plain = {"step": "plain", "words": "nearest rounding", "passed": False, "accuracy": None}
    reason = "output 'classes' is equal in 90.0% of its integers, below 98%. Class numbers count"
    last = {"step": "fallback", "words": "layers kept float", "passed": True, "accuracy": None}
    return [
        {**plain, "reason": reason, "sqnr_db": 10.0, "equal": equal},
        {**last, "reason": None, "sqnr_db": 47.8, "equal": None},
    ]


def test_a_rung_that_class_numbers_failed_has_no_sqnr() -> None:
    report = labelled_report()
    int8 = next(c for c in report["candidates"] if c["name"] == "openvino-int8")
    int8["recovery"] = _climb(0.9)
    (sentence,) = recovery_sentences(report)
    assert sentence == (
        "openvino-int8: plain int8 did not hold the gate (output 'classes' is equal in 90.0% of "
        "its integers, below 98%); with layers kept float it does (47.8 dB)."
    )
    assert "90.00% equal" in str(describe_recovery(report))
    int8["recovery"] = _climb(None)
    assert "SQNR 10.0 dB" in recovery_sentences(report)[0]


def test_an_int8_that_only_a_mix_made_hold_is_not_said_to_hold() -> None:
    report = labelled_report()
    int8 = next(c for c in report["candidates"] if c["name"] == "onnxruntime-int8")
    mixed = {**int8, "name": "onnxruntime-mixed", "precision": "mixed", "status": "ok"}
    int8["recovery"] = _climb(0.9)
    report["candidates"].append({**mixed, "recovery": _climb(0.9), "kept_float": ["head"]})
    first, second = recovery_sentences(report)
    assert first.startswith("onnxruntime-mixed: plain int8 did not hold")
    assert second == "onnxruntime-mixed keeps head out of int8."
    assert "onnxruntime-int8" not in str(describe_recovery(report))
