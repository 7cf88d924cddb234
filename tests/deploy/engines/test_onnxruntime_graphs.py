"""ONNX Runtime with CUDA graphs: what of it can be followed without a GPU; see host_graphs.py."""

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from host_graphs import Session, Value
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from tiny import answer, draw

import deploy.engines.onnxruntime_cuda as cuda
from deploy.engines import EngineSpec, open_engine
from deploy.engines.availability import find_obstacle
from deploy.engines.capture_gate import GATE
from deploy.engines.device import needs_gpu
from deploy.engines.graph_plans import explain_no_graphs
from deploy.engines.layers import read_layers
from deploy.engines.onnxruntime_cuda import choose_options
from deploy.engines.onnxruntime_graphs import OnnxRuntimeGraphsEngine
from deploy.engines.shape_sessions import MAX_SESSIONS
from export.errors import EngineError
from export.gpu import GpuFacts

LIMIT = 20
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def _graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Session.forget()
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "OrtValue", Value)
    monkeypatch.setattr(cuda, "has_cuda_provider", lambda: True)
    yield
    gc.collect()
    assert not [session for session in Session.opened if session() is not None]
    assert not threads()


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("deploy-cuda-graphs")]


def spec(path: Path, variant: str = "cuda-graphs") -> EngineSpec:
    return EngineSpec("onnxruntime", "fp16", str(path), 1, variant=variant)


def opened(path: Path) -> OnnxRuntimeGraphsEngine:
    engine = open_engine(spec(path))
    assert isinstance(engine, OnnxRuntimeGraphsEngine)
    return engine


def kinds() -> list[str]:
    return [kind for _, kind in Session.runs]


def test_answers_are_right_at_every_batch_in_any_order(tiny_onnx: Path) -> None:
    with opened(tiny_onnx) as engine:
        for seed, batch in enumerate((1, 32, 5, 1, 7, 32, 1, 1, 5)):
            x = draw(batch, seed)
            np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), **CLOSE)
    numbers = {number for number, _ in Session.runs} - {-1}
    assert numbers == {1, 2, 3, 4}  # one graph for each batch size
    assert kinds().count("capture") == 4


def test_after_the_first_call_of_a_shape_every_call_is_one_replay(tiny_onnx: Path) -> None:
    with opened(tiny_onnx) as engine:
        engine({"x": draw(3)})
        assert kinds()[:3] == ["plain", "plain", "capture"]
        Session.runs.clear()
        for seed in range(10):
            engine({"x": draw(3, seed)})
        assert Session.runs == [(1, "replay")] * 10


def test_an_answer_belongs_to_the_caller(tiny_onnx: Path) -> None:
    with opened(tiny_onnx) as engine:
        first = engine({"x": draw(3, 1)})["logits"]
        kept = first.copy()
        for seed in range(2, 6):
            engine({"x": draw(3, seed)})
        np.testing.assert_array_equal(first, kept)


def test_more_shapes_than_there_are_graphs_run_plainly(tiny_onnx: Path) -> None:
    with opened(tiny_onnx) as engine:
        for batch in (*range(1, MAX_SESSIONS + 5), 1, MAX_SESSIONS + 4, 2):
            x = draw(batch, batch)
            np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), **CLOSE)
        assert {number for number, _ in Session.runs} == {-1, *range(1, MAX_SESSIONS + 1)}
        assert Session.runs[-3:] == [(1, "replay"), (-1, "plain"), (2, "replay")]
        gc.collect()
        assert len(Value.alive) == 2 * MAX_SESSIONS  # an input and an output for each


def test_large_weights_are_copied_for_fewer_shapes(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = onnx.load(tiny_onnx).graph.initializer
    size = sum(onnx.numpy_helper.to_array(each).nbytes for each in weights)
    for limit, graphs in ((3 * size, 3), (4 * size - 1, 3), (1, 1)):
        monkeypatch.setattr("deploy.engines.shape_sessions._MAX_WEIGHTS", limit)
        Session.forget()
        with opened(tiny_onnx) as engine:
            for batch in (1, 2, 3, 4, 5, 1):
                x = draw(batch, batch)
                np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), **CLOSE)
        assert kinds().count("capture") == graphs
        assert len(Session.opened) == graphs + 1  # and one without graphs


def test_shapes_for_whose_weights_there_is_no_room_run_plainly(tiny_onnx: Path) -> None:
    with opened(tiny_onnx) as engine:
        engine({"x": draw(1)})
        engine({"x": draw(2)})
        Session.failures = {"open": "out of memory"}
        for batch in (3, 1, 2, 3, 4):
            x = draw(batch, batch)
            np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), **CLOSE)
        assert Session.runs[-5:] == [
            (-1, "plain"),
            (1, "replay"),
            (2, "replay"),
            (-1, "plain"),
            (-1, "plain"),
        ]
        assert len(Session.opened) == 3
    with pytest.raises(EngineError, match=r"cannot open .*: out of memory"):
        opened(tiny_onnx)


@pytest.mark.parametrize("room", [1, 2, 3])
def test_graphs_are_given_up_where_a_shape_would_have_no_memory_else(
    tiny_onnx: Path, room: int
) -> None:
    with opened(tiny_onnx) as engine:
        Session.room = room
        for batch in (1, 2, 3, 4, 3, 2, 1):
            x = draw(batch, batch)
            np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), **CLOSE)
        assert kinds()[-4:] == ["plain"] * (5 - room) + ["replay"] * (room - 1)
        gc.collect()
        assert len([each for each in Session.opened if each() is not None]) <= room
    Session.room = None


def test_a_new_session_that_cannot_run_a_shape_is_the_last_one_that_is_tried(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens, and then there is no memory for what lies between its layers."""
    run = Session.run_with_iobinding

    def lack(session: Session, *args: object) -> None:
        graphs = Session.asked[-1][0][1]["enable_cuda_graph"] == "1"
        if graphs and len(Session.opened) > 1 and Session.opened[-1]() is session:
            raise Fail("out of memory")
        run(session, *args)

    monkeypatch.setattr(Session, "run_with_iobinding", lack)
    with opened(tiny_onnx) as engine:
        for batch in (1, 2, 2, 3, 1):
            x = draw(batch, batch)
            np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), **CLOSE)
        assert len(Session.opened) == 3  # with a graph, the one that failed, without graphs
        assert kinds()[-1] == "replay"


def test_a_shape_that_the_model_refuses_takes_no_graph_from_others(tiny_onnx: Path) -> None:
    with opened(tiny_onnx) as engine:
        engine({"x": draw(1)})
        Session.failures = {"plain": "shapes do not fit"}
        for _ in range(3):
            with pytest.raises(EngineError, match="failed on this input: shapes do not fit"):
                engine({"x": draw(2)})
        assert len(Session.opened) == 3  # the first refusal looked at all ways, and the others not
        Session.failures = {}
        for batch in (2, 3, 2, 3):
            engine({"x": draw(batch)})
        assert kinds()[-2:] == ["replay", "replay"]


def test_others_wait_for_a_capture_and_not_for_what_goes_before_it(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone: list[str] = []
    real = Session._run_bound

    def note(session: Session, binding: Any, number: int) -> None:
        real(session, binding, number)
        if GATE._alone:
            alone.append(Session.runs[-1][1])

    monkeypatch.setattr(Session, "_run_bound", note)
    with opened(tiny_onnx) as engine:
        for batch in (1, 2, 1, 2):
            engine({"x": draw(batch)})
    assert alone == ["capture", "replay", "replay"] * 2


def test_calls_from_many_threads_are_run_by_one(tiny_onnx: Path) -> None:
    with opened(tiny_onnx) as engine, ThreadPoolExecutor(8) as pool:
        meeting = threading.Barrier(8)

        def work(seed: int) -> None:
            meeting.wait(LIMIT)
            for step in range(20):
                x = draw(1 + (seed + step) % 6, seed)
                np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), **CLOSE)

        for future in [pool.submit(work, seed) for seed in range(8)]:
            future.result(LIMIT)
        assert len(threads()) == 1
    assert kinds().count("capture") == 6


def test_wrong_inputs_are_refused_before_anything_is_bound(tiny_onnx: Path) -> None:
    x = draw(2)
    with opened(tiny_onnx) as engine:
        for feeds, message in (
            ({"x": x.astype(np.float64)}, "the engine takes float32"),
            ({"x": x[:0]}, r"has shape \[0, "),
            ({"x": x, "y": x}, "There is no input 'y'"),
            ({}, "Input 'x' is missing"),
        ):
            with pytest.raises(EngineError, match=message):
                engine(feeds)
            with pytest.raises(EngineError, match=message):
                engine.time_device(feeds, 1)
        assert Session.runs == []
        assert not Value.alive


def test_inputs_of_any_layout_are_taken(tiny_onnx: Path) -> None:
    x = draw(8)
    with opened(tiny_onnx) as engine:
        for view in (x[::2], np.asfortranarray(x), x[::-1]):
            np.testing.assert_allclose(engine({"x": view})["logits"], answer(view), **CLOSE)


@pytest.mark.parametrize("kind", ["plain", "replay"])
def test_a_run_that_fails_is_raised_where_it_was_called(tiny_onnx: Path, kind: str) -> None:
    x = draw(2)
    with opened(tiny_onnx) as engine:
        if kind == "replay":
            engine({"x": x})
        Session.failures = {kind: "out of memory"}
        with pytest.raises(EngineError, match="failed on this input: out of memory"):
            engine({"x": x})
        Session.failures = {}
        np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), **CLOSE)


def test_a_capture_that_fails_ends_the_engine_and_says_so(tiny_onnx: Path) -> None:
    with opened(tiny_onnx) as engine:
        engine({"x": draw(2)})
        Session.failures = {"capture": "operation not permitted when stream is capturing"}
        message = r"cannot capture .*not permitted.*Open it without CUDA graphs, as cuda-nhwc"
        with pytest.raises(EngineError, match=message):
            engine({"x": draw(3)})
        gc.disable()
        try:
            assert len(Session.opened) == 2
            assert not any(each() for each in Session.opened)  # at once: they keep others out
        finally:
            gc.enable()
        assert not Value.alive
        Session.failures = {}
        for batch in (2, 3):
            with pytest.raises(EngineError, match=message):
                engine({"x": draw(batch)})


def test_closing_waits_for_calls_and_refuses_later_ones(tiny_onnx: Path) -> None:
    x, engine = draw(2), opened(tiny_onnx)
    with ThreadPoolExecutor(4) as pool:
        with engine:
            engine({"x": x})
            Session.seconds = 0.1
            calls = [pool.submit(engine, {"x": x}) for _ in range(4)]
            until = time.monotonic() + LIMIT
            while len(Session.runs) < 6 and time.monotonic() < until:  # one call is in, others wait
                time.sleep(0.01)
        found = [call.exception(LIMIT) or call.result() for call in calls]
    assert not threads()
    done = [each for each in found if isinstance(each, dict)]
    refused = [each for each in found if not isinstance(each, dict)]
    assert done
    for each in done:
        np.testing.assert_allclose(each["logits"], answer(x), **CLOSE)
    assert all(isinstance(each, EngineError) and "closed" in str(each) for each in refused)
    with pytest.raises(EngineError, match="closed"):
        engine({"x": x})
    with pytest.raises(EngineError, match="closed"):
        engine.time_device({"x": x}, 1)


def test_time_on_the_device_is_of_as_many_replays_as_were_asked_for(tiny_onnx: Path) -> None:
    with opened(tiny_onnx) as engine:
        start = time.perf_counter()
        times = engine.time_device({"x": draw(64)}, 20)
        assert len(times) == 20
        assert 0 < sum(times) < time.perf_counter() - start
        assert Session.runs[-20:] == [(1, "replay")] * 20
        for batch in range(1, MAX_SESSIONS):
            engine({"x": draw(batch)})
        assert len(engine.time_device({"x": draw(40)}, 5)) == 5
        assert Session.runs[-5:] == [(-1, "plain")] * 5


def write(path: Path, nodes: list[onnx.NodeProto], output: tuple[int, list[str]]) -> Path:
    shape = ["batch", 3]
    inputs = [
        helper.make_tensor_value_info("mask", TensorProto.BOOL, shape),
        helper.make_tensor_value_info("ids", TensorProto.INT64, shape),
    ]
    graph = helper.make_graph(nodes, "net", inputs, [helper.make_tensor_value_info("y", *output)])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_inputs_of_other_types(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Neg", ["ids"], ["negative"]),
        helper.make_node("Where", ["mask", "ids", "negative"], ["y"]),
    ]
    path = write(tmp_path / "where.onnx", nodes, (TensorProto.INT64, ["batch", "3"]))
    rng = np.random.default_rng(0)
    with opened(path) as engine:
        for batch in (1, 4, 1, 4):
            mask, ids = rng.random((batch, 3)) > 0.5, rng.integers(-9, 9, (batch, 3))
            found = engine({"mask": mask, "ids": ids})["y"]
            np.testing.assert_array_equal(found, np.where(mask, ids, -ids))


def test_outputs_whose_size_depends_on_data_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Identity", ["ids"], ["unused"]),
        helper.make_node("NonZero", ["mask"], ["y"]),
    ]
    path = write(tmp_path / "nonzero.onnx", nodes, (TensorProto.INT64, ["rank", "count"]))
    with pytest.raises(EngineError, match="how much NonZero returns depends on data"):
        opened(path)


def test_an_input_that_the_cpu_reads_is_refused(tiny_onnx: Path) -> None:
    Session.readers = "Cpu"
    with pytest.raises(EngineError, match="input 'x' is read by the CPU"):
        opened(tiny_onnx)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(EngineError, match="cannot open"):
        opened(path)


def test_an_onnxruntime_that_is_too_old_is_refused(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "deploy.engines.availability.read_gpu",
        lambda: GpuFacts("NVIDIA H100", "580.159", "9.0", "13.0"),
    )
    assert find_obstacle("onnxruntime", "fp16", "cuda-graphs") is None
    for version in ("1.22.1", "1.9.0"):
        monkeypatch.setattr(onnxruntime, "__version__", version)
        found = str(find_obstacle("onnxruntime", "fp16", "cuda-graphs"))
        assert found == explain_no_graphs()
        assert f"ONNX Runtime {version}" in found
        assert "onnxruntime-gpu>=1.23" in found
        assert find_obstacle("onnxruntime", "fp16", "cuda-nhwc") is None
        with pytest.raises(EngineError, match=r"onnxruntime-gpu>=1\.23"):
            opened(tiny_onnx)
    for version in ("1.23.0", "1.32.0.dev20261101", "2.0.0"):
        monkeypatch.setattr(onnxruntime, "__version__", version)
        assert explain_no_graphs() is None


def test_graphs_are_a_variant_of_their_own(tiny_onnx: Path) -> None:
    graphs = spec(tiny_onnx)
    assert graphs.name == "onnxruntime-fp16-cuda-graphs"
    assert needs_gpu(graphs)
    options = choose_options(graphs)
    assert (options["enable_cuda_graph"], options["prefer_nhwc"]) == ("1", "1")
    for variant in ("cuda", "cuda-nhwc"):
        assert choose_options(replace(graphs, variant=variant))["enable_cuda_graph"] == "0"


def test_layers_are_those_of_the_session_without_graphs(tiny_onnx: Path) -> None:
    assert read_layers(spec(tiny_onnx), {"x": draw(2)})
    (provider, options), _ = Session.asked[-1]
    assert provider == "CUDAExecutionProvider"
    assert (options["enable_cuda_graph"], options["prefer_nhwc"]) == ("0", "1")
    assert Session.runs == []
