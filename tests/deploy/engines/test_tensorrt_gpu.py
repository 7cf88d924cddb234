"""Engines of TensorRT on a real GPU. Written where there was none; see docs/gpu.md."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_use import watch_growth
from rtx import make_model
from tiny import FEATURES, answer, draw

from deploy.engines import EngineSpec, open_engine
from deploy.engines.device_memory import choose_memory
from deploy.engines.tensorrt import TensorRtEngine
from deploy.engines.tensorrt_layers import profile_engine
from deploy.measuring.census import take_census
from export.errors import DeployError, EngineError
from export.gpu import read_gpu
from export.optional import is_installed
from export.tensorrt import BuildOptions, SizeRange, build_engine

pytestmark = pytest.mark.gpu

BATCHES = (SizeRange(1, 1, 4), SizeRange(1, 16, 32))


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    """The tiny model, built for this GPU by each product that is installed and takes it."""
    product = str(request.param)
    if not is_installed(product):
        pytest.skip(f"{product} is not installed")
    gpu = read_gpu()
    assert gpu is not None  # the marker has seen to it
    folder = tmp_path_factory.mktemp(product)
    options = BuildOptions(batch=BATCHES, targets=(gpu.target,), tf32=False)
    try:
        built = build_engine(
            make_model(folder), folder / "model.engine", engine=product, options=options
        )
    except DeployError as error:
        pytest.skip(f"{product} does not build for this GPU: {error}")
    return EngineSpec(product, "fp32", str(built.path), 1, record=built.record)


@pytest.fixture
def engine(spec: EngineSpec) -> Iterator[TensorRtEngine]:
    with open_engine(spec) as opened:
        assert isinstance(opened, TensorRtEngine)
        yield opened


def check(engine: Any, batch: int, seed: int = 0) -> None:
    x = draw(batch, seed)
    np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=1e-4, atol=1e-4)


def test_answers_are_right_at_every_batch_size_in_any_order(engine: TensorRtEngine) -> None:
    for seed, batch in enumerate((1, 32, 4, 5, 1, 2, 3, 7, 32, 1, 1, 4)):
        check(engine, batch, seed)


def test_shapes_that_come_again_are_replayed(engine: TensorRtEngine) -> None:
    for seed in range(20):
        check(engine, 1 + seed % 2, seed)
    lane = engine._lanes._idle[0]
    if not engine._native.captures_itself and lane._memory.captures:
        refusals = {plan._replay.refusal for plan in lane._plans.values() if plan._replay}
        assert refusals == {None}
        assert all(plan._replay.captured for plan in lane._plans.values() if plan._replay)


def test_what_does_not_fit_is_refused(engine: TensorRtEngine) -> None:
    with pytest.raises(EngineError, match="No optimization profile fits"):
        engine({"x": draw(33)})
    check(engine, 2)


def test_calls_from_many_threads(engine: TensorRtEngine) -> None:
    def work(seed: int) -> None:
        for step in range(50):
            check(engine, 1 + (seed + step) % 6, seed)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_tensors_of_torch_are_used_where_they_lie(engine: TensorRtEngine) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available() or choose_memory().name != "torch":
        pytest.skip("this torch has no CUDA")
    for seed in range(5):
        x = draw(3, seed)
        outputs = engine.run_device({"x": torch.from_numpy(x).cuda()})
        got = torch.as_tensor(outputs["logits"], device="cuda").cpu().numpy()
        np.testing.assert_allclose(got, answer(x), rtol=1e-4, atol=1e-4)


def test_every_layer_that_runs_has_its_time(spec: EngineSpec, engine: TensorRtEngine) -> None:
    layers = profile_engine(engine, {"x": draw(4)})
    assert layers
    assert all(layer.seconds > 0 for layer in layers)
    named = [layer for layer in layers if layer.precision != "other"]
    assert {layer.precision for layer in named} == {"fp32"}
    onnx = Path(spec.path).with_name("model.onnx")
    census = take_census(replace(spec, source=str(onnx)), {"x": draw(4)})
    assert census.seconds > 0
    assert census.macs > 0
    check(engine, 4)


def test_the_gpu_s_own_time_is_positive_and_below_that_of_the_call(engine: TensorRtEngine) -> None:
    feeds = {"x": draw(16)}
    own = sorted(engine.time_device(feeds, 50))[25]
    start = time.perf_counter()
    for _ in range(50):
        engine(feeds)
    assert 0 < own < (time.perf_counter() - start) / 50


def test_a_flipped_byte_is_refused(spec: EngineSpec, tmp_path: Path) -> None:
    data = bytearray(Path(spec.path).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.engine").write_bytes(data)
    with pytest.raises(EngineError, match="SHA-256 differs"):
        open_engine(replace(spec, path=str(tmp_path / "model.engine")))


def test_ten_thousand_runs_and_a_hundred_openings_leak_nothing(spec: EngineSpec) -> None:
    feeds = [{"x": np.ones((batch, FEATURES), np.float32)} for batch in range(1, 9)]
    growth = watch_growth(lambda: open_engine(spec), feeds, openings=100)
    assert growth.host_mib < 16
    assert growth.gpu_mib < 16
    assert growth.reopened_mib < 32
