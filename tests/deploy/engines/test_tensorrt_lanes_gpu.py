"""Lanes, plans, graphs and growing outputs of TensorRT's engines on a real GPU and its memory.

TensorRT itself is a stand-in, whose kernel runs on the GPU: so all but the library is tested on
GPUs that it does not take. The library's own answers are in test_tensorrt_gpu.py.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from cuda_gpu import CudaGpu
from gpu_use import watch_growth
from host_gpu import Model, make_trt

import deploy.engines.tensorrt_native as natives
from deploy.engines import EngineSpec
from deploy.engines.layer_times import LayerTimes
from deploy.engines.tensorrt import TensorRtEngine
from deploy.engines.tensorrt_native import NativeEngine, PlanFile
from export.errors import EngineError
from export.gpu import read_gpu_state
from export.optional import is_installed
from export.tensorrt.products import PRODUCTS

pytestmark = pytest.mark.gpu

Open = Callable[..., TensorRtEngine]
SPIN = 100_000
"""Cycles of a run: 50 µs at 2 GHz, longer than it takes to read what was not waited for."""


@pytest.fixture(params=["torch", "pycuda"])
def library(request: pytest.FixtureRequest) -> Any:
    """The class that opens streams, of each library that is there."""
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    if request.param == "pycuda":
        from deploy.engines.device_memory.pycuda_memory import PycudaMemory

        return PycudaMemory
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    from deploy.engines.device_memory.torch_memory import TorchMemory

    return TorchMemory


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def product(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(library: Any, product: str, monkeypatch: pytest.MonkeyPatch) -> Open:
    def make(*, spin: int = SPIN, **options: Any) -> TensorRtEngine:
        gpu = CudaGpu(library, spin)
        monkeypatch.setattr(natives, "import_product", lambda _: make_trt(gpu, Model(**options)))
        native = NativeEngine(PRODUCTS[product], PlanFile(b"plan", "model.engine"))
        return TensorRtEngine(native, library, EngineSpec(product, "fp32", "model.engine", 1))

    return make


def draw(batch: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, 3), dtype=np.float32)
    return {"x": x, "s": np.array(rng.standard_normal(), np.float32)}


def check(engine: TensorRtEngine, feeds: dict[str, Any]) -> None:
    outputs = engine(feeds)
    np.testing.assert_array_equal(outputs["twice"], 2 * feeds["x"] + feeds["s"])
    if "positive" in outputs:
        np.testing.assert_array_equal(outputs["positive"], feeds["x"][feeds["x"] > 0])


def test_answers_are_right_at_every_batch_size_in_any_order(opened: Open) -> None:
    with opened() as engine:
        for seed, batch in enumerate((1, 16, 3, 1, 2, 5, 7, 3, 16, 1, 1, 1, 4, 16, 2, 1, 1)):
            check(engine, draw(batch, seed))


def test_shapes_that_come_again_are_replayed_where_graphs_are_ours(
    opened: Open, library: Any, product: str
) -> None:
    with opened() as engine:
        for seed in range(40):
            check(engine, draw(1 + seed % 2, seed))
        (lane,) = engine._lanes._idle
        replays = [plan._replay for plan in lane._plans.values()]
        if product == "tensorrt" and library.captures:
            assert [replay.captured for replay in replays if replay] == [True, True]
        else:
            assert not any(replay is not None and replay.captured for replay in replays)


def test_calls_from_many_threads(opened: Open) -> None:
    def work(seed: int) -> None:
        for step in range(100):
            check(engine, draw(1 + (seed + step) % 6, 1000 * seed + step))

    with opened() as engine, ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_outputs_of_unknown_size_grow_and_shrink(opened: Open) -> None:
    with opened(data_dependent=True) as engine:
        for seed in range(30):
            check(engine, draw(1 + 5 * seed % 16, seed))
        nothing = {"x": np.full((2, 3), -1, np.float32), "s": np.zeros((), np.float32)}
        check(engine, nothing)
        check(engine, draw(16))


def test_tensors_of_torch_are_read_once_they_are_made_and_outputs_are_the_caller_s(
    opened: Open,
) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    stream, kept = torch.cuda.Stream(), []
    with opened() as engine:
        for seed in range(20):
            feeds = draw(1 + seed % 4, seed)
            with torch.cuda.stream(stream):
                torch.cuda._sleep(100_000)  # the tensors are made well after they are handed over
                given = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
                outputs = engine.run_device(given)
            kept.append((feeds, outputs))
        for feeds, outputs in kept:
            got = torch.as_tensor(outputs["twice"], device="cuda").cpu().numpy()
            np.testing.assert_array_equal(got, 2 * feeds["x"] + feeds["s"])
        del outputs, kept


def test_the_gpu_s_own_time_is_that_of_its_kernel(opened: Open) -> None:
    """Counted in cycles, whose length is known within the clocks that the GPU may have."""
    state = read_gpu_state()
    assert state is not None
    assert state.max_sm_mhz is not None
    cycles, feeds = 2_000_000, draw(2)
    with opened(spin=cycles) as engine:
        own = sorted(engine.time_device(feeds, 20))[10]
        start = time.perf_counter()
        for _ in range(20):
            engine(feeds)
        whole = (time.perf_counter() - start) / 20
    fastest = cycles / (state.max_sm_mhz * 1e6)
    assert 0.99 * fastest < own < 1.2 * whole
    assert own < 4 * fastest + 1e-3


def test_under_the_profiler_nothing_is_captured(opened: Open) -> None:
    times = LayerTimes()
    with opened() as engine:
        document = engine.profile(draw(4), times, (2, 3))
        check(engine, draw(4))
    assert "kgen" in document


def test_what_does_not_fit_is_refused_and_the_next_call_is_answered(opened: Open) -> None:
    with opened() as engine:
        with pytest.raises(EngineError, match="No optimization profile fits"):
            engine(draw(17))
        check(engine, draw(2))


def test_ten_thousand_runs_and_fifty_openings_leak_nothing(opened: Open) -> None:
    feeds = [draw(batch) for batch in range(1, 9)]
    growth = watch_growth(lambda: opened(spin=0), feeds, openings=50)
    assert growth.host_mib < 16
    assert growth.gpu_mib < 16
    assert growth.reopened_mib < 32
    unknown = lambda: opened(spin=0, data_dependent=True)  # noqa: E731
    assert watch_growth(unknown, feeds, runs=0, openings=50).reopened_mib < 32
