"""Triton gets the winner where it can run it, and else the fastest that was measured as it runs."""

from pathlib import Path
from typing import Any

import pytest
from altered import alter, alter_report, with_plan

from deploy.bundle.folder import Bundle, MeasuredRun, read_bundle
from deploy.bundle.manifest import BundledEngine
from deploy.exports.choice import choose_engine, make_name
from export.errors import BundleError, ConfigError


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return read_bundle(bundle_path)


def test_a_winner_that_triton_runs_is_taken_without_a_word(bundle: Bundle) -> None:
    choice = choose_engine(bundle)
    assert (choice.engine, choice.backend, choice.warnings) == (
        "onnxruntime-int8",
        "onnxruntime",
        (),
    )


def test_in_place_of_another_winner_the_fastest_of_onnx_runtime_is_taken(bundle: Bundle) -> None:
    choice = choose_engine(alter(bundle, winner="openvino-fp32"))
    assert choice.engine == "onnxruntime-int8"  # 0.502 ms in the report, fp32 takes 0.981
    assert choice.warnings == (
        "Triton does not run the winner, openvino-fp32; onnxruntime-int8 is exported in its place "
        "(0.502 ms where the winner took 0.724 ms).",
    )


def test_a_file_that_was_quantized_for_openvino_is_not_taken_though_it_is_onnx(
    bundle: Bundle,
) -> None:
    entry = BundledEngine("openvino", "int8", "onnx-int8/model.onnx", 0.05)
    engines = {name: e for name, e in bundle.manifest.engines.items() if e.engine != "onnxruntime"}
    only = alter(bundle, engines={**engines, "openvino-int8": entry}, winner="openvino-int8")
    with pytest.raises(
        BundleError, match="no engine that Triton runs: it has openvino-fp32, openv"
    ):
        choose_engine(only)
    with pytest.raises(BundleError, match=r"cannot run openvino-int8\. It runs: nothing of"):
        choose_engine(only, "openvino-int8")


def forget_times(report: dict[str, Any]) -> None:
    for candidate in report["candidates"]:
        if candidate["engine"] == "onnxruntime":
            candidate.update(latency=None, status="rejected", reason="not timed")


def test_without_times_the_float_model_is_taken(bundle: Bundle) -> None:
    alter_report(bundle, forget_times)
    choice = choose_engine(alter(bundle, winner="openvino-fp32"))
    assert choice.engine == "onnxruntime-fp32"
    assert choice.warnings[0].endswith("onnxruntime-fp32 is exported in its place.")


def test_a_plan_of_tensorrt_is_taken_where_it_won_and_one_of_rtx_is_not(bundle: Bundle) -> None:
    assert choose_engine(with_plan(bundle)).backend == "tensorrt"
    rtx = BundledEngine("tensorrt_rtx", "fp16", "model.onnx", 0.1)
    engines = {**bundle.manifest.engines, "tensorrt_rtx-fp16": rtx}
    choice = choose_engine(alter(bundle, engines=engines, winner="tensorrt_rtx-fp16"))
    assert choice.engine == "onnxruntime-int8"


def test_a_plan_of_tensorrt_that_is_still_to_be_built_is_none(bundle: Bundle) -> None:
    entry = BundledEngine("tensorrt", "fp16", "tensorrt-fp16/model.onnx", 0.1, not_run="no GPU")
    engines = {**bundle.manifest.engines, "tensorrt-fp16": entry}
    with pytest.raises(BundleError, match="cannot run tensorrt-fp16"):
        choose_engine(alter(bundle, engines=engines), "tensorrt-fp16")


def test_onnxruntime_on_the_gpu_is_taken_but_for_channels_last_and_graphs(bundle: Bundle) -> None:
    for variant, chosen in (
        ("cuda", "onnxruntime-fp16-cuda"),
        ("cuda-nhwc", "onnxruntime-int8"),
        ("cuda-graphs", "onnxruntime-int8"),
    ):
        name = f"onnxruntime-fp16-{variant}"
        entry = BundledEngine("onnxruntime", "fp16", "model.onnx", 0.1, variant=variant)
        engines = {**bundle.manifest.engines, name: entry}
        assert choose_engine(alter(bundle, engines=engines, winner=name)).engine == chosen


def test_what_was_finished_since_is_chosen_by_its_own_times(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, winner = "onnxruntime-fp16-cuda", "onnxruntime-fp16-cuda-graphs"
    entries = {
        each: BundledEngine("onnxruntime", "fp16", "model.onnx", 0.1, variant=variant)
        for each, variant in ((name, "cuda"), (winner, "cuda-graphs"))
    }
    changed = alter(bundle, engines={**bundle.manifest.engines, **entries}, winner=winner)
    assert choose_engine(changed).engine == "onnxruntime-int8"
    rows = [
        {"name": name, "latency": {"p50_ms": 1e-4}},
        {"name": winner, "latency": None},
    ]
    report = {**changed.report(), "finish": {"batch": 2, "candidates": rows}}
    monkeypatch.setattr(Bundle, "report", lambda _: report)
    assert choose_engine(changed).engine == name
    assert changed.times()[name] == MeasuredRun(1e-4, 2)
    assert winner not in changed.times()


def test_an_engine_can_be_named_and_must_be_there(bundle: Bundle) -> None:
    assert choose_engine(bundle, "onnxruntime-fp32").engine == "onnxruntime-fp32"
    with pytest.raises(BundleError, match="has no engine 'onnxruntime-int4'; it has: onnx"):
        choose_engine(bundle, "onnxruntime-int4")


@pytest.mark.parametrize(
    ("file", "name"),
    [("tiny.pt", "tiny"), ("my net v2.pt", "my_net_v2"), ("../x.pt", "x"), ("ü.pt", "model")],
)
def test_the_name_is_that_of_the_model_file(bundle: Bundle, file: str, name: str) -> None:
    assert make_name(alter(bundle, model=file), None) == name


@pytest.mark.parametrize("name", ["", "../up", "a b", "a/b", ".hidden", "-x", "é", "x" * 129])
def test_a_name_that_is_no_folder_or_url_is_refused(bundle: Bundle, name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        make_name(bundle, name)
