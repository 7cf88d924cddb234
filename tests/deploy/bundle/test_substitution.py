"""What the commands run in place of an engine that does not fit: as told, and never silently.

The engines are real ones of TensorRT for RTX; the machines that they meet are described.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

from rtx import NAME, build_tiny, host_for, write_bundle

import deploy.bundle.substitutes
import deploy.commands.verification
import deploy.serving.models.readiness
from deploy.bundle.folder import Bundle, read_bundle
from deploy.bundle.preflight import explain_mismatch
from deploy.bundle.substitutes import Rebuilt, Substitution, rebuild_runnable, settle_unfit
from deploy.commands.bench import bench_bundle
from deploy.engines import EngineSpec
from deploy.measuring.latency import LatencySettings
from deploy.serving.models.readiness import open_verified
from deploy.serving.options import ServeOptions
from export.errors import EngineError
from export.gpu import GpuFacts, read_gpu
from export.tensorrt.record import EngineRecord

RTX_5090 = GpuFacts("NVIDIA GeForce RTX 5090", "580.1", "12.0", "13.0")
QUICK = LatencySettings(seconds=0.1)
NO_GPU = pytest.mark.skipif(read_gpu() is not None, reason="there is an NVIDIA GPU")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, EngineRecord]:
    return build_tiny(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def path(
    built: tuple[bytes, EngineRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A bundle whose winner is an engine for other GPUs than the one that is described here."""
    host = host_for(built[1], gpu=RTX_5090)
    for module in (deploy.bundle.substitutes, deploy.commands.verification):
        monkeypatch.setattr(module, "read_host", lambda: host)
    monkeypatch.setenv("DEPLOY_CACHE", str(tmp_path / "cache"))
    return write_bundle(tmp_path / "gpu.deploy", *built)


@pytest.fixture
def bundle(path: Path) -> Bundle:
    return read_bundle(path)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU that is described runs what was built for it."""
    monkeypatch.setattr(deploy.bundle.substitutes, "_try_out", lambda bundle, spec, **_: None)


def test_what_does_not_fit_is_built_again_only_if_asked_to(bundle: Bundle, runs: None) -> None:
    rebuilt, lost = settle_unfit(bundle, Substitution())
    assert rebuilt == {}
    assert "SM120" in str(lost[NAME])
    rebuilt, lost = settle_unfit(bundle, Substitution(rebuild=True), threads=1)
    assert lost == {}
    spec = rebuilt[NAME].spec
    assert spec.record is not None
    assert (
        explain_mismatch(spec.record, Path(spec.path), deploy.bundle.substitutes.read_host())
        is None
    )
    assert rebuilt[NAME].note == (
        f"{NAME} was built again for NVIDIA GeForce RTX 5090; the bundle is as it was."
    )


@NO_GPU
def test_what_was_built_again_and_does_not_run_says_both(bundle: Bundle) -> None:
    with pytest.raises(
        EngineError, match=r"SM120.*Built again, it does not run either: "
    ) as caught:
        rebuild_runnable(bundle, bundle.spec(NAME), deploy.bundle.substitutes.read_host())
    assert "no NVIDIA GPU" in str(caught.value)


def test_without_a_fallback_what_does_not_fit_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="SM120"):
        settle_unfit(bundle, Substitution(fallback=False))


@pytest.mark.thorough
@NO_GPU
def test_bench_lists_what_was_built_again_in_vain_or_stops_there(path: Path, cli: Any) -> None:
    words = ("bench", path, "--measure-seconds", "0.1", "--threads", "1", "--rebuild")
    code, out, _ = cli(*words)
    assert code == 0
    assert f"{NAME}: not run: " in out
    assert "Built again, it does not run either" in " ".join(out.split())
    code, out, err = cli(*words, "--no-fallback")
    assert code == 1
    assert "Built again, it does not run either" in " ".join(err.split())
    assert "onnxruntime-fp32" not in out


def test_bench_measures_what_was_built_again(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = bundle.spec("onnxruntime-fp32", threads=1)
    rebuilt = Rebuilt(replace(stand_in, precision="mixed"), "it was built again")
    monkeypatch.setattr(deploy.bundle.substitutes, "rebuild_runnable", lambda *_: rebuilt)
    found = bench_bundle(bundle, QUICK, threads=1, substitution=Substitution(rebuild=True))
    assert set(found.latency.engines) == {"onnxruntime-fp32", "onnxruntime-mixed"}
    assert found.notes == ("it was built again",)
    assert found.not_run == {}


@NO_GPU
def test_verify_lets_another_engine_do_only_if_asked_to(path: Path, cli: Any) -> None:
    for words, code in (((), 1), (("--no-fallback",), 1), (("--fallback",), 0)):
        found, out, _ = cli("verify", path, "--threads", "1", *words)
        assert found == code
        assert "SM120" in " ".join(out.split())
    found, out, _ = cli("verify", path, "--threads", "1", "--rebuild")
    assert found == 1
    assert "Built again, it does not run either" in " ".join(out.split())


@NO_GPU
def test_a_server_falls_back_and_says_so_or_is_not_ready(path: Path) -> None:
    bundle = read_bundle(path)
    opened = open_verified(bundle, ServeOptions(threads=1))
    assert (opened.name, opened.notes) == ("onnxruntime-fp32", ())
    assert str(opened.degraded).startswith(f"{NAME} cannot be opened here")
    opened.close()
    rebuilding = open_verified(bundle, ServeOptions(threads=1, rebuild=True))
    assert rebuilding.degraded is not None
    rebuilding.close()
    with pytest.raises(EngineError, match="no NVIDIA GPU"):
        open_verified(bundle, ServeOptions(threads=1, fallback=False))
    with pytest.raises(EngineError, match="Built again, it does not run either"):
        open_verified(bundle, ServeOptions(threads=1, fallback=False, rebuild=True))


def test_a_server_notes_that_its_engine_was_built_again(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(bundle: Bundle, spec: EngineSpec) -> Rebuilt:
        return Rebuilt(bundle.spec("onnxruntime-fp32", threads=spec.threads), "built again")

    monkeypatch.setattr(deploy.serving.models.readiness, "rebuild_runnable", stand_in)
    opened = open_verified(bundle, ServeOptions(threads=1, rebuild=True))
    assert (opened.name, opened.degraded, opened.notes) == (NAME, None, ("built again",))
    assert opened.policy.batched
    opened.close()
