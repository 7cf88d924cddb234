"""Each way in which an engine does not fit a machine has a sentence: what differs, what to do."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

from rtx import L4, build_tiny, host_for

from deploy.bundle.preflight import Host, InstalledProduct, explain_mismatch, read_host
from export.gpu import GpuFacts
from export.tensorrt.record import EngineRecord


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EngineRecord]:
    folder = tmp_path_factory.mktemp("engine")
    _, record = build_tiny(folder)
    return folder / "model.engine", record


def explain(
    built: tuple[Path, EngineRecord], host: Host | None = None, **changes: Any
) -> str | None:
    file, record = built
    record = replace(record, **changes)
    return explain_mismatch(record, file, host or host_for(built[1]))


def test_an_engine_fits_the_machine_that_it_was_built_for(
    built: tuple[Path, EngineRecord],
) -> None:
    assert explain(built) is None
    for capability in ("8.0", "8.9"):
        gpu = GpuFacts("some GPU", "999.1", capability, "14.1")
        assert explain(built, host_for(built[1], gpu=gpu)) is None


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        (None, r"no NVIDIA GPU was found here.*Serve it with another engine"),
        (
            GpuFacts("NVIDIA H100", "580.1", "9.0", "13.0"),
            r"built for SM80, SM89, and NVIDIA H100 is SM90\. Build it again here",
        ),
        (
            GpuFacts("NVIDIA L4", "550.54", "8.9", "12.4"),
            r"needs CUDA 13, and the NVIDIA driver 550\.54 .* offers 12\.4\. Install a later",
        ),
        (GpuFacts("NVIDIA L4", "580.1", "8.9", None), None),
    ],
    ids=["none", "another", "old driver", "silent driver"],
)
def test_the_gpu_and_its_driver(
    built: tuple[Path, EngineRecord], gpu: GpuFacts | None, words: str | None
) -> None:
    found = explain(built, host_for(built[1], gpu=gpu))
    if words is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(words, found), found


@pytest.mark.parametrize(
    ("built_with", "installed", "flags", "fits"),
    [
        ("10.13.3.9", "10.13.3.9", (), True),
        ("10.13.3.9", "10.13.3.9", ("VERSION_COMPATIBLE",), True),
        ("10.13.3.9", "10.14.1.48", (), False),
        ("10.13.3.9", "10.13.3.8", (), False),
        ("10.13.3.9", "10.14.1.48", ("VERSION_COMPATIBLE",), True),
        ("10.13.3.9", "10.9.0.34", ("VERSION_COMPATIBLE",), False),
        ("10.13.3.9", "11.0.0.1", ("VERSION_COMPATIBLE",), False),
        ("1.7.1.116", "1.7.1.117", ("TF32",), False),
    ],
)
def test_the_version_of_the_library(
    built: tuple[Path, EngineRecord],
    built_with: str,
    installed: str,
    flags: tuple[str, ...],
    fits: bool,
) -> None:
    host = replace(host_for(built[1]), products={"tensorrt_rtx": InstalledProduct(installed)})
    found = explain(built, host, version=built_with, flags=flags)
    assert (found is None) == fits
    if found is not None:
        assert f"built with TensorRT for RTX {built_with}, and {installed} is installed" in found
        assert f"install tensorrt-rtx=={built_with}" in found
        assert ("later one" in found) == bool(flags == ("VERSION_COMPATIBLE",))


def test_a_library_that_is_not_installed_says_how_to_get_that_version(
    built: tuple[Path, EngineRecord],
) -> None:
    host = replace(host_for(built[1]), products={})
    found = explain(built, host) or ""
    assert f"pip install 'deploykit[rtx]' tensorrt-rtx=={built[1].version}" in found
    assert "'tvm', which this version does not run" in (explain(built, product="tvm") or "")


def test_nvidia_tensorrt_is_for_the_gpu_that_it_was_built_on(
    built: tuple[Path, EngineRecord],
) -> None:
    host = Host(L4, {"tensorrt": InstalledProduct("10.13.3.9", 13)}, "linux-x86_64")
    its: dict[str, Any] = {"product": "tensorrt", "version": "10.13.3.9", "targets": ("SM89",)}
    assert explain(built, host, **its, gpu="NVIDIA L4") is None
    found = explain(built, host, **its, gpu="NVIDIA L40S") or ""
    assert "was built on NVIDIA L40S, and this is NVIDIA L4" in found
    anywhere = {**its, "targets": ("SM80",), "flags": ("AMPERE_PLUS",), "gpu": "NVIDIA A100"}
    assert explain(built, host, **anywhere) is None
    turing = replace(host, gpu=GpuFacts("Tesla T4", "580.1", "7.5", "13.0"))
    assert "from compute capability 8.0 up, and Tesla T4 has 7.5" in (
        explain(built, turing, **anywhere) or ""
    )


def test_cuda_of_the_build_machine_must_be_offered(built: tuple[Path, EngineRecord]) -> None:
    host = host_for(built[1])
    assert explain(built, host, cuda="13.1") is None
    assert "needs CUDA 14" in (explain(built, host, cuda="14.0") or "")


def test_another_system(built: tuple[Path, EngineRecord]) -> None:
    found = explain(built, system="windows-amd64") or ""
    assert "built for windows-amd64, and this machine is linux-x86_64" in found
    assert explain(built, system=None) is None


def test_one_changed_byte(built: tuple[Path, EngineRecord], tmp_path: Path) -> None:
    file, record = built
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "model.engine").write_bytes(data)
    found = explain_mismatch(record, tmp_path / "model.engine", host_for(record)) or ""
    assert "was changed after it was built (its SHA-256 differs)" in found


def test_plugins_are_those_of_the_build_and_no_others(
    built: tuple[Path, EngineRecord], tmp_path: Path
) -> None:
    file, record = built
    copy, host = tmp_path / "model.engine", host_for(record)
    copy.write_bytes(file.read_bytes())
    digest = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"  # of b"foo"
    wants = replace(record, plugins={"ours.so": digest})
    assert "'ours.so', which is not beside it" in (explain_mismatch(wants, copy, host) or "")
    outside = replace(record, plugins={"../ours.so": digest})
    (tmp_path.parent / "ours.so").write_bytes(b"foo")
    assert "not beside it" in (explain_mismatch(outside, copy, host) or "")
    (tmp_path / "ours.so").write_bytes(b"bar")
    assert "not the one that" in (explain_mismatch(wants, copy, host) or "")
    (tmp_path / "ours.so").write_bytes(b"foo")
    assert explain_mismatch(wants, copy, host) is None
    assert "plugin library ours.so, which it was not built with" in (
        explain_mismatch(record, copy, host) or ""
    )
    (tmp_path / "ours.so").rename(tmp_path / "ours.so.1.2")
    assert "ours.so.1.2" in (explain_mismatch(record, copy, host) or "")


def test_an_engine_without_a_record_is_not_trusted(built: tuple[Path, EngineRecord]) -> None:
    found = explain_mismatch(None, built[0], host_for(built[1])) or ""
    assert "does not say what it was built for" in found


def test_this_machine_is_told_by_the_metadata_of_packages_alone() -> None:
    code = (
        "import sys; from deploy.bundle.preflight import read_host; h = read_host(); "
        "import importlib.metadata as m; r = h.products['tensorrt_rtx']; "
        "assert r.version == m.version('tensorrt_rtx'), r; assert r.cuda in (12, 13), r; "
        "assert not {'tensorrt_rtx', 'tensorrt', 'torch', 'pycuda'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
    assert read_host().system.count("-") >= 1
