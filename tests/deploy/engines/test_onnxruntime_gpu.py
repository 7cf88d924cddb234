"""ONNX Runtime's CUDA provider on a real GPU. Written where there was none; see docs/gpu.md."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gpu_use import watch_growth
from onnx import TensorProto, helper, numpy_helper

from deploy.engines import EngineSpec, open_engine
from deploy.engines.onnxruntime import open_session
from deploy.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine, has_cuda_provider
from deploy.engines.process import call_in_child
from deploy.engines.shape_sessions import MAX_SESSIONS
from deploy.measuring.census import Census
from export.artifacts import OnnxModel, TensorSpec
from export.errors import EngineError
from quantize.half.fp16 import convert_fp16

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_cuda_provider(), reason="this ONNX Runtime has no CUDA provider"),
]

KINDS = (
    "fp32-cuda",
    "tf32-cuda",
    "fp16-cuda",
    "fp16-cuda-nhwc",
    "tf32-cuda-graphs",
    "fp16-cuda-graphs",
)
LONG_KIND = "fp16-cuda-graphs"
"""The kind whose test of leaks is the long one."""
CLOSE = {"fp32": 1e-4, "tf32": 5e-3, "fp16": 1e-2}
"""Of the largest answer."""
_RNG = np.random.default_rng(3)
FIRST, SECOND = (
    _RNG.normal(0, (9 * planes) ** -0.5, (64, planes, 3, 3)).astype(np.float32)
    for planes in (3, 64)
)
LAST = _RNG.normal(0, 0.2, (64, 10)).astype(np.float32)


def draw(batch: int, size: int = 32, seed: int = 0) -> np.ndarray:
    shape = (batch, 3, size, size)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def answer(x: np.ndarray) -> np.ndarray:
    """In float64, on the CPU, by torch."""
    value = torch.from_numpy(x).double()
    for kernel in (FIRST, SECOND):
        value = torch.conv2d(value, torch.from_numpy(kernel).double(), padding=1).relu()
    return (value.mean((2, 3)) @ torch.from_numpy(LAST).double()).numpy()


def make_model(path: Path) -> OnnxModel:
    """Two convolutions, a mean and a product; batch, height and width are dynamic."""
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu1"),
        helper.make_node("Conv", ["b", "second"], ["c"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], name="pool"),
        helper.make_node("Flatten", ["e"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "last"], ["y"], name="head"),
    ]
    shapes = {"x": ("batch", 3, "height", "width"), "y": ("batch", 10)}
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    weights = zip((FIRST, SECOND, LAST), ("first", "second", "last"), strict=True)
    stored = [numpy_helper.from_array(array, name) for array, name in weights]
    graph = helper.make_graph(nodes, "net", [x], [y], stored)
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    inputs, outputs = ((TensorSpec(n, s, "float32"),) for n, s in shapes.items())
    return OnnxModel(path, inputs, outputs, 20)


@pytest.fixture(scope="module", params=KINDS)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    precision, _, variant = str(request.param).partition("-")
    folder = tmp_path_factory.mktemp(str(request.param))
    model = make_model(folder / "model.onnx")
    if precision == "fp16":
        model = convert_fp16(model, folder / "fp16.onnx").model
    return EngineSpec("onnxruntime", precision, str(model.path), 2, variant=variant)


@pytest.fixture
def engine(spec: EngineSpec) -> Iterator[OnnxRuntimeCudaEngine]:
    with open_engine(spec) as opened:
        assert isinstance(opened, OnnxRuntimeCudaEngine)
        yield opened


def check(engine: OnnxRuntimeCudaEngine, spec: EngineSpec, x: np.ndarray) -> None:
    expected = answer(x)
    error = np.abs(engine({"x": x})["y"] - expected).max() / np.abs(expected).max()
    assert error < CLOSE[spec.precision]


def test_answers_are_right_at_every_batch_and_size_in_any_order(
    engine: OnnxRuntimeCudaEngine, spec: EngineSpec
) -> None:
    cases = ((1, 32), (32, 32), (5, 48), (1, 32), (2, 17), (7, 32), (32, 64), (1, 1), (1, 32))
    for seed, (batch, size) in enumerate(cases):
        check(engine, spec, draw(batch, size, seed))


def test_an_answer_belongs_to_the_caller(engine: OnnxRuntimeCudaEngine) -> None:
    first = engine({"x": draw(3, seed=1)})["y"]
    kept = first.copy()
    for seed in range(2, 12):
        engine({"x": draw(3, seed=seed)})
    np.testing.assert_array_equal(first, kept)


def test_calls_from_many_threads(engine: OnnxRuntimeCudaEngine, spec: EngineSpec) -> None:
    def work(seed: int) -> None:
        for step in range(20):
            check(engine, spec, draw(1 + (seed + step) % 6, seed=seed))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_time_on_the_device_is_positive_and_below_that_of_the_call(
    engine: OnnxRuntimeCudaEngine,
) -> None:
    feeds = {"x": draw(32, 64)}  # copies take their share
    engine(feeds)
    own = sorted(engine.time_device(feeds, 50))[25]
    walls = []
    for _ in range(50):
        start = time.perf_counter()
        engine(feeds)
        walls.append(time.perf_counter() - start)
    assert 0 < own < sorted(walls)[25]


def test_the_census_has_every_layer_on_the_gpu_in_its_precision(spec: EngineSpec) -> None:
    census: Census = call_in_child(
        "deploy.measuring.census:take_census", spec=spec, feeds={"x": draw(8)}
    )
    assert not any(place.on_cpu for place in census.remainder)
    if spec.variant == "cuda":  # another layout has other nodes
        assert census.macs == 8 * (32 * 32 * 64 * 9 * (3 + 64) + 64 * 10)
    by_macs = max(census.precisions, key=lambda share: share.macs)
    assert by_macs.precision == ("fp16" if spec.precision == "fp16" else "fp32")
    assert census.seconds > 0


def test_what_has_no_kernel_there_is_run_by_the_cpu_and_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Det", ["r"], ["d"], name="head.det"),
        helper.make_node("Sigmoid", ["d"], ["y"], name="end"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])
    path, opset = tmp_path / "det.onnx", [helper.make_opsetid("", 20)]
    graph = helper.make_graph(nodes, "net", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    spec = EngineSpec("onnxruntime", "tf32", str(path), 1, variant="cuda")
    values = np.random.default_rng(0).standard_normal((6, 4, 4), dtype=np.float32)
    with open_engine(spec) as engine:
        expected = 1 / (1 + np.exp(-np.linalg.det(np.maximum(values, 0).astype(np.float64))))
        np.testing.assert_allclose(engine({"x": values})["y"], expected, rtol=1e-4, atol=1e-5)
    census: Census = call_in_child(
        "deploy.measuring.census:take_census", spec=spec, feeds={"x": values}
    )
    assert [(place.operators, place.on_cpu) for place in census.remainder] == [(("Det",), True)]
    assert census.reformats >= 2  # from the GPU and back


def test_thousands_of_runs_and_twenty_openings_leak_nothing(spec: EngineSpec) -> None:
    feeds = [{"x": draw(batch, 16)} for batch in range(1, 9)]
    runs = 10_000 if spec.name.endswith(LONG_KIND) else 3_000
    growth = watch_growth(lambda: open_engine(spec), feeds, runs=runs, openings=20)
    assert growth.host_mib < 16
    assert growth.gpu_mib < 16
    assert growth.reopened_mib < 64


def run_side_by_side(path: str) -> None:
    """Two engines with graphs and one without, each called by a thread of its own."""
    specs = [
        EngineSpec("onnxruntime", "tf32", path, 2, variant=variant)
        for variant in ("cuda-graphs", "cuda-graphs", "cuda")
    ]

    def work(spec: EngineSpec) -> None:
        with open_engine(spec) as engine:
            assert isinstance(engine, OnnxRuntimeCudaEngine)
            for step in range(60):
                check(engine, spec, draw(1 + step % 6, seed=step))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, specs))


def test_graphs_that_several_engines_capture_at_once_are_right(tmp_path: Path) -> None:
    """In a process of their own: where a capture is disturbed, CUDA may end it."""
    path = make_model(tmp_path / "model.onnx").path
    code = "import sys, test_onnxruntime_gpu as tests; tests.run_side_by_side(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_more_shapes_than_there_are_graphs_are_right(tmp_path: Path) -> None:
    path = str(make_model(tmp_path / "model.onnx").path)
    spec = EngineSpec("onnxruntime", "tf32", path, 2, variant="cuda-graphs")
    with open_engine(spec) as engine:
        assert isinstance(engine, OnnxRuntimeCudaEngine)
        for batch in (*range(1, MAX_SESSIONS + 4), 1, MAX_SESSIONS + 2, 2, 1, MAX_SESSIONS):
            check(engine, spec, draw(batch, seed=batch))


@pytest.mark.parametrize("variant", ["cuda", "cuda-nhwc"])
def test_each_size_of_a_batch_has_a_session_that_no_other_disturbs(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[EngineSpec] = []

    def count(spec: EngineSpec, options: onnxruntime.SessionOptions) -> object:
        opened.append(spec)
        return open_session(spec, options)

    monkeypatch.setattr("deploy.engines.onnxruntime_cuda.open_session", count)
    model = make_model(tmp_path / "model.onnx")
    spec = EngineSpec("onnxruntime", "tf32", str(model.path), 2, variant=variant)
    with open_engine(spec) as engine:
        for batch in (4, 1, 3, 8) * 3:
            check(engine, spec, draw(batch, seed=batch))
    assert len(opened) == 3  # beside the one that the engine was opened with


def test_calls_of_many_sizes_from_many_threads_are_right(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model.onnx")
    spec = EngineSpec("onnxruntime", "tf32", str(model.path), 2, variant="cuda")
    with open_engine(spec) as engine, ThreadPoolExecutor(8) as pool:
        work = [pool.submit(check, engine, spec, draw(n % 21 + 1, seed=n)) for n in range(84)]
        for each in work:
            each.result()


def test_a_concat_of_unlike_parts_is_right_at_every_shape(tmp_path: Path) -> None:
    """Its kernel reads addresses from the host, which a graph must not find changed."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Concat", ["x", "a"], ["b"], axis=1),
        helper.make_node("Concat", ["b", "x", "b"], ["c"], axis=1),
        helper.make_node("Sigmoid", ["c"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 15])
    path, opset = tmp_path / "concat.onnx", [helper.make_opsetid("", 20)]
    graph = helper.make_graph(nodes, "net", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    rng = np.random.default_rng(0)
    with open_engine(EngineSpec("onnxruntime", "tf32", str(path), 1, variant="cuda-graphs")) as e:
        for batch in (1, 64, 3, 1, 17, 64, 3, 1, *range(18, 40), 1, 64, 3):
            values = rng.standard_normal((batch, 3), dtype=np.float32)
            both = np.concatenate([values, np.maximum(values, 0)], axis=1)
            whole = np.concatenate([both, values, both], axis=1).astype(np.float64)
            found = e({"x": values})["y"]
            np.testing.assert_allclose(found, 1 / (1 + np.exp(-whole)), rtol=1e-4, atol=1e-5)


def test_a_bias_is_right_at_small_batches_after_large_ones(tmp_path: Path) -> None:
    """Its kernel may keep a row of ones as long as the largest batch so far."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((8, 300), dtype=np.float32)
    bias = rng.standard_normal(300, dtype=np.float32)
    nodes = [helper.make_node("Gemm", ["x", "matrix", "bias"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 300])
    path, opset = tmp_path / "gemm.onnx", [helper.make_opsetid("", 20)]
    stored = [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(bias, "bias")]
    graph = helper.make_graph(nodes, "net", [x], [y], stored)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    with open_engine(EngineSpec("onnxruntime", "fp32", str(path), 1, variant="cuda-graphs")) as e:
        for batch in (1, 2000, 3, 1, 2000, 4000, 3, 1, 8000, 1, 3, 2000):
            values = rng.standard_normal((batch, 8), dtype=np.float32)
            expected = values.astype(np.float64) @ matrix + bias
            np.testing.assert_allclose(e({"x": values})["y"], expected, rtol=1e-4, atol=1e-4)


def test_what_the_cpu_would_run_has_no_graphs_and_says_so(tmp_path: Path) -> None:
    node = helper.make_node("Det", ["x"], ["y"], name="head.det")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])
    path, opset = tmp_path / "det.onnx", [helper.make_opsetid("", 20)]
    graph = helper.make_graph([node], "net", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    spec = EngineSpec("onnxruntime", "tf32", str(path), 1, variant="cuda-graphs")
    with pytest.raises(EngineError, match="cannot open"):
        open_engine(spec)
