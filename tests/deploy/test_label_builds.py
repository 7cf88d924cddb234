"""`build` with labels of every pixel and of every token: accuracy and F1 decide, in all reports."""

import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from built_nets import QUICK
from label_nets import (
    Locator,
    Masker,
    Tagger,
    save_both,
    save_masks,
    save_squares,
    save_texts,
    train,
    train_both,
)
from rich.console import Console

import deploy
from deploy.config import BuildConfig
from deploy.report import load_schema
from deploy.report.html import render_html
from deploy.report.tables import print_verification
from deploy.report.terminal import print_report

pytestmark = [pytest.mark.long, pytest.mark.thorough]

LITTLE: dict[str, Any] = {
    "measure_seconds": QUICK,
    "effort": "quick",
    "recover": ("none",),
    "compute_capability": ("SM89",),
}


def show(printed: Any, value: Any) -> str:
    """What a wide terminal shows."""
    stream = io.StringIO()
    printed(value, Console(width=400, file=stream))
    return stream.getvalue()


def check_rows(report: dict[str, Any], gate: str) -> None:
    """Engines in fewer bits are held to the accuracy, and it is that which scikit-learn finds."""
    jsonschema.validate(report, load_schema())
    judged = [row for row in report["candidates"] if row["precision"] == "int8" and row["parity"]]
    assert {row["engine"] for row in judged} >= {"onnxruntime", "openvino"}
    for row in judged:
        assert row["parity"]["gate"] == gate
        assert row["parity"]["passed"], row["reason"]
        found = row["parity"]["accuracy"]
        assert found["drop"] == pytest.approx(found["reference"] - found["candidate"])
        assert found["f1"]["candidate"] > 0.9


def test_a_binary_map_is_judged_by_its_accuracy_and_its_foreground(tmp_path: Path) -> None:
    from sklearn.metrics import f1_score

    data = save_masks(tmp_path / "data.npz")
    with np.load(data) as arrays:
        x, y = arrays["x"], arrays["y"]
    net = train(Masker(), x, y)
    config = BuildConfig(data=str(data), **LITTLE)
    bundle = deploy.build(net, config, output=tmp_path / "masks.deploy")
    report = bundle.report()
    check_rows(
        report,
        "accuracy drop at most 1.00% on 320 samples, class 1 above 0, and of the F1 of class 1",
    )
    assert (report["data"]["classes_of"], report["data"]["classes_axis"]) == ("output", None)
    answers = net(torch.from_numpy(x)).detach().numpy()[:, 0] > 0
    row = next(row for row in report["candidates"] if row["name"] == "onnxruntime-int8")
    found = row["parity"]["accuracy"]
    assert found["reference"] == pytest.approx((answers == y).mean())
    assert found["f1"]["reference"] == pytest.approx(f1_score(y.ravel(), answers.ravel()))
    words = (
        "each of the 12x12 labels of a sample is 0 or 1, for one value of the output; 1 is what "
        "lies above 0, since the reference's scores leave 0 to 1, as logits do; labels of 255, -1 "
        "and -100 are not judged. Held against output."
    )
    assert report["data"]["labels"] == words
    assert f"Labels: {words}" in show(print_report, report)
    page = render_html(json.loads(json.dumps(report)))
    assert "12x12 labels" in page
    assert "<th" in page
    assert ">F1</th>" in page
    results = deploy.verify(bundle, data=str(data))
    assert all(result.holds for result in results)
    assert "Labels: each of the 12x12 labels" in show(print_verification, results)


@pytest.mark.usefixtures("onnxruntime_alone")
def test_a_regression_is_judged_by_what_it_explains_of_its_targets(tmp_path: Path) -> None:
    from sklearn.metrics import r2_score

    data = save_squares(tmp_path / "data.npz")
    with np.load(data) as arrays:
        x, y = arrays["x"], arrays["y"]
    net = train(Locator(), x, y)
    bundle = deploy.build(net, BuildConfig(data=str(data), **LITTLE), output=tmp_path / "m.deploy")
    report = bundle.report()
    jsonschema.validate(report, load_schema())
    row = next(row for row in report["candidates"] if row["name"] == "onnxruntime-int8")
    found = row["parity"]["accuracy"]
    answers = net(torch.from_numpy(x)).detach().numpy()
    assert found["measure"] == "R²"
    assert found["samples"] == len(x)
    assert found["reference"] == pytest.approx(r2_score(y, answers), abs=1e-6)
    assert found["reference"] > 0.9
    assert row["parity"]["gate"].startswith("R² drop at most ")
    assert row["parity"]["passed"], row["reason"]
    assert "with an R² of " in report["verdict"] or report["winner"] == "torch"
    assert "the 3 targets of a sample are what a regression predicts" in report["data"]["labels"]
    results = deploy.verify(bundle, data=str(data))
    judged = [result.parity.main_accuracy for result in results if result.parity]
    assert [each.measure for each in judged if each] == ["R²"] * len(judged)
    assert all(result.holds for result in results)
    assert " R² " in show(print_verification, results)


@pytest.mark.usefixtures("onnxruntime_alone")
def test_labels_of_two_outputs_are_two_gates_in_all_reports(tmp_path: Path) -> None:
    data = save_both(tmp_path / "data.npz")
    net = train_both(data)
    bundle = deploy.build(net, BuildConfig(data=str(data), **LITTLE), output=tmp_path / "b.deploy")
    report = bundle.report()
    jsonschema.validate(report, load_schema())
    assert report["data"]["labelled"] == [
        {"output": "corner", "axis": None},
        {"output": "width", "axis": None},
    ]
    row = next(row for row in report["candidates"] if row["name"] == "onnxruntime-int8")
    found = row["parity"]["accuracies"]
    assert [(name, each["measure"]) for name, each in found.items()] == [
        ("corner", "R²"),
        ("width", "accuracy"),
    ]
    with np.load(data) as arrays:
        answers, width = net(torch.from_numpy(arrays["x"])), arrays["y_width"]
    assert found["width"]["reference"] == (answers["width"].argmax(1).numpy() == width).mean()
    assert row["parity"]["accuracy"] == found["corner"]
    assert row["parity"]["gate"].startswith("corner: R² drop at most ")
    assert "; width: accuracy drop at most 1.00% on 320 samples" in row["parity"]["gate"]
    shown = show(print_report, report)
    assert shown.count("corner") >= 1
    assert "Accuracy by output" in render_html(json.loads(json.dumps(report)))
    results = deploy.verify(bundle, data=str(data))
    assert all(result.holds for result in results)
    assert "R² in corner" in show(print_verification, results)
    with np.load(data) as arrays:  # of the output that it fits
        np.savez(tmp_path / "one.npz", x=arrays["x"], y=arrays["y_width"])
    (judged, *_) = deploy.verify(bundle, data=str(tmp_path / "one.npz"))
    assert judged.parity is not None
    assert list(judged.parity.accuracies) == ["width"]


def test_tokens_are_judged_where_they_are_labelled_and_verified_on_the_same_axis(
    tmp_path: Path,
) -> None:
    data = save_texts(tmp_path / "data.npz")
    with np.load(data) as arrays:
        ids, y = arrays["ids"], arrays["y"]
    net = train(Tagger(), ids, y)
    config = BuildConfig(data=str(data), inputs=("ids:1x14:int64:40",), **LITTLE)
    bundle = deploy.build(net, config, output=tmp_path / "texts.deploy")
    report = bundle.report()
    check_rows(report, "accuracy drop at most 1.00% on 320 samples, and of the F1 of 5 classes")
    assert (report["data"]["classes_of"], report["data"]["classes_axis"]) == ("output", 2)
    assert "one of 5 classes, whose scores lie on axis 2" in report["data"]["labels"]
    kept = y != -100
    hit = (net(torch.from_numpy(ids)).argmax(2).numpy() == y) & kept
    row = next(row for row in report["candidates"] if row["name"] == "onnxruntime-int8")
    expected = (hit.sum(1) / kept.sum(1)).mean()
    assert row["parity"]["accuracy"]["reference"] == pytest.approx(expected)
    results = deploy.verify(bundle, data=str(data))
    judged = {result.name: result.parity for result in results if result.parity}
    assert {"onnxruntime-fp32", "onnxruntime-int8", "openvino-int8"} <= set(judged)
    assert all(parity.accuracies["output"].f1 for parity in judged.values())
    assert all(result.holds for result in results)
