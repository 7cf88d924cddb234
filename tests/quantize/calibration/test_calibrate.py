"""Ranges against every tensor run at once; bad data; memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_nets import Net, classifier, detector, run, sqnr

from export.artifacts import OnnxModel
from export.errors import ConfigError, DataError, EngineError, QuantizeError
from export.onnx.execute import ExposedModel
from export.onnx.tensor_types import float_tensors
from export.progress import Progress
from quantize.calibration.calibrate import Again, calibrate
from quantize.int8.insertion import quantize_int8
from quantize.observers import AUTO, OBSERVERS
from quantize.scheme import PRESETS


def test_minmax_ranges_equal_a_run_of_all_samples_at_once(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    x = net.feed(30)["x"]
    ranges = calibrate(model, ({"x": part} for part in (x[:8], x[8:21], x[21:])))
    with ExposedModel(model.path, list(ranges.ranges)) as exposed:
        expected = exposed({"x": x})
    assert (ranges.observer, ranges.samples) == ("minmax", 30)
    for name, (low, high) in ranges.ranges.items():
        assert low == pytest.approx(expected[name].min(), rel=1e-4, abs=1e-6), name
        assert high == pytest.approx(expected[name].max(), rel=1e-4), name


def test_observes_what_placements_need_and_no_folded_tensor(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    ranges = calibrate(model, [net.feed(4)]).ranges
    assert {"x", "stem_relu_out", "block_b_out", "main_out", "shortcut_out", "gap_out"} <= set(
        ranges
    )
    assert not {"stem_out", "depthwise_out", "residual_out", "y"} & set(ranges)
    everything = calibrate(model, [net.feed(4)], tensors=float_tensors(model.path)).ranges
    assert set(everything) == set(float_tensors(model.path))


def test_a_value_that_no_sample_has_any_of_costs_no_int8(tmp_path: Path) -> None:
    """As what is written over infinite degrees of a graph: `x[isinf(x)] = 0`."""
    net = Net(6, 12, 8)
    places = net.op("NonZero", net.op("IsInf", "x"))
    values = net.op("GatherND", "x", net.op("Transpose", places), name="picked")
    total = net.op("ReduceSum", values, keepdims=0, name="total")
    x = net.op("Relu", net.op("Add", "x", total), name="shifted")
    model = net.save(tmp_path / "m.onnx", net.conv(x, 6, 8))
    names = tuple(float_tensors(model.path))
    assert "picked_out" in names
    ranges = calibrate(model, [net.feed(4), net.feed(4)], observer=AUTO, tensors=names)
    assert {*ranges.extents} == {*names} - {"picked_out"}
    assert quantize_int8(model, ranges, PRESETS["openvino"], tmp_path / "int8.onnx").quantized


def test_a_tensor_that_only_one_target_quantizes_is_observed(tmp_path: Path) -> None:
    net = Net(8, 4, 4)
    weight = net.random.normal(0, 0.2, (8, 4, 2, 2)).astype(np.float32)
    bias = net.constant("up_b", np.ones(8, np.float32))  # grouped: two values a weight channel
    x = net.op("Sigmoid", net.conv("x", 8, 8), name="gate")
    up = net.op("ConvTranspose", x, net.constant("up_w", weight), bias, strides=[2, 2], group=2)
    model = net.save(tmp_path / "m.onnx", up)
    assert "gate_out" in calibrate(model, [net.feed(2)]).ranges


def test_percentile_ranges_lie_within_minmax(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    wide = calibrate(model, [net.feed(64)])
    narrow = calibrate(model, [net.feed(64)], observer="percentile")
    assert narrow.observer == "percentile"
    low, high = narrow.ranges["x"]
    assert wide.ranges["x"][0] < low < 0 < high < wide.ranges["x"][1]


def test_reports_progress_in_samples(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    seen: list[Progress] = []
    calibrate(model, [net.feed(4), net.feed(3)], total=7, progress=seen.append)
    assert seen == [Progress("calibrate", 4, 7), Progress("calibrate", 7, 7)]


def test_nan_names_the_tensor_and_the_sample(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    bad = net.feed(4)
    bad["x"][1, 0, 3, 3] = np.nan
    with pytest.raises(QuantizeError, match=r"Tensor 'x' is NaN at calibration sample 9;"):
        calibrate(model, [net.feed(8), bad])


def test_no_batches_is_an_error(tmp_path: Path) -> None:
    _, model = classifier(tmp_path)
    with pytest.raises(QuantizeError, match="No calibration batches"):
        calibrate(model, iter(()))


def test_a_batch_without_samples_is_an_error(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    with pytest.raises(DataError, match="no samples"):
        calibrate(model, [net.feed(0)])


def test_a_batch_of_other_names_is_an_error(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    with pytest.raises((DataError, EngineError), match=r"no samples|could not run"):
        calibrate(model, [{"image": net.feed(2)["x"]}])


def test_nothing_to_quantize_is_an_error(tmp_path: Path) -> None:
    net = Net(4)
    model: OnnxModel = net.save(tmp_path / "m.onnx", net.op("Relu", "x"))
    with pytest.raises(QuantizeError, match="nothing to quantize"):
        calibrate(model, [net.feed(2)])


def test_an_unknown_observer_lists_the_known(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    with pytest.raises(ConfigError, match=r"minmax, .*percentile, .*entropy, mse, auto"):
        calibrate(model, [net.feed(2)], observer="median")


def test_what_no_rule_quantizes_has_its_extent_as_range(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    names = float_tensors(model.path)
    ranges = calibrate(model, [net.feed(64)], observer="percentile-99.9", tensors=names)
    assert ranges.ranges["stem_out"] == ranges.extents["stem_out"]
    assert ranges.ranges["x"][1] < ranges.extents["x"][1]
    wide = calibrate(model, [net.feed(64)], tensors=names)
    assert wide.extents == ranges.extents == wide.ranges


def test_a_symmetric_target_has_ranges_of_its_own(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    feeds = net.feed(64)
    feeds["x"] = np.abs(feeds["x"]) ** 3 - 0.5
    ranges = calibrate(model, [feeds], observer="mse")
    assert ranges.for_scheme(PRESETS["onnxruntime"]) == ranges.ranges
    assert ranges.for_scheme(PRESETS["tensorrt"])["x"] != ranges.ranges["x"]
    assert set(ranges.for_scheme(PRESETS["tensorrt"])) == set(ranges.ranges)


def test_channels_are_those_of_all_samples(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    x = net.feed(30)["x"]
    ranges = calibrate(model, ({"x": part} for part in (x[:8], x[8:21], x[21:])))
    with ExposedModel(model.path, list(ranges.channels)) as exposed:
        expected = exposed({"x": x})
    assert {"x", "stem_relu_out", "main_out"} <= set(ranges.channels)
    for name, found in ranges.channels.items():
        axes = tuple(axis for axis in range(expected[name].ndim) if axis != 1)
        for part in ("min", "max", "mean"):
            value = {"min": found.low, "max": found.high, "mean": found.mean}[part]
            whole = getattr(expected[name], part)(axis=axes)
            np.testing.assert_allclose(value, whole, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("total", "half"), [(64, 32), (0, 32)])
def test_ranges_of_half_of_the_samples_are_kept(tmp_path: Path, total: int, half: int) -> None:
    net, model = classifier(tmp_path)
    x = net.feed(64)["x"]
    parts = [{"x": x[start : start + 8]} for start in range(0, 64, 8)]
    whole = calibrate(model, parts, total=total, observer="mse")
    first = calibrate(model, parts[: half // 8], observer="mse")
    assert whole.earlier_samples == half
    assert whole.earlier == first.ranges
    assert whole.earlier != whole.ranges


def test_samples_that_come_again_widen_ranges_and_are_counted_once(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    batches = [net.feed(4, seed) for seed in range(4)]
    again = [Again({"x": 3 * batch["x"]}) for batch in batches[:2]]
    plain = calibrate(model, batches, total=16)
    seen: list[Progress] = []
    ranges = calibrate(model, [*batches, *again], total=16, progress=seen.append)
    assert (ranges.samples, ranges.earlier_samples) == (16, 8)
    assert ranges.earlier == plain.earlier
    assert ranges.settled == {name: plain.ranges[name] for name in ranges.settled}
    assert ranges.ranges["x"][1] == pytest.approx(3 * max(b["x"].max() for b in batches[:2]))
    assert plain.settled == {}
    assert [(report.done, report.detail) for report in seen[-3:]] == [
        (16, ""),
        (16, "other sizes"),
        (16, "other sizes"),
    ]


def test_a_nan_at_another_size_is_said_to_be_there(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    spoilt = Again({"x": np.full_like(net.feed(2)["x"], np.nan)})
    with pytest.raises(QuantizeError, match="at another size of a dynamic axis"):
        calibrate(model, [net.feed(2), spoilt])


def test_one_batch_has_no_half(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    ranges = calibrate(model, [net.feed(8)], total=8)
    assert (ranges.earlier_samples, ranges.earlier) == (0, {})


@pytest.mark.parametrize("observer", [*OBSERVERS, AUTO])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_every_observer_refuses_what_is_not_finite(
    tmp_path: Path, observer: str, value: float
) -> None:
    net, model = classifier(tmp_path)
    bad = net.feed(4)
    bad["x"][3, 2, 0, 0] = value
    kind = "NaN" if np.isnan(value) else "infinite"
    with pytest.raises(QuantizeError, match=rf"Tensor 'x' is {kind} at calibration sample 7;"):
        calibrate(model, [net.feed(4), bad], observer=observer)


def test_a_nan_that_starts_inside_is_named_where_it_starts(tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    x = net.op("Relu", net.op("Sqrt", "x", name="root"))  # a Relu may make NaN 0
    model = net.save(tmp_path / "m.onnx", net.conv(x, 3, 4))
    good = {"x": np.abs(net.feed(2)["x"])}
    bad = {"x": np.abs(net.feed(2)["x"])}
    bad["x"][1, 0, 0, 0] = -1
    names = float_tensors(model.path)
    with pytest.raises(QuantizeError, match="Tensor 'root_out' is NaN at calibration sample 3;"):
        calibrate(model, [good, bad], tensors=names)


def test_a_mask_of_infinities_is_no_fault(tmp_path: Path) -> None:
    net = Net(6, 6)
    scores = net.op("MatMul", "x", net.constant("w", np.eye(6, dtype=np.float32)), name="scores")
    net.constant("mask", np.where(np.tri(6) > 0, 0, -np.inf).astype(np.float32))
    masked = net.op("Add", scores, "mask", name="masked")
    model = net.save(tmp_path / "m.onnx", net.op("Softmax", masked, name="softmax", axis=-1))
    names = float_tensors(model.path)
    ranges = calibrate(model, [net.feed(4), net.feed(2)], tensors=names, observer=AUTO)
    assert ranges.extents["masked_out"][0] == -np.inf
    assert ranges.samples == 6
    with pytest.raises(QuantizeError, match="Tensor 'x' is infinite at calibration sample 1;"):
        calibrate(model, [{"x": np.array([[[0.0] * 6] * 6, [[np.inf] * 6] * 6], np.float32)}])


def test_values_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    net = Net(3, 8, 8)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 3, 4))
    feeds = {"x": np.full((2, 3, 8, 8), 3e38, np.float32)}
    feeds["x"][1] = -3e38
    ranges = calibrate(model, [net.feed(3), feeds, net.feed(1), feeds], tensors=["x"])
    assert ranges.samples == 8
    assert ranges.ranges["x"] == (np.float32(-3e38), np.float32(3e38))


@pytest.mark.parametrize("observer", [*OBSERVERS, AUTO])
def test_one_sample_is_enough_to_run(tmp_path: Path, observer: str) -> None:
    net, model = classifier(tmp_path)
    ranges = calibrate(model, [net.feed(1)], observer=observer)
    assert ranges.samples == 1
    for name, (low, high) in ranges.ranges.items():
        assert ranges.extents[name][0] <= low <= high <= ranges.extents[name][1]


@pytest.mark.parametrize("observer", [*OBSERVERS, AUTO])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_data_and_a_dead_channel_lose_nothing(
    tmp_path: Path, observer: str, value: float
) -> None:
    _, model = classifier(tmp_path)
    proto = onnx.load(model.path)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    dead = onnx.numpy_helper.to_array(weights["block_a_w"]).copy()
    dead[2] = 0
    weights["block_a_w"].CopyFrom(onnx.numpy_helper.from_array(dead, "block_a_w"))
    onnx.save(proto, model.path)
    feeds = {"x": np.full((3, 3, 16, 16), value, np.float32)}
    ranges = calibrate(model, [feeds], observer=observer)
    for target in ("onnxruntime", "tensorrt"):
        int8 = quantize_int8(model, ranges, PRESETS[target], tmp_path / f"{target}.onnx").model
        found = sqnr(run(model, feeds)[0], run(int8, feeds)[0])
        # entropy compares densities, and constant data has none: auto knows better
        assert found > (0 if observer == "entropy" else 20)


def test_an_old_opset_is_calibrated_and_then_refused_in_words(tmp_path: Path) -> None:
    net = Net(4, 6, 6, opset=11)
    model = net.save(tmp_path / "m.onnx", net.conv("x", 4, 4))
    ranges = calibrate(model, [net.feed(8)], observer=AUTO)
    with pytest.raises(QuantizeError, match="opset 11 cannot hold per-channel Q/DQ; export with"):
        quantize_int8(model, ranges, PRESETS["onnxruntime"], tmp_path / "q.onnx")


_PEAK = """
import json, resource, sys
import numpy as np
from pathlib import Path
from export.artifacts import OnnxModel, TensorSpec
from quantize.calibration.calibrate import calibrate

model = OnnxModel(Path(sys.argv[1]), (TensorSpec("x", ("batch", 3, 32, 32), "float32"),), (), 20)
random = np.random.default_rng(0)
batches = (
    {"x": random.normal(0, 1, (16, 3, 32, 32)).astype(np.float32)}
    for _ in range(int(sys.argv[2]) // 16)
)
ranges = calibrate(model, batches, observer=sys.argv[3], threads=1)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"samples": ranges.samples, "peak": peak, "torch": "torch" in sys.modules}))
"""


@pytest.mark.thorough
@pytest.mark.parametrize("observer", [AUTO])
def test_memory_does_not_grow_with_the_samples(tmp_path: Path, observer: str) -> None:
    net = Net(3, 32, 32)
    x = "x"
    for channels in (3, 32, 32):
        x = net.op("Relu", net.conv(x, channels, 32))
    net.save(tmp_path / "m.onnx", x)
    facts = []
    for samples in (64, 2048):
        command = [sys.executable, "-c", _PEAK, str(tmp_path / "m.onnx"), str(samples), observer]
        result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        facts.append(json.loads(result.stdout))
    assert [fact["samples"] for fact in facts] == [64, 2048]
    # one sample's observed tensors are 400 kB: keeping them would add 800 MB
    assert facts[1]["peak"] < 1.1 * facts[0]["peak"]


def test_what_the_first_half_of_the_data_does_not_reach_is_calibrated(tmp_path: Path) -> None:
    net = Net(6)
    model = detector(net, tmp_path)
    none = {"x": -np.abs(net.feed(16)["x"])}
    found = calibrate(model, [none, net.feed(16)], total=32)
    assert found.earlier_samples == 16
    (late,) = set(found.ranges) - set(found.earlier)
    assert late.startswith("gathernd")
