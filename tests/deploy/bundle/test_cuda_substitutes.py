"""An engine of ONNX Runtime for the GPU gives way where there is none, and says what it lacks."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import Cli, answer, draw, fill_stage

import deploy.engines.onnxruntime_cuda as cuda
from deploy.bundle import substitutes
from deploy.bundle.folder import FALLBACK, GOLDEN, Bundle, load, read_bundle
from deploy.bundle.golden import read_golden
from deploy.bundle.manifest import BundledEngine, write_manifest
from deploy.bundle.preflight import Host, read_host
from deploy.bundle.staging import stage_bundle
from deploy.bundle.substitutes import Substitution, explain_unfit, find_runnable, settle_unfit
from deploy.commands.finishing import finish
from deploy.commands.verification import verify
from deploy.config import BuildConfig
from deploy.engines import EngineSpec
from export.errors import EngineError
from export.gpu import GpuFacts, read_gpu

NAME = "onnxruntime-fp16-cuda"
H100 = GpuFacts("NVIDIA H100", "580.159", "9.0", "13.0")
NO_GPU = pytest.mark.skipif(read_gpu() is not None, reason="there is an NVIDIA GPU")


def make_bundle(target: Path, *, winner: str = NAME, not_run: str | None = None) -> Path:
    """A bundle with an engine for the GPU that opens the float32 file."""
    with stage_bundle(target) as stage:
        fill_stage(stage)
        old = read_bundle(stage).manifest
        golden = read_golden(stage / GOLDEN)
        golden.outputs[NAME] = golden.outputs[FALLBACK]
        golden.save(stage / GOLDEN)
        file = old.engines[FALLBACK].file
        entry = BundledEngine("onnxruntime", "fp16", file, 2e-2, not_run, variant="cuda")
        write_manifest(
            stage,
            created=old.created,
            model=old.model,
            winner=winner,
            engines={**old.engines, NAME: entry},
            inputs=old.inputs,
            outputs=old.outputs,
            structure=old.structure,
            machine=old.machine,
        )
    return target


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return read_bundle(make_bundle(tmp_path / "gpu.deploy"))


def on(gpu: GpuFacts | None) -> Host:
    return replace(read_host(), gpu=gpu)


def run(
    bundle: Bundle, host: Host, *, rebuild: bool = False, fallback: bool = True
) -> tuple[EngineSpec, str | None]:
    spec = bundle.spec(NAME, threads=1)
    return find_runnable(bundle, spec, rebuild=rebuild, fallback=fallback, host=host)


@pytest.mark.parametrize("rebuild", [False, True])
def test_without_a_gpu_the_float_model_runs_on_the_cpu_with_a_sentence(
    bundle: Bundle, rebuild: bool
) -> None:
    spec, warning = run(bundle, on(None), rebuild=rebuild)
    assert (spec.name, spec.variant) == (FALLBACK, "")
    assert f"{NAME} cannot run here; {FALLBACK} runs in its place, on the CPU. " in str(warning)
    assert "no NVIDIA GPU was found here (nvidia-smi shows none)" in str(warning)
    with pytest.raises(EngineError, match="no NVIDIA GPU was found here"):
        run(bundle, on(None), fallback=False)


def test_without_the_provider_it_is_said_what_to_install(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "has_cuda_provider", lambda: False)
    reason = explain_unfit(bundle, NAME, on(H100))
    assert "has no CUDA provider" in str(reason)
    assert explain_unfit(bundle, FALLBACK, on(H100)) is None
    spec, _ = run(bundle, on(H100))
    assert (spec.name, spec.variant) == (FALLBACK, "")


@pytest.mark.parametrize(
    ("failing", "variant"),
    [((), "cuda"), ((NAME,), "cuda"), ((NAME, f"{FALLBACK}-cuda"), "")],
    ids=["it runs", "the float model runs on the GPU", "nothing runs on the GPU"],
)
def test_what_the_machine_has_is_tried_in_a_child(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, failing: tuple[str, ...], variant: str
) -> None:
    def try_out(_: Bundle, spec: EngineSpec, **__: object) -> str | None:
        return "cuDNN is missing." if spec.name in failing else None

    monkeypatch.setattr(cuda, "has_cuda_provider", lambda: True)
    monkeypatch.setattr(substitutes, "_try_out", try_out)
    spec, warning = run(bundle, on(H100))
    assert spec.variant == variant
    assert spec.precision == ("fp32" if failing else "fp16")
    assert (warning is None) == (not failing)
    assert not failing or "cuDNN is missing." in str(warning)


@NO_GPU
def test_load_and_verify_say_so(bundle: Bundle) -> None:
    x = draw(3)
    with (
        pytest.warns(UserWarning, match=rf"{NAME} cannot run here; .* no NVIDIA GPU"),
        load(bundle.path, threads=1) as engine,
    ):
        np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(bundle.path, engine=FALLBACK, threads=1)
    results = {result.name: result for result in verify(bundle, threads=1)}
    assert "no NVIDIA GPU" in str(results[NAME].unfit)
    assert results[FALLBACK].holds
    rebuilt, lost = settle_unfit(bundle, Substitution(rebuild=True), threads=1)
    assert rebuilt == {}
    assert list(lost) == [NAME]


@NO_GPU
def test_eager_that_is_to_run_on_a_gpu_gives_way_as_well(
    torch_bundle: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = dict(vars(read_bundle(torch_bundle).manifest))
    values.pop("files")
    (torch_bundle / "manifest.json").unlink()
    eager = replace(values["engines"]["torch"], variant="cuda")
    write_manifest(torch_bundle, **{**values, "engines": {**values["engines"], "torch": eager}})
    x = draw(3)
    with (
        pytest.warns(UserWarning, match=rf"torch cannot run here; {FALLBACK} .* no NVIDIA GPU"),
        load(torch_bundle, threads=1) as engine,
    ):
        np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(EngineError, match="no NVIDIA GPU was found here"):
        load(torch_bundle, threads=1, fallback=False)
    code, out, err = cli("verify", torch_bundle, "--threads", "1")
    assert code != 0
    assert "no NVIDIA GPU was found here" in out + err
    code, out, err = cli("verify", torch_bundle, "--threads", "1", "--fallback")
    assert code == 0, out + err


def test_eager_gives_way_where_its_torch_has_no_cuda(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = BundledEngine("torch", "fp32", "model.onnx", 1e-4, variant="cuda")
    engines = {**bundle.manifest.engines, "torch": entry}
    eager = replace(bundle, manifest=replace(bundle.manifest, engines=engines))
    monkeypatch.setattr(substitutes, "explain_no_cuda", lambda _: "torch was built without CUDA.")
    monkeypatch.setattr(substitutes, "explain_no_provider", lambda _: "no provider")
    spec, warning = find_runnable(
        eager, eager.spec("torch"), rebuild=False, fallback=True, host=on(H100)
    )
    assert spec.name == FALLBACK
    assert "torch was built without CUDA." in str(warning)
    monkeypatch.setattr(substitutes, "explain_no_cuda", lambda _: None)
    spec, warning = find_runnable(
        eager, eager.spec("torch"), rebuild=False, fallback=True, host=on(H100)
    )
    assert (spec.name, spec.variant, warning) == ("torch", "cuda", None)


@NO_GPU
@pytest.mark.parametrize("served", [(), ("--no-fallback",)])
def test_a_server_without_a_gpu_says_that_there_is_none(
    bundle: Bundle, cli: Cli, served: tuple[str, ...]
) -> None:
    code, out, err = cli("serve", bundle.path, "--check", "--threads", "1", *served)
    if served:
        assert code != 0
        assert "no NVIDIA GPU was found here" in err
        return
    assert code == 0, err
    assert f"degraded: {NAME} cannot be opened here (no NVIDIA GPU is seen)" in out


@NO_GPU
def test_one_that_waits_is_finished_where_there_is_a_gpu_alone(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "x.deploy", winner=FALLBACK, not_run="no NVIDIA GPU")
    with pytest.raises(EngineError, match=rf"Nothing of .* {NAME}: no NVIDIA GPU"):
        finish(path, BuildConfig(threads=1))
