"""The chosen observer against errors computed in float64 from the raw values."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from test_nets import Net, classifier, run, sqnr

from export.artifacts import OnnxModel
from export.onnx.graph import GraphIndex
from export.progress import Progress
from quantize.calibration import choice
from quantize.calibration.calibrate import calibrate
from quantize.calibration.choice import choose_observers, find_best, find_readings
from quantize.calibration.held import HELD_SAMPLES
from quantize.calibration.summaries import summarize
from quantize.int8.insertion import quantize_int8
from quantize.observers import AUTO, OBSERVERS
from quantize.observers.statistic import TensorStatistic
from quantize.placement.pooling import use_global_pooling
from quantize.placement.walk import tensors_to_calibrate
from quantize.scheme import PRESETS


def _values(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.default_rng(11)
    values = random.uniform(-1, 1, shape) if kind == "uniform" else random.normal(0, 1, shape)
    if kind == "outlier":
        values[0, 0, 0, 0] = 400
    if kind == "heavy":
        values = values**5
    if kind == "relu":
        values = np.maximum(values**3, 0)
    return values.astype(np.float32)


def _two_readers(folder: Path) -> tuple[Net, OnnxModel]:
    """One tensor that two convolutions read, one of which hardly sees its first channel."""
    net = Net(4, 9, 7)
    outputs = [
        net.conv("x", 4, 5, kernel=1, name="wide"),
        net.conv("x", 4, 3, kernel=1, name="dim"),
    ]
    weights = {tensor.name: tensor for tensor in net.constants}
    blind = onnx.numpy_helper.to_array(weights["dim_w"]).copy()
    blind[:, 0] *= 0.001
    weights["dim_w"].CopyFrom(onnx.numpy_helper.from_array(blind, "dim_w"))
    return net, net.save(folder / "m.onnx", *outputs)


def _round(values: np.ndarray, span: tuple[float, float], unsigned: bool) -> np.ndarray:
    low, high = min(span[0], 0.0), max(span[1], 0.0)
    if unsigned:
        scale = float(np.float32((high - low) / 255))
        zero = np.clip(np.round(-low / ((high - low) / 255)), 0, 255)
        return (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale
    scale = float(np.float32(max(-low, high) / 127))
    return np.clip(np.round(values / scale), -128, 127) * scale


def _layer_errors(
    net: Net, values: np.ndarray, unsigned: bool, calibrated: np.ndarray | None = None
) -> dict[str, float]:
    """Observer → relative squared errors at the outputs of both 1x1 convolutions, summed.

    The errors are of `values`, and the ranges of `calibrated`, by default the same.
    """
    seen = TensorStatistic()
    seen.update(summarize(values if calibrated is None else calibrated))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in net.constants}
    values = values.astype(np.float64)
    errors = dict.fromkeys(OBSERVERS, 0.0)
    for name in ("wide", "dim"):
        weight = stored[f"{name}_w"][:, :, 0, 0].astype(np.float64)
        output = np.einsum("oc,nchw->nohw", weight, values) + stored[f"{name}_b"][:, None, None]
        for key, observe in OBSERVERS.items():
            noise = _round(values, observe(seen, not unsigned), unsigned) - values
            noise = np.einsum("oc,nchw->nohw", weight, noise)
            errors[key] += (noise**2).sum() / (output**2).sum()
    return errors


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize("kind", ["outlier", "heavy", "uniform", "normal", "relu"])
def test_choice_is_the_least_error_at_the_layers_outputs(
    tmp_path: Path, kind: str, unsigned: bool
) -> None:
    net, model = _two_readers(tmp_path)
    values = _values(kind, (16, *net.shape))
    ranges = calibrate(model, [{"x": values}], observer=AUTO)
    chosen = (ranges.chosen if unsigned else ranges.chosen_symmetric)["x"]
    expected = _layer_errors(net, values, unsigned)
    doubt = 1.05 if chosen == "minmax" else 1.001  # min-max stays unless it is surely worse
    assert expected[chosen] <= min(expected.values()) * doubt
    assert kind != "outlier" or chosen != "minmax"
    scheme = PRESETS["onnxruntime" if unsigned else "tensorrt"]
    seen = TensorStatistic()
    seen.update(summarize(values))
    assert ranges.for_scheme(scheme)["x"] == OBSERVERS[chosen](seen, not unsigned)
    held = [{"x": values[row : row + 1]} for row in range(16)]
    choices = choose_observers(model, {"x": seen}, held)
    found = (choices.free if unsigned else choices.symmetric)["x"]
    assert found.errors == pytest.approx(expected, rel=1e-3)
    assert found.observer == chosen


@pytest.mark.parametrize("unsigned", [True, False])
def test_samples_that_are_not_held_count_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsigned: bool
) -> None:
    monkeypatch.setattr("quantize.calibration.calibrate.choose_limit", lambda values: HELD_SAMPLES)
    net, model = _two_readers(tmp_path)
    values = _values("normal", (64, *net.shape))
    values[[5, 26]] *= 12  # every fourth is held, and neither of these
    errors = _layer_errors(net, values, unsigned)
    lucky = _layer_errors(net, values[::4], unsigned, calibrated=values)
    assert errors[min(lucky, key=lucky.__getitem__)] > 3 * min(errors.values())
    ranges = calibrate(model, [{"x": values}], observer=AUTO)
    chosen = (ranges.chosen if unsigned else ranges.chosen_symmetric)["x"]
    assert errors[chosen] < 1.1 * min(errors.values())


def test_an_outlier_is_clipped_and_uniform_values_are_not(tmp_path: Path) -> None:
    net, model = _two_readers(tmp_path)
    highs = {}
    for kind in ("outlier", "uniform"):
        values = _values(kind, (16, *net.shape))
        values[:, 0] *= 0.01 if kind == "outlier" else 1  # clipping it costs little
        highs[kind] = calibrate(model, [{"x": values}], observer=AUTO).ranges["x"][1]
    assert highs["outlier"] < 10
    assert highs["uniform"] > 0.98


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_int8_with_auto_is_as_good_as_with_the_best_observer(tmp_path: Path, target: str) -> None:
    net, model = classifier(tmp_path)
    feeds = net.feed(64)
    feeds["x"] **= 3
    reference = run(model, feeds)[0]
    found = {}
    for observer in (*OBSERVERS, AUTO):
        ranges = calibrate(model, [feeds], observer=observer)
        path = tmp_path / f"{observer}.onnx"
        int8 = quantize_int8(model, ranges, PRESETS[target], path).model
        found[observer] = sqnr(reference, run(int8, feeds)[0])
    best = max(value for key, value in found.items() if key != AUTO)
    assert found[AUTO] > best - 1, found
    assert best - min(found.values()) > 3  # there is something to choose


def test_readers_are_found_behind_copies_and_beside_sums(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    proto = onnx.load(model.path)
    twins = use_global_pooling(proto)
    graph = GraphIndex(proto)
    tensors = tensors_to_calibrate(graph)
    found = find_readings(graph, twins, [PRESETS["onnxruntime"]], tensors)

    readings = {(r.tensor, r.source, r.layer.name if r.layer else None) for r in found}
    block = next(r.tensor for r in found if r.source == "pool_out")
    assert {
        ("x", "x", "stem"),
        ("stem_relu_out", "stem_relu_out", "block_a"),
        ("stem_relu_out", "stem_relu_out", None),  # the sum of the block
        (block, "pool_out", "depthwise"),
        ("main_out", "main_out", None),
    } <= readings
    assert any((tensor, reader) == ("gap_out", "head") for tensor, _, reader in readings)
    assert (block, block, None) not in readings  # the pool is a copy, not a reader
    assert {reading.tensor for reading in found} == set(tensors)


def test_tensors_are_held_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, model = classifier(tmp_path)
    whole = calibrate(model, [net.feed(8)], observer=AUTO)
    reports: list[Progress] = []
    monkeypatch.setattr(choice, "GROUP_TENSORS", 4)
    parts = calibrate(model, [net.feed(8)], observer=AUTO, progress=reports.append)
    assert (parts.chosen, parts.ranges) == (whole.chosen, whole.ranges)
    stages = [report for report in reports if report.stage == "choose observers"]
    assert stages[-1].done == stages[-1].total == len(stages)
    assert len(stages) > 8


def test_a_tensor_of_zeros_is_no_obstacle(tmp_path: Path) -> None:
    net, model = _two_readers(tmp_path)
    ranges = calibrate(model, [{"x": np.zeros((3, *net.shape), np.float32)}], observer=AUTO)
    assert ranges.ranges["x"] == (0, 0)
    assert ranges.chosen["x"] == "minmax"


def _tabular(folder: Path, seed: int) -> tuple[Net, OnnxModel]:
    """A net of rows of 8 numbers: no tensor has over 16 values in a sample."""
    net = Net(8, seed=seed)
    x = net.op("Relu", net.gemm("x", 8, 16, name="first"))
    x = net.op("Relu", net.gemm(x, 16, 16, name="second"))
    return net, net.save(folder / f"tabular{seed}.onnx", net.gemm(x, 16, 4, name="last"))


def _lead_over_minmax(folder: Path) -> float:
    """Decibels on fresh samples, the mean of some nets."""
    leads = []
    for seed in range(10):
        net, model = _tabular(folder, seed)
        fresh, found = net.feed(1024, seed=1000 + seed), {}
        (exact,) = run(model, fresh)
        for observer in (AUTO, "minmax"):
            batches = [net.feed(32, seed=100 * seed + number) for number in range(8)]
            ranges = calibrate(model, batches, observer=observer)
            path = folder / f"{observer}{seed}.onnx"
            quantize_int8(model, ranges, PRESETS["tensorrt"], path)
            found[observer] = sqnr(exact, run(path, fresh)[0])
        leads.append(found[AUTO] - found["minmax"])
    return float(np.mean(leads))


@pytest.mark.parametrize("limit", [HELD_SAMPLES, None])
def test_small_models_are_not_judged_by_a_few_lucky_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    if limit is not None:
        place = "quantize.calibration.calibrate.choose_limit"
        monkeypatch.setattr(place, lambda values: limit)
    assert _lead_over_minmax(tmp_path) > -0.3


@pytest.mark.parametrize(
    ("closer", "best"),
    [
        ([0.5] * 8, "mse"),
        ([0.5] * 7 + [0.9], "mse"),
        ([0.5] * 7 + [1.0], "mse"),
        ([0.5] * 7 + [3.0], "minmax"),  # less in sum, by luck
        ([0.5] * 7 + [30.0], "minmax"),
        ([1.0] * 8, "minmax"),
        ([0.9, 1.1] * 4, "minmax"),
        ([0.5], "mse"),  # one batch of a fixed size
        ([1.5], "minmax"),
    ],
)
def test_min_max_stays_where_another_is_not_better_beyond_doubt(
    closer: list[float], best: str
) -> None:
    wide = np.ones(len(closer))
    errors = {"minmax": wide, "moving-average": wide.copy(), "mse": np.array(closer)}
    assert find_best(errors) == best


def test_of_several_that_are_better_the_best_is_taken() -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal((3, 16))
    errors = {"minmax": 1 + noise[0], "percentile": 0.8 + noise[1], "mse": 0.6 + noise[2]}
    assert find_best(errors) == "mse"
