"""ONNX Runtime on CUDA: what of it can be followed without a GPU.

Sessions are real ones on the CPU, which say that they have the provider that was asked for.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tiny import answer, draw

import deploy.engines.onnxruntime_cuda as cuda
from deploy.engines import EngineSpec, open_engine
from deploy.engines.availability import find_obstacle
from deploy.engines.device import NO_GPU, needs_gpu
from deploy.engines.layers import read_layers
from deploy.engines.onnxruntime_cuda import (
    CUDA_PROVIDER,
    OnnxRuntimeCudaEngine,
    choose_options,
    explain_no_provider,
    has_cuda_provider,
)
from deploy.measuring.census import take_census
from export.artifacts import TensorSpec
from export.errors import EngineError
from export.gpu import GpuFacts

CPU_PROVIDER = "CPUExecutionProvider"
H100 = GpuFacts("NVIDIA H100", "580.159", "9.0", "13.0")
REAL = onnxruntime.InferenceSession


@pytest.fixture(autouse=True)
def _forget_libraries() -> Iterator[None]:
    cuda.load_libraries.cache_clear()
    yield
    cuda.load_libraries.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The providers of every session, which is on the CPU whatever they are."""
    seen: list[Any] = []

    class Session(REAL):  # type: ignore[misc, valid-type]
        def __init__(self, path: str, options: Any, providers: list[Any], **_: object) -> None:
            seen.append(providers)
            super().__init__(path, options, providers=[CPU_PROVIDER])

        def get_providers(self) -> list[str]:
            return [each if isinstance(each, str) else each[0] for each in seen[-1]]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(cuda, "has_cuda_provider", lambda: True)
    monkeypatch.setattr(OnnxRuntimeCudaEngine, "_device", "cpu")
    return seen


def spec(path: Path, precision: str = "tf32", variant: str = "cuda") -> EngineSpec:
    return EngineSpec("onnxruntime", precision, str(path), 1, variant=variant)


def test_an_engine_on_the_gpu_is_opened_on_the_cuda_provider_and_the_cpu_behind_it(
    tiny_onnx: Path, asked: list[Any]
) -> None:
    x = draw(5)
    with open_engine(spec(tiny_onnx)) as engine:
        assert isinstance(engine, OnnxRuntimeCudaEngine)
        np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=1e-5, atol=1e-5)
    assert [each[0][0] for each in asked] == [CUDA_PROVIDER]
    assert asked[0][1:] == [CPU_PROVIDER]


def test_fp32_is_computed_without_tensorfloat_and_all_else_with_it(tiny_onnx: Path) -> None:
    found = {kind: choose_options(spec(tiny_onnx, kind)) for kind in ("fp32", "tf32", "fp16")}
    assert {kind: options["use_tf32"] for kind, options in found.items()} == {
        "fp32": "0",
        "tf32": "1",
        "fp16": "1",
    }


def test_all_algorithms_are_tried_only_where_no_other_shape_can_come(tiny_onnx: Path) -> None:
    fixed, open_ended = TensorSpec("x", (2, 4), "float32"), TensorSpec("x", ("batch", 4), "float32")
    how = "cudnn_conv_algo_search"
    plain = spec(tiny_onnx)
    assert choose_options(replace(plain, inputs=(fixed,)))[how] == "EXHAUSTIVE"
    assert choose_options(replace(plain, inputs=(fixed, open_ended)))[how] == "HEURISTIC"
    assert choose_options(plain)[how] == "HEURISTIC"  # the file alone may tell otherwise


def test_channels_last_is_a_variant_of_its_own(tiny_onnx: Path) -> None:
    last = spec(tiny_onnx, "fp16", "cuda-nhwc")
    assert last.name == "onnxruntime-fp16-cuda-nhwc"
    assert choose_options(last)["prefer_nhwc"] == "1"
    assert choose_options(replace(last, variant="cuda"))["prefer_nhwc"] == "0"
    assert needs_gpu(last)
    assert not needs_gpu(replace(last, variant="dynamic"))


def test_time_on_the_device_is_of_as_many_runs_as_were_asked_for(
    tiny_onnx: Path, asked: list[Any]
) -> None:
    feeds = {"x": draw(64)}
    with open_engine(spec(tiny_onnx)) as engine:
        assert isinstance(engine, OnnxRuntimeCudaEngine)
        start = time.perf_counter()
        times = engine.time_device(feeds, 20)
        assert len(times) == 20
        assert 0 < sum(times) < time.perf_counter() - start
        with pytest.raises(EngineError, match="the engine takes float32"):
            engine.time_device({"x": draw(2).astype(np.float64)}, 1)
    with pytest.raises(EngineError, match="closed"):
        engine.time_device(feeds, 1)


def test_calls_from_many_threads(tiny_onnx: Path, asked: list[Any]) -> None:
    with open_engine(spec(tiny_onnx)) as engine, ThreadPoolExecutor(4) as pool:

        def work(seed: int) -> None:
            x = draw(1 + seed % 5, seed)
            np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=1e-4, atol=1e-4)

        list(pool.map(work, range(100)))


def test_what_the_cpu_runs_of_an_engine_for_the_gpu_is_told(
    tiny_onnx: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    feeds = {"x": draw(2)}
    layers = read_layers(spec(tiny_onnx), feeds)
    assert layers
    assert all(layer.on_cpu for layer in layers)
    census = take_census(spec(tiny_onnx), feeds)
    assert {place.on_cpu for place in census.remainder} == {True}
    assert sum(place.share for place in census.remainder) == pytest.approx(1)
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ


def test_an_engine_for_the_cpu_leaves_nothing_to_it(tiny_onnx: Path) -> None:
    census = take_census(spec(tiny_onnx, "fp32", ""), {"x": draw(2)})
    assert census.remainder == ()


@pytest.mark.skipif(has_cuda_provider(), reason="this ONNX Runtime has its CUDA provider")
def test_cuda_without_its_provider_says_what_to_install(tiny_onnx: Path) -> None:
    with pytest.raises(EngineError, match=r"no CUDA provider.*pip install onnxruntime-gpu"):
        open_engine(spec(tiny_onnx))


def test_a_cuda_provider_that_does_not_load_is_not_taken_for_the_cpu(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime itself goes on with the CPU, and would be measured as the GPU."""

    def on_cpu(path: str, options: object, providers: list[Any], **_: object) -> object:
        return REAL(path, options, providers=providers[1:])

    def preload() -> None:
        print("Failed to load libcublasLt.so.13: no such file")

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_cpu)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(cuda, "has_cuda_provider", lambda: True)
    with pytest.raises(EngineError, match=r"could not load it: .*libcublasLt\.so\.13"):
        open_engine(spec(tiny_onnx))


def test_an_obstacle_is_said_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.engines.availability.read_gpu", lambda: None)
    assert find_obstacle("onnxruntime", "fp16", "cuda") == NO_GPU
    assert find_obstacle("onnxruntime", "fp32") is None
    monkeypatch.setattr("deploy.engines.availability.read_gpu", lambda: H100)
    monkeypatch.setattr(cuda, "has_cuda_provider", lambda: False)
    found = find_obstacle("onnxruntime", "fp16", "cuda-nhwc")
    assert "pip install onnxruntime-gpu" in str(found)
    monkeypatch.setattr(cuda, "has_cuda_provider", lambda: True)
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    assert find_obstacle("onnxruntime", "fp16", "cuda") is None
    assert explain_no_provider(replace(H100, cuda=None)) is None
    old = explain_no_provider(replace(H100, driver="550.1", cuda="12.4"))
    assert "is made for CUDA 13, and the NVIDIA driver 550.1 of this machine offers 12.4" in str(
        old
    )
