"""What OpenVINO answers in int8 behind a reduction that drops axes, beside constants a channel."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_nets import Net, run, sqnr

from deploy.engines import EngineSpec
from deploy.engines.openvino_core import open_core
from deploy.engines.openvino_reductions import keep_axes_beside_codes
from deploy.engines.process import EngineProcess
from export.artifacts import OnnxModel
from quantize.calibration.calibrate import calibrate
from quantize.int8.insertion import quantize_int8
from quantize.scheme import NARROW, PRESETS

pytest.importorskip("openvino", reason="openvino is not installed")


def scaled(net: Net, x: str) -> str:
    """By a constant a channel, of which the first is far larger than the others."""
    scale = np.r_[100, net.random.uniform(0.5, 1.5, 63)].astype(np.float32)
    return net.op("Mul", x, net.constant(f"scale{len(net.nodes)}", scale))


def shifted(net: Net, x: str) -> str:
    shift = net.random.normal(0, 3, 64).astype(np.float32)
    return net.op("Add", x, net.constant(f"shift{len(net.nodes)}", shift))


def build(net: Net, kind: str, axes: tuple[int, ...], place: str) -> str:
    """A reduction over tokens between two linear layers, and a constant a channel beside it."""
    weight = net.random.normal(0, 0.125, (64, 64)).astype(np.float32)
    x = net.op("MatMul", "x", net.constant("first", weight))
    x = scaled(net, x) if place == "before" else x
    x = net.op(kind, x, net.constant("axes", np.asarray(axes, np.int64)), keepdims=0)
    if place == "activation":
        x = net.op("Relu", scaled(net, x))
    elif place == "behind":
        x = shifted(net, x)
    return net.gemm(x, 64, 10)


def quantize(folder: Path, net: Net, *case: object) -> tuple[OnnxModel, OnnxModel]:
    model = net.save(folder / "net.onnx", build(net, *case))  # type: ignore[arg-type]
    scheme = replace(PRESETS["openvino"], weight_levels=NARROW)  # which no kernel saturates
    ranges = calibrate(model, [net.feed(16)])
    return model, quantize_int8(model, ranges, scheme, folder / "int8.onnx").model


CASES = [
    ("ReduceMean", (12, 64), (1,), "before"),
    ("ReduceMean", (5, 7, 64), (1, 2), "before"),
    ("ReduceSum", (12, 64), (1,), "activation"),
    ("ReduceMax", (12, 64), (-2,), "before"),
    ("ReduceL2", (12, 64), (1,), "behind"),
    ("ReduceMean", (12, 64), (1,), "behind"),
]


@pytest.mark.parametrize(("kind", "shape", "axes", "place"), CASES)
def test_they_are_those_of_the_file(
    tmp_path: Path, kind: str, shape: tuple[int, ...], axes: tuple[int, ...], place: str
) -> None:
    net = Net(*shape)
    model, int8 = quantize(tmp_path, net, kind, axes, place)
    feed = net.feed(16)
    with EngineProcess(EngineSpec("openvino", "int8", str(int8.path), threads=1)) as process:
        (found,) = process(feed).values()
    (exact,), (expected,) = run(model, feed), run(int8, feed)
    assert sqnr(exact, found) > max(20, sqnr(exact, expected) - 2)


def kinds(model: object) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]  # type: ignore[attr-defined]


def test_only_int8_is_changed_and_only_where_axes_go(tmp_path: Path) -> None:
    net = Net(12, 64)
    model, int8 = quantize(tmp_path, net, "ReduceMean", (1,), "before")
    plain, codes = (open_core().read_model(each.path) for each in (model, int8))
    for each, squeezes in ((plain, 0), (codes, 1)):
        keep_axes_beside_codes(each)
        assert kinds(each).count("Squeeze") == squeezes
    keep_axes_beside_codes(codes)
    assert kinds(codes).count("Squeeze") == 1
    (reduction,) = (n for n in codes.get_ordered_ops() if n.get_type_name() == "ReduceMean")
    assert reduction.get_attributes()["keep_dims"]
    assert [str(port.get_partial_shape()) for port in codes.outputs] == ["[?,10]"]
