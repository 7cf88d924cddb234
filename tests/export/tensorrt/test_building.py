"""TensorRT for RTX, without a GPU: what it builds, and what it says of what it cannot."""

import hashlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.artifacts import OnnxModel, TensorSpec
from export.capture.program import capture
from export.errors import ConfigError, DeployError, EngineError
from export.gpu import read_gpu
from export.onnx.exporter import to_onnx
from export.progress import Progress
from quantize.half.bf16 import convert_bf16
from quantize.half.fp16 import convert_fp16

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is in the rtx extra")

from export.tensorrt import BuildOptions, SizeRange, build_engine
from export.tensorrt.building import hash_onnx
from export.tensorrt.monitor import PhaseStack

ADA = BuildOptions(targets=("SM89",))


class Head(nn.Module):
    """Determinants of nine rows, which TensorRT has not; smaller ones are composed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, 9, 9] to [N]."""
        return torch.det(x)


class Net(nn.Module):
    """Two operators that TensorRT lacks, in modules of their own; [N, 9, 9] to [N]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Head(), Head()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice the determinant, roughly."""
        return self.first(x.relu()) + self.second(x.sigmoid())


def export(net: nn.Module, x: torch.Tensor, path: Path) -> OnnxModel:
    program = capture(net, {"x": x}, keyword=False, dynamic_batch=True)
    return to_onnx(program, path, input_names=["x"], output_names=["y"], opset=20)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """Two convolutions, [N, 3, 8, 8]."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    return export(net, torch.randn(2, 3, 8, 8), tmp_path_factory.mktemp("small") / "model.onnx")


def test_all_that_is_lacking_is_named_at_once_with_module_and_line(tmp_path: Path) -> None:
    model = export(Net().eval(), torch.randn(2, 9, 9), tmp_path / "model.onnx")
    with pytest.raises(EngineError) as caught:
        build_engine(model, tmp_path / "model.engine", options=ADA)
    message = str(caught.value)
    line = Head.forward.__code__.co_firstlineno + 2
    assert message.startswith("TensorRT for RTX has no form of 2 nodes of model.onnx: ")
    assert f"Det at first (test_building.py:{line}); Det at second (" in message
    assert "keep to ONNX Runtime or OpenVINO" in message
    assert not (tmp_path / "model.engine").exists()


def test_a_net_that_it_can_is_built(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    model = export(net, torch.randn(2, 3, 8, 8), tmp_path / "model.onnx")
    engine = build_engine(model, tmp_path / "model.engine", options=ADA)
    content = engine.path.read_bytes()
    assert content[:4] == b"vtrt"  # the signature of a plan
    assert engine.record.targets == ("SM89",)
    assert engine.record.engine_sha256 == hashlib.sha256(content).hexdigest()
    assert engine.record.onnx_sha256 == hash_onnx(model.path)
    assert engine.record.product == "tensorrt_rtx"
    assert list(tmp_path.glob(".*")) == []  # nothing half written


def test_an_unknown_target_is_refused_with_those_there_are(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3)).eval()
    model = export(net, torch.randn(2, 3, 8, 8), tmp_path / "model.onnx")
    with pytest.raises(EngineError, match="no target 'SM42'; it has SM75, SM80"):
        build_engine(model, tmp_path / "m.engine", options=BuildOptions(targets=("SM42",)))


def test_every_range_of_batch_sizes_is_a_profile(small: OnnxModel, tmp_path: Path) -> None:
    options = BuildOptions(targets=("SM89",), batch=(SizeRange(1, 1, 1), SizeRange(2, 8, 32)))
    record = build_engine(small, tmp_path / "m.engine", options=options).record
    assert [profile.shapes["x"] for profile in record.profiles] == [
        ((1, 3, 8, 8),) * 3,
        ((2, 3, 8, 8), (8, 3, 8, 8), (32, 3, 8, 8)),
    ]


def test_other_dynamic_axes_take_their_sizes_from_the_options(tmp_path: Path) -> None:
    path = write_resizable(tmp_path / "m.onnx")
    spec = TensorSpec("x", ("batch", 3, "height", "width"), "float32")
    model = OnnxModel(path, (spec,), (), 20)
    with pytest.raises(ConfigError, match=r"dynamic axis 'height'.*LEAST:BEST:MOST"):
        build_engine(model, tmp_path / "m.engine", options=ADA)
    sizes = {"height": SizeRange(32, 64, 128), "width": SizeRange(32, 48, 64)}
    options = BuildOptions(targets=("SM89",), axes=sizes)
    record = build_engine(model, tmp_path / "m.engine", options=options).record
    assert record.profiles[0].shapes["x"] == ((1, 3, 32, 32), (8, 3, 64, 48), (16, 3, 128, 64))


def test_flags_and_limits_reach_the_builder_and_the_record(
    small: OnnxModel, tmp_path: Path
) -> None:
    model = small
    options = BuildOptions(targets=("SM80", "SM89"), tf32=False, workspace=2**28, level=1)
    record = build_engine(model, tmp_path / "m.engine", options=options).record
    assert record.targets == ("SM80", "SM89")
    assert "TF32" not in record.flags
    assert "TF32" in build_engine(model, tmp_path / "n.engine", options=ADA).record.flags


def test_a_workspace_that_is_too_small_is_said(small: OnnxModel, tmp_path: Path) -> None:
    options = BuildOptions(targets=("SM89",), workspace=2**20)
    with pytest.raises(EngineError, match=r"cannot build model.onnx.*workspace"):
        build_engine(small, tmp_path / "m.engine", options=options)


class Recurrent(nn.Module):
    """An LSTM along the second axis; [N, 5, 4] to [5, N, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Its states."""
        return self.memory(x.transpose(0, 1))[0]


@pytest.mark.thorough
def test_a_recurrent_layer_in_float32_beside_16_bits_is_named_where_the_builder_fails(
    tmp_path: Path,
) -> None:
    model = export(Recurrent().eval(), torch.randn(2, 5, 4), tmp_path / "model.onnx")
    loops = [n.name for n in onnx.load(model.path).graph.node if n.op_type == "LSTM"]
    half = convert_fp16(model, tmp_path / "half.onnx", keep_fp32=loops).model
    with pytest.raises(EngineError, match=r"stay in float32 .* here memory: take TF32"):
        build_engine(half, tmp_path / "m.engine", options=ADA)
    whole = convert_fp16(model, tmp_path / "whole.onnx").model
    assert build_engine(whole, tmp_path / "m.engine", options=ADA).path.stat().st_size > 1000


class HandWrittenAttention(nn.Module):
    """As decoders have it: scaled scores, minus infinity where a key comes later; [N, 16, 48]."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Linear(48, 144)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Four heads of twelve channels."""
        query, key, value = self.parts(x).view(-1, 16, 3, 4, 12).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query @ key.mT) * (1.0 / 12**0.5)
        scores = scores.masked_fill(torch.ones(16, 16).tril() == 0, float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("convert", [convert_fp16, convert_bf16])
def test_masked_attention_is_built_in_16_bits(convert: Any, tmp_path: Path) -> None:
    net = HandWrittenAttention().eval()
    model = export(net, torch.randn(2, 16, 48), tmp_path / "model.onnx")
    half = convert(model, tmp_path / "half.onnx").model
    assert build_engine(half, tmp_path / "m.engine", options=ADA).path.stat().st_size > 1000


def test_progress_comes_from_the_builder_and_never_falls(small: OnnxModel, tmp_path: Path) -> None:
    seen: list[Progress] = []
    build_engine(small, tmp_path / "m.engine", options=ADA, progress=seen.append)
    shares = [report.done for report in seen]
    assert len(seen) > 20
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 30
    assert 80 < shares[-1] <= 100
    assert any("graph" in report.detail.lower() for report in seen)


class Enough(Exception):
    """Somebody has seen enough."""


def test_what_the_callback_raises_cancels_the_build_and_leaves_no_file(
    small: OnnxModel, tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        raise Enough

    with pytest.raises(Enough):
        build_engine(small, tmp_path / "out" / "m.engine", options=ADA, progress=stop)
    assert list((tmp_path / "out").iterdir()) == []


def test_ctrl_c_cancels_the_build_and_leaves_no_file(small: OnnxModel, tmp_path: Path) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are heard in the main thread alone")
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    sent = []

    def interrupt(progress: Progress) -> None:
        if not sent:
            sent.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    try:
        path = tmp_path / "out" / "m.engine"
        with pytest.raises(KeyboardInterrupt):
            build_engine(small, path, options=ADA, progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, old)
    assert list((tmp_path / "out").iterdir()) == []


def test_ctrl_c_cancels_wherever_it_comes(
    small: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between TensorRT and the callback nothing could catch what the handler raises."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are heard in the main thread alone")
    start = PhaseStack.start

    def interrupt(phases: PhaseStack, name: str, steps: int) -> None:
        signal.raise_signal(signal.SIGINT)
        start(phases, name, steps)

    monkeypatch.setattr(PhaseStack, "start", interrupt)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(small, tmp_path / "out" / "m.engine", options=ADA)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, old)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_build_leaves_the_engine_that_was_there(small: OnnxModel, tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(b"the old one")
    options = BuildOptions(targets=("SM89",), version_compatible=True)
    with pytest.raises(EngineError, match=r"lean.*leave that out"):
        build_engine(small, path, options=options)
    assert path.read_bytes() == b"the old one"


@pytest.mark.parametrize("option", ["refittable", "stripped"])
def test_what_needs_a_gpu_says_so(small: OnnxModel, tmp_path: Path, option: str) -> None:
    if read_gpu() is not None:
        pytest.skip("there is a GPU")
    options = BuildOptions(targets=("SM89",), **{option: True})
    with pytest.raises(EngineError, match="on a GPU alone"):
        build_engine(small, tmp_path / "m.engine", options=options)
    with pytest.raises(DeployError, match=r"NVIDIA TensorRT builds for the GPU|not installed"):
        build_engine(small, tmp_path / "m.engine", engine="tensorrt")


def test_options_of_the_other_product_are_refused(small: OnnxModel, tmp_path: Path) -> None:
    options = BuildOptions(targets=("SM89",), hardware_compatible=True)
    with pytest.raises(ConfigError, match="name all compute capabilities"):
        build_engine(small, tmp_path / "m.engine", options=options)
    with pytest.raises(EngineError, match="no TensorRT; choose tensorrt or tensorrt_rtx"):
        build_engine(small, tmp_path / "m.engine", engine="openvino")


def write_resizable(path: Path) -> Path:
    """A convolution with a dynamic batch, height and width."""
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    sizes = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path
