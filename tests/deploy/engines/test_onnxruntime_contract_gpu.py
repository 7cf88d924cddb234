"""ONNX Runtime on a real GPU keeps the contract of every engine. Written where there was none; see
docs/gpu.md."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from gpu_use import watch_growth
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle.golden import TOLERANCE, find_mismatch
from deploy.engines import Engine, EngineSpec, open_engine
from deploy.engines.device import CUDA
from deploy.engines.process import EngineProcess
from export.errors import EngineError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="this ONNX Runtime has no CUDA provider",
    ),
]

WIDTH, CHANNELS, SIZE = 256, 16, 12
_RNG = np.random.default_rng(3)
KERNEL = (_RNG.standard_normal((CHANNELS, 3, 3, 3)) / 5).astype(np.float32)
MATRIX = (_RNG.standard_normal((CHANNELS * SIZE * SIZE, WIDTH)) / 40).astype(np.float32)


def draw(batch: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32)


def answer(x: np.ndarray) -> np.ndarray:
    """A convolution with padding, a ReLU and a product of matrices, in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    features = np.einsum("nchwij,ocij->nohw", windows, KERNEL.astype(np.float64))
    return np.maximum(features, 0).reshape(len(x), -1) @ MATRIX.astype(np.float64)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> EngineSpec:
    """A convolution and a product large enough for tensor cores, where TF32 would be seen."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "matrix"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(KERNEL, "kernel"), numpy_helper.from_array(MATRIX, "matrix")],
    )
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return EngineSpec("onnxruntime", "fp32", str(path), 1, variant=CUDA)


@pytest.fixture(scope="module")
def engine(spec: EngineSpec) -> Iterator[Engine]:
    with open_engine(spec) as opened:
        yield opened


def check(engine: Engine, batch: int, seed: int) -> None:
    x = draw(batch, seed)
    expected = answer(x)
    got = engine({"x": x})["y"]
    assert got.dtype == np.float32
    assert float(np.abs(got - expected).max()) < 1e-2 * float(np.abs(expected).max())


def test_answers_are_right_at_every_batch_size_in_any_order(engine: Engine) -> None:
    for seed, batch in enumerate((1, 64, 4, 5, 1, 2, 3, 7, 33, 1, 1, 4)):
        check(engine, batch, seed)


def test_float32_is_as_exact_as_a_bundle_asks_of_it(engine: Engine) -> None:
    """The float32 model that runs in place of another engine is held to its recorded answers."""
    x = draw(4)
    recorded = {"y": answer(x).astype(np.float32)}
    assert find_mismatch(recorded, engine({"x": x}), tolerance=TOLERANCE["fp32"]) is None


def test_what_it_returns_belongs_to_the_caller(engine: Engine) -> None:
    first = engine({"x": draw(2, 1)})["y"]
    kept = first.copy()
    for seed in range(2, 6):
        engine({"x": draw(2, seed)})
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    check(engine, 2, 1)


def test_calls_from_many_threads(engine: Engine) -> None:
    def work(seed: int) -> None:
        for step in range(25):
            check(engine, 1 + (seed + step) % 6, seed)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (draw(2).astype(np.float64), "dtype float64; the engine takes float32"),
        (draw(2)[:, :2], "has shape"),
        (draw(2)[0], "has shape"),
        (draw(2)[:0], "has shape"),
    ],
    ids=["dtype", "channels", "rank", "empty"],
)
def test_wrong_inputs_are_refused_in_words_and_the_next_call_is_right(
    engine: Engine, x: np.ndarray, words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        engine({"x": x})
    check(engine, 3, 0)


def test_views_in_any_order_are_taken_for_what_they_are(engine: Engine) -> None:
    x = draw(4)
    expected = answer(x[::-1, :, ::-1])
    got = engine({"x": x[::-1, :, ::-1]})["y"]
    assert float(np.abs(got - expected).max()) < 1e-2 * float(np.abs(expected).max())


def test_a_gpu_that_is_hidden_is_told_and_not_replaced_by_the_cpu(spec: EngineSpec) -> None:
    """ONNX Runtime itself would go on with the CPU; a child sees no GPU from the beginning."""
    code = (
        "import sys\n"
        "from deploy.engines import EngineSpec, open_engine\n"
        "from export.errors import EngineError\n"
        "try:\n"
        "    open_engine(EngineSpec('onnxruntime', 'fp32', sys.argv[1], 1, variant='cuda'))\n"
        "except EngineError as error:\n"
        "    print(error)\n"
    )
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, spec.path],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CUDA" in done.stdout, done.stderr


def test_ten_thousand_runs_and_ten_openings_leak_nothing(spec: EngineSpec) -> None:
    feeds = [{"x": draw(batch)} for batch in range(1, 9)]
    growth = watch_growth(lambda: open_engine(spec), feeds, openings=10)
    assert growth.host_mib < 32
    assert growth.gpu_mib < 32
    assert growth.reopened_mib < 64


def test_it_runs_in_a_child_as_in_a_build(spec: EngineSpec) -> None:
    x = draw(3)
    with EngineProcess(spec) as process:
        got = process({"x": x})["y"]
        assert process.prepare({"x": x}) > 0
        assert (process.time(5) > 0).all()
    expected = answer(x)
    assert float(np.abs(got - expected).max()) < 1e-2 * float(np.abs(expected).max())
