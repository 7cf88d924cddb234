"""The remedies against their papers' claims, on trained nets that plain quantization ruins.

Oracle: the labels of held-out images, by ONNX Runtime's own run of the files.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn
from trained import (
    MobileNet,
    RepVGG,
    Task,
    Training,
    accuracy,
    digits,
    export_net,
    logits,
    shapes,
    train_once,
)

from export.artifacts import OnnxModel
from export.cpu import saturates_int8
from export.onnx.graph import GraphIndex
from quantize.calibration.calibrate import calibrate
from quantize.int8.adjustments import Adjustments
from quantize.int8.insertion import quantize_int8
from quantize.recover.chains import find_links
from quantize.recover.equalization import equalize
from quantize.recover.recovery import RecoverySettings, recover
from quantize.scheme import NARROW, PRESETS, QuantScheme
from quantize.sensitivity.blocks import Block
from quantize.sensitivity.fallback import BlockTrade, find_fewest, orders_of_leaving

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None,
    reason="the nets are trained on scikit-learn's digits",
)

LEVELS = NARROW if saturates_int8() else 127
"""As the CPU has it: where its kernels saturate, eight bits lose what no recovery gives back."""

PER_CHANNEL = replace(PRESETS["onnxruntime"], weight_levels=LEVELS)
PER_TENSOR = replace(PER_CHANNEL, per_channel_weights=False)
NEAREST = RecoverySettings(bias_correction=False, rounding=False, clipping=False)
SAMPLES = 256
HALF_A_POINT = 0.5 + 1e-9


@pytest.fixture
def cache(request: pytest.FixtureRequest) -> Path:
    """Where weights stay between runs of the tests."""
    return Path(request.config.cache.mkdir("trained"))


class Case:
    """One trained float model with its task, quantized in many ways."""

    def __init__(self, model: OnnxModel, task: Task) -> None:
        self.model, self.task = model, task
        self.float_accuracy = accuracy(model, task)
        self.ranges = calibrate(model, task.calibration(SAMPLES))

    def recover(self, scheme: QuantScheme, settings: RecoverySettings) -> Adjustments:
        batches = lambda: self.task.calibration(SAMPLES)  # noqa: E731
        return recover(self.model, self.ranges, scheme, batches, settings)

    def quantize(self, scheme: QuantScheme, adjustments: Adjustments | None = None) -> OnnxModel:
        path = self.model.path.with_name(f"q{len(list(self.model.path.parent.iterdir()))}.onnx")
        return quantize_int8(self.model, self.ranges, scheme, path, adjustments=adjustments).model

    def lost(self, scheme: QuantScheme, settings: RecoverySettings | None = None) -> float:
        """Points of accuracy that int8 loses; without settings by plain `quantize_int8`."""
        chosen = None if settings is None else self.recover(scheme, settings)
        return self.lost_by(self.quantize(scheme, chosen))

    def lost_by(self, model: OnnxModel) -> float:
        return 100 * (self.float_accuracy - accuracy(model, self.task))

    def equalized(self) -> "Case":
        result = equalize(self.model, self.model.path.with_name("equalized.onnx"))
        assert result.equalized
        return Case(result.model, self.task)


def _train(
    name: str, make: Callable[[], nn.Module], task: Task, settings: Training, cache: Path, to: Path
) -> Case:
    return Case(export_net(train_once(name, make, task, settings, cache), task, to), task)


def _unbalance(model: OnnxModel, path: Path, spread: float) -> OnnxModel:
    """The same function with channel scales drawn log-normally, standard deviation in octaves."""
    proto = onnx.load(model.path)
    graph = GraphIndex(proto)
    links, _ = find_links(graph, {})
    random = np.random.default_rng(0)
    arrays = {t.name: numpy_helper.to_array(t).copy() for t in proto.graph.initializer}
    for link in links:
        first, second = graph.nodes[link.first].input, graph.nodes[link.second].input
        scale = 2 ** random.normal(0, spread, arrays[first[1]].shape[0])
        arrays[first[1]] = arrays[first[1]] * scale.reshape(-1, 1, 1, 1)
        arrays[first[2]] = arrays[first[2]] * scale
        depthwise = arrays[second[1]].shape[1] == 1
        shape = (-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)
        arrays[second[1]] = arrays[second[1]] / scale.reshape(shape)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = arrays[tensor.name].astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)
    return replace(model, path=path)


@pytest.fixture
def mobile(cache: Path, tmp_path: Path) -> Case:
    """A depthwise net on digits, its channels out of balance."""
    make = lambda: MobileNet(1, 10, (8, 16, 24), nn.ReLU)  # noqa: E731
    trained = _train("mobile", make, digits(), Training(epochs=6), cache, tmp_path)
    return Case(_unbalance(trained.model, tmp_path / "unbalanced.onnx", 3.0), trained.task)


@pytest.fixture
def merged(cache: Path, tmp_path: Path) -> Case:
    """A RepVGG on digits whose identity branches saw channels of tiny variance, merged."""
    make = lambda: RepVGG(1, 10, quiet=1 / 64)  # noqa: E731
    settings = Training(epochs=6, norm_rate=0.003)
    return _train("repvgg-quiet", make, digits(), settings, cache, tmp_path)


@pytest.fixture
def plain_repvgg(cache: Path, tmp_path: Path) -> Case:
    make = lambda: RepVGG(1, 10)  # noqa: E731
    return _train("repvgg", make, digits(), Training(epochs=6), cache, tmp_path)


@pytest.mark.slow
def test_equalization_gives_a_depthwise_net_its_accuracy_back(mobile: Case) -> None:
    assert mobile.float_accuracy > 0.95
    assert mobile.lost(PER_TENSOR) > 10
    equalized = mobile.equalized()
    assert equalized.float_accuracy == pytest.approx(mobile.float_accuracy, abs=0.002)
    assert equalized.lost(PER_TENSOR) < 1


@pytest.mark.slow
def test_adaptive_rounding_holds_four_bits_where_nearest_collapses(plain_repvgg: Case) -> None:
    assert plain_repvgg.float_accuracy > 0.96
    four = replace(NEAREST, weight_bits=4)
    for scheme, lost in ((PER_TENSOR, 50), (PER_CHANNEL, 20)):
        assert plain_repvgg.lost(scheme, four) > lost
        assert plain_repvgg.lost(scheme, replace(four, rounding=True)) < 5
        assert plain_repvgg.lost(scheme, RecoverySettings(weight_bits=4)) < 1


@pytest.mark.slow
def test_bias_correction_alone_gives_accuracy_back(merged: Case) -> None:
    lost = merged.lost(PER_CHANNEL)
    assert lost > 3
    assert merged.lost(PER_CHANNEL, replace(NEAREST, bias_correction=True)) < lost / 2


@pytest.mark.slow
def test_a_merged_repvgg_collapses_and_is_repaired(merged: Case) -> None:
    assert merged.float_accuracy > 0.96
    assert merged.lost(PER_TENSOR) > 10
    assert merged.lost(PER_TENSOR, RecoverySettings()) < merged.lost(PER_TENSOR) / 5
    assert merged.lost(PER_CHANNEL, RecoverySettings()) <= HALF_A_POINT
    assert merged.equalized().lost(PER_CHANNEL, RecoverySettings()) <= HALF_A_POINT


def _output_noise(case: Case, model: OnnxModel, images: np.ndarray) -> float:
    """Noise over signal of the logits."""
    exact = logits(case.model, images).astype(np.float64)
    noise = np.square(logits(model, images) - exact).mean()
    return float(noise / np.square(exact).mean())


@pytest.mark.slow
def test_the_harder_task_comes_within_half_a_point(cache: Path, tmp_path: Path) -> None:
    task = shapes()
    make = lambda: MobileNet(3, 24, activation=nn.SiLU)  # noqa: E731
    case = _train("shapes-silu", make, task, Training(epochs=6), cache, tmp_path)
    assert case.float_accuracy > 0.8
    assert case.lost(PER_TENSOR) > 2
    images = task.train_x[:SAMPLES]
    chosen = case.recover(PER_CHANNEL, RecoverySettings())
    names = frozenset(chosen.layers)
    alone = {
        name: case.quantize(replace(PER_CHANNEL, keep_float=names - {name}), chosen)
        for name in names
    }
    costs = {name: _output_noise(case, model, images) for name, model in alone.items()}
    trades = [BlockTrade(Block(name, (name,)), cost, 1.0) for name, cost in costs.items()]

    def mix(kept: frozenset[str]) -> OnnxModel:
        return case.quantize(replace(PER_CHANNEL, keep_float=kept), chosen)

    def passes(kept: frozenset[str]) -> bool:
        return _output_noise(case, mix(kept), images) < 10**-3.0

    kept = find_fewest(orders_of_leaving(trades)[1], passes, tries=10)
    assert kept is not None
    assert len(kept) < len(names) / 2
    model = mix(kept)
    assert case.lost_by(model) <= HALF_A_POINT
