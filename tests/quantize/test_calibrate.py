"""Ranges against every tensor run at once; bad data; memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_nets import Net, classifier

from export.artifacts import OnnxModel
from export.errors import ConfigError, DataError, EngineError, QuantizeError
from export.execute import ExposedModel, float_tensors
from export.progress import Progress
from quantize.calibrate import calibrate


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
    with pytest.raises(ConfigError, match="minmax, percentile"):
        calibrate(model, [net.feed(2)], observer="median")


_PEAK = """
import json, resource, sys
import numpy as np
from pathlib import Path
from export.artifacts import OnnxModel, TensorSpec
from quantize.calibrate import calibrate

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


@pytest.mark.slow
@pytest.mark.parametrize("observer", ["minmax", "percentile"])
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
