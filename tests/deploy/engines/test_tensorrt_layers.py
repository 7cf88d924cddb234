"""The layers of a TensorRT engine: what its inspector says, with the times of its profiler.

On a GPU made of host memory, and on documents as TensorRT writes them. The same on a real GPU is in
test_tensorrt_gpu.py.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from host_gpu import HostGpu, Model, make_trt

import deploy.engines.tensorrt_native as natives
from deploy.engines import EngineSpec
from deploy.engines.layer_times import LayerTimes
from deploy.engines.layers import ExecutedLayer, read_layers
from deploy.engines.tensorrt import TensorRtEngine
from deploy.engines.tensorrt_layers import match_layers, profile_engine
from deploy.engines.tensorrt_native import NativeEngine, PlanFile
from export.errors import EngineError
from export.tensorrt.inspection import read_inspection
from export.tensorrt.products import PRODUCTS

SPEC = EngineSpec("tensorrt", "fp32", "model.engine", 1)
FEEDS = {"x": np.ones((2, 3), np.float32), "s": np.array(1, np.float32)}


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def product(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def gpu() -> HostGpu:
    return HostGpu()


@pytest.fixture
def engine(gpu: HostGpu, product: str, monkeypatch: pytest.MonkeyPatch) -> TensorRtEngine:
    trt = make_trt(gpu, Model())
    monkeypatch.setattr(natives, "import_product", lambda _: trt)
    native = NativeEngine(PRODUCTS[product], PlanFile(b"plan", "model.engine"))
    return TensorRtEngine(native, gpu.open_memory, SPEC)


def test_layers_come_with_their_times_and_nothing_is_captured(
    gpu: HostGpu, engine: TensorRtEngine
) -> None:
    with engine:
        layers = profile_engine(engine, FEEDS)
        assert layers == (
            ExecutedLayer("Mul_0 + Add_0", "kgen", "fp32", 0.0005, False, ("Mul_0", "Add_0")),
            ExecutedLayer(
                "Reformatting CopyNode for Output",
                "Reformat",
                "fp32",
                0.00025,
                True,
                ("Reformatting CopyNode for Output",),
            ),
        )
        assert (gpu.captures, gpu.launches) == (0, 0)
        np.testing.assert_array_equal(engine(FEEDS)["twice"], np.full((2, 3), 3))
    del engine


def test_profiling_leaves_nothing_behind(gpu: HostGpu, engine: TensorRtEngine) -> None:
    with engine:
        before = dict(gpu.open)
        profile_engine(engine, FEEDS)
        assert gpu.open == before


def test_what_does_not_fit_is_refused_before_the_gpu_is_asked(engine: TensorRtEngine) -> None:
    with engine, pytest.raises(EngineError, match="No optimization profile fits"):
        profile_engine(engine, {**FEEDS, "x": np.ones((99, 3), np.float32)})
    with pytest.raises(EngineError, match="closed"):
        profile_engine(engine, FEEDS)


def test_the_gpu_s_own_time_is_taken_for_every_call(engine: TensorRtEngine) -> None:
    with engine:
        assert engine.time_device(FEEDS, 5) == [0.0] * 5  # the clock of this GPU stands still


def test_a_file_that_was_not_built_for_this_machine_is_not_profiled(
    tmp_path: Path, product: str
) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(b"plan")
    with pytest.raises(EngineError, match=r"no NVIDIA GPU|does not say what it was built for"):
        read_layers(EngineSpec(product, "fp32", str(path), 1), FEEDS)


def document(*layers: object) -> str:
    return json.dumps({"Layers": layers, "Bindings": ["x", "y"]})


CONV = {
    "Name": "conv1 + relu1 [profile 1]",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
    "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}],
}


def test_names_are_matched_over_profiles_and_spaces() -> None:
    inspected = read_inspection(document({**CONV, "Name": "conv1  + relu1"}, CONV))
    (layer,) = match_layers(inspected, {"conv1 + relu1 [profile 1]": 2.0})
    assert (layer.seconds, layer.precision, layer.op) == (2.0, "int8", "CaskConvolution")


def test_layers_that_took_no_time_were_not_executed() -> None:
    inspected = read_inspection(document(CONV, {**CONV, "Name": "never"}))
    assert [layer.name for layer in match_layers(inspected, {"conv1 + relu1": 1.0})] == [
        CONV["Name"]
    ]


def test_a_time_without_a_layer_is_kept_under_its_own_name() -> None:
    inspected = read_inspection(document(CONV))
    times = {"conv1 + relu1": 1.0, "fc1 + add1": 0.5, "Reformatting CopyNode for y": 0.1}
    layers = match_layers(inspected, times)
    assert sum(layer.seconds for layer in layers) == pytest.approx(1.6)
    assert layers[1] == ExecutedLayer("fc1 + add1", "", "other", 0.5, False, ("fc1", "add1"))
    assert layers[2].reformat


def test_without_any_time_there_is_no_census() -> None:
    with pytest.raises(EngineError, match="no times"):
        match_layers(read_inspection(document(CONV)), {})


def test_times_are_medians_of_calls_after_warm_up_and_loops_add_up() -> None:
    times = LayerTimes()
    times.report("before", 9.0)
    for call in (100.0, 1.0, 2.0, 30.0):
        times.begin()
        times.report("a", call)
        times.report("a", call)
    times.report("b", 5.0)
    assert times.medians(warmup=1) == {"a": 4.0, "b": 5.0}
