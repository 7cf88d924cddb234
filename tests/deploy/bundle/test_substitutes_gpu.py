"""An engine for other GPUs on a machine with a real one. Written where there was none; see
docs/gpu.md."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

from rtx import NAME, OPTIONS, make_model, write_bundle
from tiny import Cli, answer, draw

from deploy.bundle.folder import Bundle, load, read_bundle
from deploy.bundle.preflight import read_host
from deploy.bundle.substitutes import explain_unfit, find_runnable
from deploy.engines import EngineSpec
from deploy.engines.device import CUDA
from deploy.engines.process import EngineProcess
from deploy.engines.tensorrt_native import NativeEngine
from export.errors import DeployError, EngineError
from export.gpu import GpuFacts, read_gpu
from export.tensorrt import build_engine
from export.tensorrt.options import RTX_TARGETS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu() -> GpuFacts:
    found = read_gpu()
    assert found is not None  # the marker has seen to it
    return found


@pytest.fixture(scope="module")
def path(gpu: GpuFacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose engine is for another GPU than this machine's."""
    folder = tmp_path_factory.mktemp("engine")
    target = "SM89" if gpu.target != "SM89" else "SM120"
    options = replace(OPTIONS, targets=(target,))
    built = build_engine(make_model(folder), folder / "model.engine", options=options)
    assert built.record.gpu == gpu.name
    assert built.record.cuda == gpu.cuda
    return write_bundle(folder / "gpu.deploy", built.path.read_bytes(), built.record)


@pytest.fixture
def bundle(path: Path) -> Bundle:
    return read_bundle(path)


@pytest.fixture
def _nothing_is_deserialized(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("an engine for another GPU was to be deserialized")

    monkeypatch.setattr(NativeEngine, "__init__", refuse)


@pytest.mark.usefixtures("_nothing_is_deserialized")
def test_an_engine_for_another_gpu_is_refused_in_words(bundle: Bundle, gpu: GpuFacts) -> None:
    reason = explain_unfit(bundle, NAME, read_host()) or ""
    assert f"and {gpu.name} is {gpu.target}." in reason
    with pytest.raises(EngineError, match=rf"{gpu.name} is {gpu.target}"):
        load(bundle.path, fallback=False)


def cuda_works(bundle: Bundle) -> bool:
    """Whether ONNX Runtime runs the bundle's float32 model on the GPU."""
    path = str(bundle.path / "model.onnx")
    try:
        with EngineProcess(EngineSpec("onnxruntime", "fp32", path, 1, variant=CUDA)) as process:
            process({"x": draw(1)})
    except DeployError:
        return False
    return True


@pytest.mark.usefixtures("_nothing_is_deserialized")
def test_onnx_answers_in_its_place_on_the_gpu_where_it_can(bundle: Bundle) -> None:
    x = draw(3)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with load(bundle.path, threads=1) as engine:
            np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=1e-3, atol=1e-3)
    (warning,) = [str(each.message) for each in heard if NAME in str(each.message)]
    where = "the GPU" if cuda_works(bundle) else "the CPU"
    assert f"onnxruntime-fp32 runs in its place, on {where}." in warning


def test_built_again_it_runs_or_says_why_not(bundle: Bundle, gpu: GpuFacts) -> None:
    spec, warning = find_runnable(
        bundle, bundle.spec(NAME, threads=1), rebuild=True, fallback=True, host=read_host()
    )
    if gpu.target in RTX_TARGETS:
        assert (spec.engine, warning) == ("tensorrt_rtx", None)
    else:
        assert spec.engine == "onnxruntime"
        assert f"has no target '{gpu.target}'" in str(warning)


def test_the_commands_say_the_same(path: Path, gpu: GpuFacts, cli: Cli) -> None:
    code, out, err = cli("verify", path, "--threads", 2)
    assert code == 1, out + err  # the winner was not verified
    assert gpu.target in out
    code, out, err = cli("verify", path, "--fallback", "--threads", 2)
    assert code == 0, out + err
    code, out, err = cli("bench", path, "--measure-seconds", "0.5", "--threads", 2)
    assert code == 0, out + err
    assert gpu.target in out + err
