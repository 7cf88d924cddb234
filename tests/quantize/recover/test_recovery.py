"""The driver: what it streams, what it leaves alone, and that the output gains."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_nets import Net, classifier, detector, run, sqnr

from export.artifacts import OnnxModel, TensorSpec
from export.errors import ConfigError, QuantizeError
from export.progress import Progress
from quantize.calibration.calibrate import Ranges, calibrate
from quantize.half.losses import measure_rounding
from quantize.int8.adjustments import Adjustments
from quantize.int8.insertion import quantize_int8
from quantize.recover.recovery import RecoverySettings, recover
from quantize.scheme import PRESETS, QuantScheme

TARGETS = sorted(PRESETS)
ORT = PRESETS["onnxruntime"]
NOTHING = RecoverySettings(bias_correction=False, rounding=False, clipping=False)


class Batches:
    """Gives the same batches at every call and counts what was drawn."""

    def __init__(self, net: Net, count: int, size: int = 16) -> None:
        self.net, self.count, self.size = net, count, size
        self.calls, self.drawn = 0, 0

    def __call__(self) -> Iterator[dict[str, np.ndarray]]:
        self.calls += 1
        for seed in range(self.count):
            self.drawn += 1
            yield self.net.feed(self.size, seed=seed + 1)


def _sqnr(model: OnnxModel, ranges: Ranges, scheme: QuantScheme, chosen: Adjustments) -> float:
    path = model.path.with_name("q.onnx")
    quantize_int8(model, ranges, scheme, path, adjustments=chosen)
    onnx.checker.check_model(str(path), full_check=True)
    feeds = {
        name: np.random.default_rng(99).normal(0, 1, (256, *shape)).astype(np.float32)
        for name, shape in ((spec.name, spec.shape[1:]) for spec in model.inputs)
    }
    return sqnr(run(model, feeds)[0], run(path, feeds)[0])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [8, 4])
def test_the_output_gains_on_samples_that_were_not_seen(
    tmp_path: Path, target: str, bits: int
) -> None:
    net, model = classifier(tmp_path)
    ranges = calibrate(model, [net.feed(64)])
    scheme, batches = PRESETS[target], Batches(net, 8)
    nearest = RecoverySettings(False, False, False, weight_bits=bits)
    plain, gained = (
        _sqnr(model, ranges, scheme, recover(model, ranges, scheme, batches, settings))
        for settings in (nearest, RecoverySettings(weight_bits=bits))
    )
    assert gained > plain + (0.5 if bits == 8 else 5)


def test_without_remedies_the_file_is_the_plain_one(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    ranges = calibrate(model, [net.feed(16)])
    scheme = ORT
    chosen = recover(model, ranges, scheme, Batches(net, 1), NOTHING)
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    quantize_int8(model, ranges, scheme, paths[0], adjustments=chosen)
    quantize_int8(model, ranges, scheme, paths[1])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_model_is_not_changed_and_the_choice_repeats(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    before = model.path.read_bytes()
    ranges = calibrate(model, [net.feed(16)])
    first, second = (
        recover(model, ranges, ORT, Batches(net, 3), RecoverySettings(weight_bits=4))
        for _ in range(2)
    )
    assert model.path.read_bytes() == before
    assert set(first.layers) == {"stem", "block_a", "block_b", "depthwise"} | {
        "main",
        "shortcut",
        "head",
    }
    for name, layer in first.layers.items():
        np.testing.assert_array_equal(layer.codes, second.layers[name].codes)
        np.testing.assert_array_equal(layer.bias, second.layers[name].bias)
        assert np.abs(layer.codes).max() <= 7
        assert layer.codes.dtype == np.int8
        assert layer.adjusted_db > layer.nearest_db


def test_batches_are_streamed_once_a_group_until_there_are_samples_enough(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    ranges = calibrate(model, [net.feed(16)])
    told: list[Progress] = []
    for memory, groups in ((2**29, 1), (1, 7)):
        batches = Batches(net, 100)
        settings = RecoverySettings(samples=40, memory_bytes=memory)
        recover(model, ranges, ORT, batches, settings, progress=told.append)
        assert (batches.calls, batches.drawn) == (groups, 3 * groups)
    assert [item.done for item in told] == [*range(1, 8)] * 2
    assert {item.total for item in told} == {7}
    assert told[0] == Progress("recover", 1, 7, "stem")


@pytest.mark.thorough
def test_memory_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    ranges = calibrate(model, [net.feed(16)])
    peaks = []
    for count in (2, 10):
        tracemalloc.start()
        settings = RecoverySettings(samples=10**6)
        recover(model, ranges, ORT, Batches(net, count), settings)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_the_choice_for_a_layer_does_not_hang_on_what_else_is_int8(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    ranges = calibrate(model, [net.feed(16)])
    scheme = PRESETS["tensorrt"]
    fewer = QuantScheme("trt", "tensorrt", False, False, keep_float=frozenset({"stem", "main"}))
    everything = recover(model, ranges, scheme, Batches(net, 2)).layers
    some = recover(model, ranges, fewer, Batches(net, 2)).layers
    assert set(everything) - set(some) == {"stem", "main"}
    for name, layer in some.items():
        np.testing.assert_array_equal(layer.codes, everything[name].codes)
        np.testing.assert_array_equal(layer.bias, everything[name].bias)


def test_pooling_that_the_int8_graph_rewrites_is_seen_through(tmp_path: Path) -> None:
    net = Net(3, 12, 12, opset=17)
    x = net.op("Relu", net.conv("x", 3, 8, name="c"))
    x = net.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    model = net.save(tmp_path / "m.onnx", net.gemm(x, 8, 5, name="head"))
    ranges = calibrate(model, [net.feed(64)])
    scheme = ORT
    chosen = recover(model, ranges, scheme, Batches(net, 4))
    assert set(chosen.layers) == {"c", "head"}
    assert _sqnr(model, ranges, scheme, chosen) > _sqnr(model, ranges, scheme, Adjustments())


def test_transposed_convolutions_are_left_with_the_reason(tmp_path: Path) -> None:
    net = Net(4, 6, 6)
    weight = net.constant("w", net.random.normal(0, 0.2, (4, 3, 2, 2)).astype(np.float32))
    y = net.op("ConvTranspose", net.op("Relu", net.conv("x", 4, 4, name="c")), weight, name="up")
    model = net.save(tmp_path / "m.onnx", y)
    ranges = calibrate(model, [net.feed(16)])
    chosen = recover(model, ranges, PRESETS["tensorrt"], Batches(net, 2))
    assert set(chosen.layers) == {"c"}
    (skip,) = chosen.skipped
    assert (skip.where, skip.what) == ("up", "recover")
    assert _sqnr(model, ranges, PRESETS["tensorrt"], chosen) > 25


def test_dead_channels_and_dead_inputs_stay_finite(tmp_path: Path) -> None:
    net = Net(4, 6, 6)
    x = net.op("Relu", net.conv("x", 4, 8, name="a"))
    model = net.save(tmp_path / "m.onnx", net.conv(x, 8, 5, name="b"))
    proto = onnx.load(model.path)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "a_w":
            array[2] = 0
        if tensor.name == "a_b":
            array[2], array[3] = -1, -50
        if tensor.name == "b_w":
            array[1] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, model.path)
    ranges = calibrate(model, [net.feed(32)])
    for target in TARGETS:
        chosen = recover(model, ranges, PRESETS[target], Batches(net, 2))
        for layer in chosen.layers.values():
            assert np.isfinite(layer.scales).all()
            assert np.isfinite(layer.bias).all()
            assert (layer.scales > 0).all()
        assert _sqnr(model, ranges, PRESETS[target], chosen) > 30


def test_layers_that_outliers_ruin_are_told_and_repaired(tmp_path: Path) -> None:
    net = Net(8, 9, 9)
    x = net.op("Relu", net.conv("x", 8, 8, name="sound"))
    model = net.save(tmp_path / "m.onnx", net.conv(x, 8, 8, name="merged"))
    proto = onnx.load(model.path)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if tensor.name == "sound_w":
            array[[1, 6]] *= 1e-3  # what a large tap then reads
        if tensor.name == "sound_b":
            array[[1, 6]] = 1e-3
        if tensor.name == "merged_w":
            array[range(8), [1, 6, 6, 1, 6, 1, 1, 6], 1, 1] = 40.0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, model.path)
    ranges = calibrate(model, [net.feed(64)])
    chosen = recover(model, ranges, ORT, Batches(net, 4))
    sound, merged = (chosen.layers[name] for name in ("sound", "merged"))
    assert merged.outliers.peak_ratio > 2 * sound.outliers.peak_ratio
    assert merged.nearest_db < sound.nearest_db - 10
    assert merged.adjusted_db > merged.nearest_db + 10
    gain = _sqnr(model, ranges, ORT, chosen) - _sqnr(model, ranges, ORT, Adjustments())
    assert gain > 6


def test_one_scale_a_tensor_is_kept_when_clipped(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    ranges = calibrate(model, [net.feed(16)])
    scheme = QuantScheme("plain", "onnxruntime", True, True, per_channel_weights=False)
    chosen = recover(model, ranges, scheme, Batches(net, 2), RecoverySettings(weight_bits=4))
    for layer in chosen.layers.values():
        assert len(np.unique(layer.scales)) == 1


def test_wrong_use_says_so(tmp_path: Path) -> None:
    net, model = classifier(tmp_path)
    with pytest.raises(QuantizeError, match="'x' has no calibrated range"):
        recover(model, Ranges("minmax", 1, {}), ORT, Batches(net, 1))
    ranges = calibrate(model, [net.feed(4)])
    with pytest.raises(QuantizeError, match="No calibration batches to recover with"):
        recover(model, ranges, ORT, Batches(net, 0))
    bad = {"x": np.full((4, 3, 16, 16), np.nan, np.float32)}
    with pytest.raises(QuantizeError, match="'x' is NaN or infinite in a calibration batch"):
        recover(model, ranges, ORT, lambda: [bad])
    with pytest.raises(ConfigError, match="weight_bits 9 is not 2 to 8"):
        RecoverySettings(weight_bits=9)
    with pytest.raises(ConfigError, match="must be at least 1"):
        RecoverySettings(samples=0)


@pytest.mark.parametrize("target", TARGETS)
def test_a_product_of_a_lone_row_has_patches(tmp_path: Path, target: str) -> None:
    """What is the same for all samples has no axis of them, such as an embedding of time."""
    net = Net(6)
    small, large = (net.random.normal(0, 1, (6, 8)).astype(np.float32) for _ in range(2))
    mean = net.op("ReduceMean", "x", net.constant("axes", np.array([0])), keepdims=0)
    row = net.op("MatMul", mean, net.constant("small", small), name="row")
    rows = net.op("MatMul", "x", net.constant("large", large), name="rows")
    model = net.save(tmp_path / "m.onnx", net.op("Add", rows, row))
    ranges = calibrate(model, Batches(net, 3)())
    chosen = recover(model, ranges, PRESETS[target], Batches(net, 3))
    assert {"row", "rows"} <= set(chosen.layers)
    assert _sqnr(model, ranges, PRESETS[target], chosen) > 30


@pytest.mark.parametrize("reached", [True, False])
def test_batches_in_which_nothing_is_found_are_passed_over(tmp_path: Path, reached: bool) -> None:
    net = Net(6)
    model = detector(net, tmp_path)
    some, none = net.feed(16), {"x": -np.abs(net.feed(16)["x"])}
    ranges = calibrate(model, [some, none, some])
    batches = [none, some] if reached else [none, none]
    chosen = recover(model, ranges, ORT, lambda: iter(batches))
    assert ("some" in chosen.layers) is reached
    assert "all" in chosen.layers
    assert [skip.where for skip in chosen.skipped if skip.what == "recover"] == (
        [] if reached else ["some"]
    )
    _sqnr(model, ranges, ORT, chosen)


def test_an_input_without_samples_may_come_first(tmp_path: Path) -> None:
    net = Net(6)
    weight = net.constant("w", net.random.normal(0, 1, (6, 8)).astype(np.float32))
    scaled = net.op("Mul", "x", net.constant("factor", np.float32(1).reshape(())))
    saved = net.save(tmp_path / "m.onnx", net.op("MatMul", scaled, weight, name="product"))
    proto = onnx.load(saved.path)
    del proto.graph.initializer[1]
    proto.graph.input.insert(0, onnx.helper.make_tensor_value_info("factor", 1, []))
    onnx.save(proto, saved.path)
    model = replace(saved, inputs=(TensorSpec("factor", (), "float32"), *saved.inputs))
    batches = [{"factor": np.array(2, np.float32), **net.feed(16)}] * 3
    ranges = calibrate(model, batches)
    chosen = recover(model, ranges, ORT, lambda: iter(batches))
    assert set(chosen.layers) == {"product"}
    assert measure_rounding(model, batches).samples == 48


def test_the_record_has_signal_over_error_of_the_weights_rounded_to_nearest(tmp_path: Path) -> None:
    net = Net(16)
    model = net.save(tmp_path / "m.onnx", net.gemm("x", 16, 24, name="head"))
    batches = Batches(net, 8, 512)
    ranges = calibrate(model, list(batches()), observer="minmax")
    chosen = recover(model, ranges, ORT, batches, RecoverySettings(samples=4096, clipping=False))
    weight = numpy_helper.to_array(next(t for t in net.constants if t.name == "head_w"))
    scales = np.abs(weight).max(axis=1, keepdims=True).astype(np.float64) / 127
    inputs = np.concatenate([batch["x"] for batch in batches()]).astype(np.float64)
    exact, rounded = inputs @ weight.T, inputs @ (np.rint(weight / scales) * scales).T
    layer = chosen.layers["head"]
    assert layer.nearest_db == pytest.approx(sqnr(exact, rounded), abs=0.3)
    assert layer.adjusted_db is not None
    codes = inputs @ (layer.codes.astype(np.float64) * layer.scales[:, None]).T
    assert layer.adjusted_db == pytest.approx(sqnr(exact, codes), abs=0.3)


@pytest.mark.parametrize("shape", [(5, 1), (5, 5)])
def test_a_bias_that_differs_by_sample_is_none_of_channels(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    """As many samples as channels, so that a size says nothing."""
    net = Net(6)
    weight = net.constant("w", net.random.normal(0, 0.4, (5, 6)).astype(np.float32))
    values = np.arange(np.prod(shape), dtype=np.float32) / 5
    bias = net.constant("b", values.reshape(shape))
    model = net.save(tmp_path / "m.onnx", net.op("Gemm", "x", weight, bias, name="g", transB=1))
    ranges = calibrate(model, [net.feed(5)])
    scheme, batches = PRESETS["tensorrt"], Batches(net, 8, 5)
    chosen = recover(model, ranges, scheme, batches)
    assert [(skip.where, skip.what) for skip in chosen.skipped] == [("g", "bias correction")]
    assert chosen.layers["g"].bias is None
    quantize_int8(model, ranges, scheme, tmp_path / "q.onnx", adjustments=chosen)
    feeds = net.feed(5, seed=50)
    assert sqnr(run(model, feeds)[0], run(tmp_path / "q.onnx", feeds)[0]) > 25


def test_a_bias_that_would_overflow_int32_is_held_by_the_scale(tmp_path: Path) -> None:
    """One of 3,000 times what the weights of its channel make, in steps of input times weight."""
    net = Net(8)
    weight = net.random.normal(0, 0.3, (4, 8)).astype(np.float32)
    weight[1] *= 1e-7
    bias = np.array([0.1, 3000.0, -0.2, 0.3], np.float32)
    constants = (net.constant("w", weight), net.constant("b", bias))
    model = net.save(tmp_path / "m.onnx", net.op("Gemm", "x", *constants, name="g", transB=1))
    ranges = calibrate(model, [net.feed(64)])
    for settings in (RecoverySettings(clipping=False), RecoverySettings()):
        chosen = recover(model, ranges, ORT, Batches(net, 8), settings)
        quantize_int8(model, ranges, ORT, tmp_path / "q.onnx", adjustments=chosen)
        feeds = net.feed(32, seed=77)
        expected, found = run(model, feeds)[0], run(tmp_path / "q.onnx", feeds)[0]
        np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=1e-3)


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    net = Net(8)
    model = net.save(tmp_path / "m.onnx", net.gemm("x", 8, 4, name="head"))
    ranges = calibrate(model, [net.feed(8)])
    proto = onnx.load(model.path)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "head_w")
    values = numpy_helper.to_array(weight).copy()
    values[2, 3] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(proto, model.path)
    with pytest.raises(QuantizeError, match="weights of head hold NaN or infinity"):
        recover(model, ranges, ORT, Batches(net, 1))


def test_a_product_that_is_scaled_takes_no_bias(tmp_path: Path) -> None:
    net = Net(6)
    weight = net.constant("w", net.random.normal(0, 0.4, (5, 6)).astype(np.float32))
    y = net.op("Gemm", "x", weight, name="g", transB=1, beta=0.5)
    model = net.save(tmp_path / "m.onnx", y)
    ranges = calibrate(model, [net.feed(16)])
    chosen = recover(model, ranges, ORT, Batches(net, 4))
    assert [(skip.where, skip.what) for skip in chosen.skipped] == [("g", "bias correction")]
    assert chosen.layers["g"].bias is None
