"""What the engine asks of TensorRT and of the GPU's memory, on a GPU made of host memory.

The same on a real GPU is in test_tensorrt_gpu.py.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from host_gpu import HostGpu, Model, make_trt, read

import deploy.engines.tensorrt_native as natives
from deploy.engines import EngineSpec, open_engine
from deploy.engines.tensorrt import LANES, TensorRtEngine, choose_profile
from deploy.engines.tensorrt_native import NativeEngine, PlanFile
from export.artifacts import TensorSpec
from export.errors import EngineError
from export.tensorrt.options import ShapeProfile
from export.tensorrt.products import PRODUCTS

Open = Callable[..., TensorRtEngine]
SPEC = EngineSpec(
    "tensorrt",
    "fp32",
    "model.engine",
    1,
    inputs=(TensorSpec("x", ("batch", 3), "float32"), TensorSpec("s", (), "float32")),
    outputs=(TensorSpec("twice", ("batch", 3), "float32"),),
)


@pytest.fixture
def gpu() -> HostGpu:
    return HostGpu()


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def product(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(gpu: HostGpu, monkeypatch: pytest.MonkeyPatch, product: str) -> Open:
    def make(spec: EngineSpec = SPEC, *, plan: bytes = b"plan", **options: Any) -> TensorRtEngine:
        trt = make_trt(gpu, Model(**options))
        monkeypatch.setattr(natives, "import_product", lambda _: trt)
        native = NativeEngine(PRODUCTS[product], PlanFile(plan, "model.engine"))
        return TensorRtEngine(native, gpu.open_memory, spec)

    return make


def draw(batch: int, dtype: Any = np.float32, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal((batch, 3)).astype(dtype),
        "s": np.array(rng.standard_normal(), dtype),
    }


def check(engine: TensorRtEngine, feeds: dict[str, Any]) -> None:
    outputs = engine(feeds)
    expected = (2 * feeds["x"] + feeds["s"]).astype(feeds["x"].dtype)  # wider in older numpy
    np.testing.assert_array_equal(outputs["twice"], expected)
    if "positive" in outputs:
        np.testing.assert_array_equal(outputs["positive"], feeds["x"][feeds["x"] > 0])


def test_answers_are_right_at_every_batch_size_in_any_order(gpu: HostGpu, opened: Open) -> None:
    with opened() as engine:
        for seed, batch in enumerate((1, 16, 3, 1, 2, 5, 7, 3, 16, 1, 1, 1, 4)):
            check(engine, draw(batch, seed=seed))
    del engine
    assert gpu.left == {}


def test_the_signature_is_the_engines_with_the_names_of_the_bundle(opened: Open) -> None:
    with opened() as engine:
        assert engine.inputs == SPEC.inputs
        assert engine.outputs == SPEC.outputs
    bare = EngineSpec("tensorrt", "fp32", "model.engine", 1)
    with opened(bare, data_dependent=True) as engine:
        assert [str(spec) for spec in (*engine.inputs, *engine.outputs)] == [
            "x:batchx3:float32",
            "s::float32",
            "twice:batchx3:float32",
            "positive:batch:float32",
        ]


@pytest.mark.parametrize(
    ("kind", "dtype"), [("HALF", np.float16), ("BF16", ml_dtypes.bfloat16)], ids=str
)
def test_types_are_the_engines(opened: Open, kind: str, dtype: Any) -> None:
    with opened(dtype=kind) as engine:
        check(engine, draw(2, dtype))
        with pytest.raises(EngineError, match=f"float32; the engine takes {np.dtype(dtype)}"):
            engine(draw(2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.zeros((17, 3), np.float32)}, r"No optimization profile fits.*\[1, 3\] to \[16"),
        ({"x": np.zeros((2, 4), np.float32)}, r"'x' has shape \[2, 4\]"),
        ({"x": np.zeros((2, 3))}, "dtype float64; the engine takes float32"),
        ({"y": np.zeros(1, np.float32)}, "no input 'y'; the inputs are: x, s"),
        ({"s": np.zeros(1, np.float32)}, r"'s' has shape \[1\]"),
    ],
    ids=range(5),
)
def test_what_does_not_fit_is_refused_before_the_gpu_is_touched(
    gpu: HostGpu, opened: Open, change: dict[str, Any], words: str
) -> None:
    with opened() as engine:
        calls = gpu.calls
        with pytest.raises(EngineError, match=words):
            engine({**draw(2), **change})
        assert gpu.calls == calls
        check(engine, draw(2))


def test_nothing_is_asked_of_values_so_nan_comes_out_as_it_went_in(opened: Open) -> None:
    feeds = draw(2)
    feeds["x"][0, 1] = np.nan
    with opened() as engine:
        assert np.isnan(engine(feeds)["twice"]).sum() == 1


def test_outputs_are_the_callers_own(opened: Open) -> None:
    with opened() as engine:
        first = engine(draw(2, seed=1))["twice"]
        kept = first.copy()
        engine(draw(2, seed=2))
    np.testing.assert_array_equal(first, kept)
    assert first.flags.writeable


def test_buffers_of_shapes_in_use_are_used_again(gpu: HostGpu, opened: Open) -> None:
    with opened() as engine:
        for batch in (1, 2, 3):
            check(engine, draw(batch))
        allocated = gpu.allocations
        for seed in range(30):
            check(engine, draw(1 + seed % 3, seed=seed))
        assert gpu.allocations == allocated


def test_many_shapes_leave_memory_bounded(gpu: HostGpu, opened: Open) -> None:
    with opened() as engine:
        for batch in range(1, 6):
            check(engine, draw(batch))
        held = dict(gpu.open)
        for batch in (*range(6, 17), *range(1, 17)):
            check(engine, draw(batch))
        assert gpu.open["buffers"] == held["buffers"]
        assert gpu.open["pinned"] == held["pinned"]
        assert gpu.open["contexts"] <= held["contexts"]


@pytest.mark.parametrize("product", ["tensorrt"], indirect=True)
def test_shapes_that_come_again_are_captured_once_and_replayed(gpu: HostGpu, opened: Open) -> None:
    with opened() as engine:
        for seed in range(10):
            check(engine, draw(1 + seed % 2, seed=seed))
        assert gpu.captures == 2
        assert gpu.launches == 8  # of each shape's five calls all but the first


@pytest.mark.parametrize("product", ["tensorrt_rtx"], indirect=True)
def test_rtx_captures_itself_and_is_left_to_it(gpu: HostGpu, opened: Open) -> None:
    with opened() as engine:
        for seed in range(10):
            check(engine, draw(1 + seed % 2, seed=seed))
        assert (gpu.captures, gpu.open["contexts"]) == (0, 1)
        assert engine._native._config.cuda_graph_strategy == "whole"


@pytest.mark.parametrize("why", ["memory", "engine"])
def test_what_cannot_be_captured_runs_all_the_same(gpu: HostGpu, opened: Open, why: str) -> None:
    gpu.captures_graphs = why != "memory"
    with opened(capturable=why != "engine") as engine:
        for seed in range(5):
            check(engine, draw(2, seed=seed))
    assert (gpu.captures, gpu.launches) == (0, 0)


def test_outputs_whose_size_only_the_run_tells(gpu: HostGpu, opened: Open) -> None:
    with opened(data_dependent=True) as engine:
        for seed, batch in enumerate((1, 4, 16, 4, 4, 1)):
            check(engine, draw(batch, seed=seed))
        nothing = {"x": np.full((4, 3), -1, np.float32), "s": np.array(0, np.float32)}
        assert engine(nothing)["positive"].shape == (0,)
        assert gpu.captures == 0
    del engine
    assert gpu.left == {}


@pytest.mark.parametrize("data_dependent", [False, True])
@pytest.mark.parametrize("device", [False, True])
def test_no_failure_leaves_anything_behind(
    gpu: HostGpu, opened: Open, data_dependent: bool, device: bool
) -> None:
    """Every call of CUDA fails once; the engine goes on working, and all is given back."""

    def run(engine: TensorRtEngine, seed: int) -> None:
        feeds = draw(1 + seed % 2, seed=seed)
        if not device:
            check(engine, feeds)
            return
        tensors = {name: OnGpu(value) for name, value in feeds.items()}
        outputs = engine.run_device(tensors)
        np.testing.assert_array_equal(fetch(outputs["twice"]), 2 * feeds["x"] + feeds["s"])
        for output in outputs.values():
            output.free()

    for number in range(1, 60):
        gpu.calls, gpu.fail_at = 0, None
        with opened(data_dependent=data_dependent) as engine:
            gpu.calls, gpu.fail_at = 0, number
            failures = 0
            for seed in range(5):
                try:
                    run(engine, seed)
                except EngineError:
                    failures += 1
            assert failures <= 1
            gpu.fail_at = None
            run(engine, 9)
        del engine
        assert gpu.left == {}, number
        if not failures:
            return
    raise AssertionError("the runs make more calls than were tried")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_engine_that_fails_to_open_leaves_nothing(
    gpu: HostGpu, opened: Open, number: int
) -> None:
    gpu.fail_at = number
    with pytest.raises(EngineError), opened() as engine:
        engine(draw(1))
    engine = None  # type: ignore[assignment]
    assert gpu.left == {}


def test_a_refused_engine_has_tensorrts_own_words(opened: Open) -> None:
    with pytest.raises(EngineError, match=r"cannot open model\.engine: magic tag does not match"):
        opened(plan=b"broken")


def hammer(engine: TensorRtEngine, seed: int) -> None:
    for step in range(20):
        check(engine, draw(1 + (seed + step) % 5, seed=100 * seed + step))


def test_calls_from_many_threads_share_a_few_lanes(gpu: HostGpu, opened: Open) -> None:
    with opened() as engine:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(hammer, [engine] * 8, range(8)))
        assert 1 <= gpu.open["streams"] <= LANES
    del engine
    assert gpu.left == {}


def test_a_closed_engine_says_so(opened: Open) -> None:
    with opened() as engine:
        engine(draw(1))
    with pytest.raises(EngineError, match="closed"):
        engine(draw(1))
    with pytest.raises(EngineError, match="closed"):
        engine.run_device({name: OnGpu(value) for name, value in draw(1).items()})


class OnGpu:
    """A tensor of the GPU that is made of host memory."""

    def __init__(self, array: np.ndarray[Any, Any], stream: int | None = None) -> None:
        self._array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, False),
            "strides": None if array.flags.c_contiguous else array.strides,
            "version": 3,
            "stream": stream,
        }


def fetch(tensor: Any) -> np.ndarray[Any, Any]:
    interface = tensor.__cuda_array_interface__
    return read(interface["data"][0], interface["shape"], interface["typestr"])


@pytest.mark.parametrize("data_dependent", [False, True])
def test_tensors_of_the_gpu_are_used_where_they_lie(
    gpu: HostGpu, opened: Open, data_dependent: bool
) -> None:
    with opened(data_dependent=data_dependent) as engine:
        for seed, batch in enumerate((2, 5, 2)):
            feeds = draw(batch, seed=seed)
            check(engine, feeds)
            pinned = gpu.open["pinned"]
            got = engine.run_device({name: OnGpu(value) for name, value in feeds.items()})
            np.testing.assert_array_equal(fetch(got["twice"]), 2 * feeds["x"] + feeds["s"])
            if data_dependent:
                positive = feeds["x"][feeds["x"] > 0]
                np.testing.assert_array_equal(fetch(got["positive"]), positive)
            assert gpu.open["pinned"] == pinned
            check(engine, feeds)
            del got
    del engine
    assert gpu.left == {}


def test_what_made_the_tensors_is_waited_for(gpu: HostGpu, opened: Open) -> None:
    feeds, late = draw(2), draw(2, seed=5)
    theirs = gpu.open_memory()
    theirs.enqueue(lambda: np.copyto(feeds["x"], late["x"]))
    with opened() as engine:
        tensors = {"x": OnGpu(feeds["x"], theirs.stream), "s": OnGpu(feeds["s"])}
        got = fetch(engine.run_device(tensors)["twice"])
    np.testing.assert_array_equal(got, 2 * late["x"] + feeds["s"])


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (np.zeros((2, 3), np.float32), "no tensor on a GPU but ndarray"),
        (OnGpu(np.zeros((2, 3))), "dtype float64; the engine takes float32"),
        (OnGpu(np.zeros((2, 4), np.float32)), r"shape \[2, 4\]"),
        (OnGpu(np.zeros((3, 2), np.float32).T), "not contiguous"),
        (OnGpu(np.zeros((40, 3), np.float32)), "No optimization profile fits"),
    ],
    ids=range(5),
)
def test_tensors_that_do_not_fit_are_refused(
    gpu: HostGpu, opened: Open, tensor: Any, words: str
) -> None:
    with opened() as engine:
        calls = gpu.calls
        with pytest.raises(EngineError, match=words):
            engine.run_device({"x": tensor, "s": OnGpu(np.zeros((), np.float32))})
        assert gpu.calls == calls


def profile(least: int, best: int, most: int) -> ShapeProfile:
    return ShapeProfile({"x": ((least, 3), (best, 3), (most, 3))})


@pytest.mark.parametrize(
    ("batch", "chosen"), [(1, 0), (2, 0), (4, 1), (8, 1), (12, 1), (40, 2), (64, 2)]
)
def test_the_profile_that_is_tuned_nearest_is_taken(batch: int, chosen: int) -> None:
    profiles = (profile(1, 1, 8), profile(1, 8, 16), profile(8, 32, 64))
    assert choose_profile(profiles, {"x": (batch, 3)}) == chosen


def test_no_profile_is_needed_where_all_is_static_and_none_is_said_with_all_of_them() -> None:
    assert choose_profile((), {"x": (9, 3)}) == 0
    with pytest.raises(EngineError, match=r"\[1, 3\] to \[2, 3\]; .*\[4, 3\] to \[8, 3\]\. Split"):
        choose_profile((profile(1, 1, 2), profile(4, 4, 8)), {"x": (3, 3)})


def test_shapes_run_in_the_profile_that_fits_them(opened: Open) -> None:
    with opened(profiles=((1, 1, 2), (4, 8, 16))) as engine:
        for batch in (1, 8, 2, 16, 4, 1):
            check(engine, draw(batch, seed=batch))
        with pytest.raises(EngineError, match="No optimization profile fits"):
            engine(draw(3))


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt_rtx"])
def test_without_a_gpu_nothing_is_opened_and_that_is_said(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    from export.gpu import read_gpu

    read_gpu.cache_clear()
    try:
        (tmp_path / "model.engine").write_bytes(b"ftrt")
        with pytest.raises(EngineError, match="no NVIDIA GPU"):
            open_engine(EngineSpec(engine, "fp16", str(tmp_path / "model.engine"), 1))
    finally:
        read_gpu.cache_clear()


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"x\.engine cannot be read"):
        open_engine(EngineSpec("tensorrt_rtx", "fp16", str(tmp_path / "x.engine"), 1))


def test_all_that_is_asked_of_tensorrt_is_there() -> None:
    """The stand-in above has no method that the real one lacks."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    import host_gpu

    pairs = (
        (host_gpu.Context, trt.IExecutionContext),
        (host_gpu.Engine, trt.ICudaEngine),
        (host_gpu._Runtime, trt.Runtime),
    )
    for stand_in, real in pairs:
        used = {name for name in vars(stand_in) if not name.startswith("_")}
        assert used <= set(dir(real))
