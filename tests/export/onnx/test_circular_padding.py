"""Padding that wraps around, which OpenVINO and TensorRT have no operator for."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.engines.openvino_core import open_core
from export.artifacts import OnnxModel
from export.capture.program import capture
from export.onnx.circular_padding import write_out_circular_padding
from export.onnx.exporter import to_onnx
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.scheme import NARROW, PRESETS


class Padded(nn.Module):
    def __init__(self, pad: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pad = pad
        self.before, self.behind = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(F.pad(self.before(x), self.pad, mode="circular"))


X = torch.randn(3, 3, 9, 11, generator=torch.Generator().manual_seed(1))


def export(net: nn.Module, folder: Path) -> OnnxModel:
    program = capture(net, {"x": X}, keyword=False, dynamic_batch=True)
    return to_onnx(program, folder / "model.onnx", input_names=["x"], output_names=["y"])


def run_openvino(path: Path, x: np.ndarray) -> np.ndarray:
    pytest.importorskip("openvino", reason="openvino is not installed")
    core = open_core()
    graph = core.read_model(path)
    graph.reshape(list(x.shape))
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return next(iter(core.compile_model(graph, "CPU", options)([x]).values()))


def run(path: Path, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(path).run(None, {"x": x})[0]


@pytest.mark.parametrize("pad", [(1, 1, 1, 1), (2, 0, 0, 3), (0, 0, 1, 2), (7, 9, 6, 7)])
def test_both_engines_answer_as_torch_at_every_batch(tmp_path: Path, pad: tuple[int, ...]) -> None:
    net = Padded(pad)
    model = export(net, tmp_path)
    kinds = Counter(node.op_type for node in onnx.load(model.path).graph.node)
    assert kinds["Pad"] == 0
    assert kinds["Slice"] == sum(size > 0 for size in pad)
    for rows in (1, 3):
        wanted = net.double()(X[:rows].double()).detach().numpy()
        net.float()
        for engine in (run, run_openvino):
            np.testing.assert_allclose(engine(model.path, X[:rows].numpy()), wanted, atol=1e-5)


def test_a_circular_convolution_runs_in_int8_in_both_engines(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(8, 4, (2, 5), padding="same", padding_mode="circular"),
    ).eval()
    model = export(net, tmp_path)
    ranges = calibrate(model, [{"x": X.numpy()}])
    wanted = net(X).detach().numpy()
    for target, engine in (("onnxruntime", run), ("openvino", run_openvino)):
        scheme = replace(PRESETS[target], weight_levels=NARROW)
        path = tmp_path / f"{target}.onnx"
        result = quantize_int8(model, ranges, scheme, path)
        assert len(result.quantized) >= 2
        error = engine(path, X.numpy()) - wanted
        assert 10 * np.log10((wanted**2).mean() / (error**2).mean()) > 25


def make_pad(
    sizes: list[int], *, mode: str = "wrap", axes: list[int] | None = None
) -> onnx.ModelProto:
    constants = [numpy_helper.from_array(np.array(sizes, np.int64), "sizes")]
    inputs = ["x", "sizes"]
    if axes is not None:
        constants.append(numpy_helper.from_array(np.array(axes, np.int64), "axes"))
        inputs += ["", "axes"]
    nodes = [helper.make_node("Pad", inputs, ["y"], name="pad", mode=mode)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 5])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "a", "b"])
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


@pytest.mark.parametrize(
    ("sizes", "axes"),
    [([0, 1, 2, 0, 3, 0], None), ([2, 1], [-1]), ([1, 2, 0, 4], [2, 1]), ([0, 0], [1])],
)
def test_axes_that_are_named_and_sizes_of_none(
    tmp_path: Path, sizes: list[int], axes: list[int] | None
) -> None:
    model = make_pad(sizes, axes=axes)
    x = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    half = len(sizes) // 2
    widths = [(0, 0)] * 3
    for i, axis in enumerate(range(half) if axes is None else axes):
        widths[axis] = (sizes[i], sizes[half + i])
    assert write_out_circular_padding(model) == 1
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "m.onnx")
    np.testing.assert_array_equal(run(tmp_path / "m.onnx", x), np.pad(x, widths, mode="wrap"))


@pytest.mark.parametrize(
    ("sizes", "mode"), [([0, 0, 1, 0, 0, 1], "reflect"), ([0, 0, -1, 0, 0, 1], "wrap")]
)
def test_other_padding_and_crops_stay(sizes: list[int], mode: str) -> None:
    model = make_pad(sizes, mode=mode)
    before = model.SerializeToString()
    assert write_out_circular_padding(model) == 0
    assert model.SerializeToString() == before
