"""An engine that does not fit is refused before it is deserialized; another runs and says so.

The engines are real ones of TensorRT for RTX; the machines that they meet are described.
"""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

from rtx import L4, NAME, build_tiny, host_for, write_bundle
from tiny import answer, draw

import deploy.bundle.substitutes
from deploy.bundle.folder import Bundle, load, read_bundle
from deploy.bundle.preflight import Host, InstalledProduct, explain_mismatch
from deploy.bundle.substitutes import FALLBACK, explain_unfit, find_runnable, rebuild_engine
from deploy.commands.bench import bench_bundle
from deploy.commands.doctor import diagnose
from deploy.commands.verification import verify
from deploy.engines import EngineSpec
from deploy.engines.tensorrt import open_tensorrt
from deploy.measuring.latency import LatencySettings
from export.errors import BundleError, EngineError
from export.gpu import GpuFacts, read_gpu
from export.tensorrt.record import EngineRecord

H100 = GpuFacts("NVIDIA H100", "580.1", "9.0", "13.0")
RTX_5090 = GpuFacts("NVIDIA GeForce RTX 5090", "580.1", "12.0", "13.0")
NO_GPU = pytest.mark.skipif(read_gpu() is not None, reason="there is an NVIDIA GPU")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, EngineRecord]:
    return build_tiny(tmp_path_factory.mktemp("engine"))


@pytest.fixture
def path(built: tuple[bytes, EngineRecord], tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "gpu.deploy", *built)


@pytest.fixture
def bundle(path: Path) -> Bundle:
    return read_bundle(path)


@pytest.fixture
def never_deserialized(monkeypatch: pytest.MonkeyPatch) -> list[EngineSpec]:
    """Every engine of TensorRT that is tried out, none of which may be one that does not fit."""
    tried: list[EngineSpec] = []
    real = deploy.bundle.substitutes._try_out

    def watch(bundle: Bundle, spec: EngineSpec, **given: Any) -> str | None:
        tried.append(spec)
        return real(bundle, spec, **given)

    monkeypatch.setattr(deploy.bundle.substitutes, "_try_out", watch)
    return tried


def spec_of(bundle: Bundle) -> EngineSpec:
    return bundle.spec(NAME, threads=1)


def mismatches(record: EngineRecord) -> dict[str, Host]:
    host = host_for(record)
    return {
        "no GPU": replace(host, gpu=None),
        "another GPU": replace(host, gpu=H100),
        "another TensorRT": replace(
            host, products={"tensorrt_rtx": InstalledProduct("1.6.0.1", 13)}
        ),
        "no TensorRT": replace(host, products={}),
        "an old driver": replace(host, gpu=replace(L4, cuda="12.4")),
        "another system": replace(host, system="windows-amd64"),
    }


@pytest.mark.parametrize(
    "kind",
    ["no GPU", "another GPU", "another TensorRT", "no TensorRT", "an old driver", "another system"],
)
def test_an_engine_that_does_not_fit_gives_way_to_onnx_before_it_is_opened(
    bundle: Bundle,
    built: tuple[bytes, EngineRecord],
    never_deserialized: list[EngineSpec],
    kind: str,
) -> None:
    host = mismatches(built[1])[kind]
    spec, warning = find_runnable(bundle, spec_of(bundle), rebuild=False, fallback=True, host=host)
    assert (spec.engine, spec.precision, spec.variant) == ("onnxruntime", "fp32", "")
    assert f"{NAME} cannot run here; onnxruntime-fp32 runs in its place, on the CPU." in str(
        warning
    )
    assert (explain_unfit(bundle, NAME, host) or "?") in str(warning)
    assert never_deserialized == []
    with pytest.raises(EngineError, match="cannot run here"):
        find_runnable(bundle, spec_of(bundle), rebuild=False, fallback=False, host=host)


@NO_GPU
def test_what_fits_by_its_record_is_tried_in_a_child_and_gives_way_where_it_fails(
    bundle: Bundle, built: tuple[bytes, EngineRecord], never_deserialized: list[EngineSpec]
) -> None:
    host = host_for(built[1])
    assert explain_unfit(bundle, NAME, host) is None
    spec, warning = find_runnable(bundle, spec_of(bundle), rebuild=False, fallback=True, host=host)
    assert spec.engine == "onnxruntime"
    assert [tried.engine for tried in never_deserialized] == ["tensorrt_rtx"]
    assert "no NVIDIA GPU" in str(warning)


@NO_GPU
def test_load_answers_with_onnx_and_a_warning(path: Path) -> None:
    x = draw(3)
    with (
        pytest.warns(UserWarning, match=rf"{NAME} cannot run here; .* no NVIDIA GPU"),
        load(path, threads=1) as engine,
    ):
        np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(EngineError, match="no NVIDIA GPU"):
        load(path, fallback=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, engine="onnxruntime-fp32", threads=1)


def test_a_bundle_without_a_float_model_says_so(
    bundle: Bundle, built: tuple[bytes, EngineRecord]
) -> None:
    alone = {NAME: bundle.manifest.engines[NAME]}
    bundle = replace(bundle, manifest=replace(bundle.manifest, engines=alone))
    with pytest.raises(EngineError, match="the bundle has no onnxruntime-fp32"):
        find_runnable(
            bundle,
            spec_of(bundle),
            rebuild=False,
            fallback=True,
            host=host_for(built[1], gpu=None),
        )


def flip(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 4
    return bytes(changed)


def test_a_flipped_byte_is_refused_by_the_bundle(path: Path) -> None:
    file = path / NAME / "model.engine"
    file.write_bytes(flip(file.read_bytes()))
    with pytest.raises(BundleError, match=r"model\.engine was changed"):
        load(path)


def test_a_flipped_byte_in_a_bundle_that_was_hashed_again_is_refused_by_the_record(
    built: tuple[bytes, EngineRecord], tmp_path: Path, never_deserialized: list[EngineSpec]
) -> None:
    data, record = built
    bundle = read_bundle(write_bundle(tmp_path / "x.deploy", flip(data), record))
    spec, warning = find_runnable(
        bundle, spec_of(bundle), rebuild=False, fallback=True, host=host_for(record)
    )
    assert spec.engine == "onnxruntime"
    assert "its SHA-256 differs" in str(warning)
    assert never_deserialized == []


def test_a_file_swapped_after_the_bundle_was_read_is_not_deserialized(
    bundle: Bundle, built: tuple[bytes, EngineRecord]
) -> None:
    spec, host = spec_of(bundle), host_for(built[1])
    Path(spec.path).write_bytes(flip(built[0]))
    assert explain_unfit(bundle, NAME, host) is None  # the hash of what was read
    with pytest.raises(EngineError, match="SHA-256 differs"):
        open_tensorrt(spec, host)


def test_an_extra_plugin_is_refused(
    built: tuple[bytes, EngineRecord], tmp_path: Path, never_deserialized: list[EngineSpec]
) -> None:
    data, record = built
    target = write_bundle(tmp_path / "x.deploy", data, record, plugins={"evil.so": b"\x7fELF"})
    bundle = read_bundle(target)
    spec, warning = find_runnable(
        bundle, spec_of(bundle), rebuild=False, fallback=True, host=host_for(record)
    )
    assert spec.engine == "onnxruntime"
    assert "plugin library evil.so, which it was not built with" in str(warning)
    assert never_deserialized == []


def test_an_engine_without_a_record_is_refused(
    built: tuple[bytes, EngineRecord], tmp_path: Path
) -> None:
    bundle = read_bundle(write_bundle(tmp_path / "x.deploy", built[0], None, recipe=None))
    host = host_for(built[1])
    assert "does not say what it was built for" in (explain_unfit(bundle, NAME, host) or "")
    with pytest.raises(EngineError, match="does not say what it was built for"):
        open_tensorrt(spec_of(bundle), host)


def test_an_engine_that_is_still_to_be_built_says_so(
    built: tuple[bytes, EngineRecord], tmp_path: Path
) -> None:
    bundle = read_bundle(write_bundle(tmp_path / "x.deploy", built[0], None))
    host = host_for(built[1])
    assert "Build it here with: deploy finish" in (explain_unfit(bundle, NAME, host) or "")
    nowhere = explain_unfit(bundle, NAME, replace(host, gpu=None)) or ""
    assert "no NVIDIA GPU here; build it on one with: deploy finish" in nowhere


def test_an_engine_is_built_again_for_the_gpu_at_hand_beside_the_bundle(
    bundle: Bundle, built: tuple[bytes, EngineRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_for(built[1], gpu=RTX_5090)
    before = {file: file.read_bytes() for file in bundle.path.rglob("*") if file.is_file()}
    assert "SM120" in (explain_unfit(bundle, NAME, host) or "")
    spec = rebuild_engine(bundle, spec_of(bundle), host)
    assert spec.record is not None
    assert spec.record.targets == ("SM120",)
    assert explain_mismatch(spec.record, Path(spec.path), host) is None
    assert not Path(spec.path).is_relative_to(bundle.path)
    assert spec.record.profiles == built[1].profiles
    assert {f: f.read_bytes() for f in bundle.path.rglob("*") if f.is_file()} == before
    read_bundle(bundle.path)

    def refuse(target: str, **kwargs: object) -> None:
        raise AssertionError("built twice")

    real = deploy.bundle.substitutes.call_in_child
    monkeypatch.setattr(deploy.bundle.substitutes, "call_in_child", refuse)
    assert rebuild_engine(bundle, spec_of(bundle), host) == spec
    monkeypatch.setattr(deploy.bundle.substitutes, "call_in_child", real)
    Path(spec.path).write_bytes(b"damaged")
    again = rebuild_engine(bundle, spec_of(bundle), host)
    assert again.path == spec.path
    assert Path(again.path).read_bytes() != b"damaged"
    assert sorted(p.name for p in Path(spec.path).parent.iterdir()) == [
        "model.engine",
        "record.json",
    ]
    leftovers = [p for p in Path(spec.path).parents[1].iterdir() if p.name.startswith(".")]
    assert leftovers == []
    json.loads((Path(spec.path).parent / "record.json").read_text())


@NO_GPU
@pytest.mark.parametrize(
    ("gpu", "words"),
    [(H100, "has no target 'SM90'"), (RTX_5090, "it does not run either: .*no NVIDIA GPU")],
    ids=["refused", "built, and not run"],
)
def test_where_building_again_does_not_help_onnx_runs(
    bundle: Bundle, built: tuple[bytes, EngineRecord], gpu: GpuFacts, words: str
) -> None:
    host = host_for(built[1], gpu=gpu)
    spec, warning = find_runnable(bundle, spec_of(bundle), rebuild=True, fallback=True, host=host)
    assert spec.engine == "onnxruntime"
    with pytest.raises(EngineError, match=words):
        raise EngineError(str(warning))


def test_without_its_source_an_engine_is_not_built_again(
    built: tuple[bytes, EngineRecord], tmp_path: Path
) -> None:
    bundle = read_bundle(write_bundle(tmp_path / "x.deploy", *built, source=None))
    with pytest.raises(EngineError, match="without the ONNX file that it is built from"):
        rebuild_engine(bundle, spec_of(bundle), host_for(built[1], gpu=RTX_5090))


@pytest.mark.parametrize(("works", "variant"), [(True, "cuda"), (False, "")])
def test_onnx_runs_on_the_gpu_where_its_provider_is_there_and_works(
    bundle: Bundle,
    built: tuple[bytes, EngineRecord],
    monkeypatch: pytest.MonkeyPatch,
    works: bool,
    variant: str,
) -> None:
    monkeypatch.setattr(deploy.bundle.substitutes, "explain_no_provider", lambda _: None)

    def try_out(bundle: Bundle, spec: EngineSpec, *, answers_of: str | None = None) -> str | None:
        return None if works else "cuDNN is missing"

    monkeypatch.setattr(deploy.bundle.substitutes, "_try_out", try_out)
    spec, warning = find_runnable(
        bundle,
        spec_of(bundle),
        rebuild=False,
        fallback=True,
        host=host_for(built[1], gpu=H100),
    )
    assert (spec.engine, spec.variant) == ("onnxruntime", variant)
    assert ("on the GPU." if works else "on the CPU.") in str(warning)


@pytest.mark.parametrize(("shift", "same"), [(0, True), (1, False)])
def test_what_runs_in_its_place_is_held_to_the_answers_of_the_float32_model(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, shift: float, same: bool
) -> None:
    """Also where an engine of its name waits in the bundle, without answers of its own."""
    golden = bundle.golden()
    told = {name: values + np.float32(shift) for name, values in golden.outputs[FALLBACK].items()}
    moved = replace(golden, outputs={**golden.outputs, FALLBACK: told})
    monkeypatch.setattr(Bundle, "golden", lambda _: moved)
    spec = replace(bundle.spec(FALLBACK, threads=1), precision="other")
    found = deploy.bundle.substitutes._try_out(bundle, spec, answers_of=FALLBACK)
    assert (found is None) == same


@NO_GPU
@pytest.mark.parametrize("winner", ["onnxruntime-fp32", NAME])
def test_verify_and_doctor_say_why_an_engine_cannot_run_here(
    built: tuple[bytes, EngineRecord], tmp_path: Path, winner: str
) -> None:
    target = write_bundle(tmp_path / "x.deploy", *built, winner=winner)
    for results in (verify(read_bundle(target), threads=1), diagnose(target).bundle):
        by_name = {result.name: result for result in results}
        unfit = by_name[NAME]
        assert not unfit.was_run
        assert "no NVIDIA GPU" in str(unfit.unfit)
        assert unfit.holds == (winner != NAME)
        assert by_name["onnxruntime-fp32"].holds


@NO_GPU
def test_verify_prints_the_sentence(path: Path, cli: Any) -> None:
    code, out, _ = cli("verify", path)
    assert code == 1  # the winner was not verified
    assert "no NVIDIA GPU" in out
    assert "not run" in out


@NO_GPU
def test_bench_measures_the_rest_and_says_why(
    built: tuple[bytes, EngineRecord], tmp_path: Path
) -> None:
    entry: dict[str, Any] = {"winner": "onnxruntime-fp32", "not_run": "no NVIDIA GPU"}
    bundle = read_bundle(write_bundle(tmp_path / "x.deploy", *built, **entry))
    found = bench_bundle(bundle, LatencySettings(seconds=0.1), threads=1)
    assert list(found.latency.engines) == ["onnxruntime-fp32"]
    assert "no NVIDIA GPU" in str(found.not_run[NAME])
