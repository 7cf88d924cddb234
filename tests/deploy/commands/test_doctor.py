"""The machine's engines with what would help, and each engine of a bundle on this machine."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tiny import Lean, fill_stage

import deploy.commands.doctor
from deploy.bundle.staging import stage_bundle
from deploy.commands.doctor import Backend, diagnose
from deploy.commands.verification import Verification
from deploy.measuring.machine import describe_machine
from deploy.report.tables import print_diagnosis
from export.errors import BundleError, EngineError
from export.gpu import GpuFacts
from export.tensorrt.products import PRODUCTS


def test_what_is_installed_is_usable() -> None:
    diagnosis = diagnose()
    backends = {backend.name: backend for backend in diagnosis.backends}
    assert list(backends) == ["torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]
    for name in ("torch", "onnxruntime", "openvino"):
        assert backends[name].usable
        assert backends[name].version
    assert diagnosis.bundle == ()
    assert diagnosis.sound


def test_what_is_not_installed_says_which_extra_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deploy.commands.doctor, "is_installed", lambda module: False)
    notes = {backend.name: backend.note for backend in diagnose().backends}
    assert notes == {
        "torch": "not installed: pip install 'deploykit[build]'",
        "onnxruntime": "not installed: pip install onnxruntime",
        "openvino": "not installed: pip install 'deploykit[openvino]'",
        "tensorrt": "not installed: pip install 'deploykit[trt]'",
        "tensorrt_rtx": "not installed: pip install 'deploykit[rtx]'",
    }


def test_a_backend_that_crashes_is_not_usable_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def crash(target: str) -> None:
        raise EngineError("The engine's process ended with signal SIGILL")

    monkeypatch.setattr(deploy.commands.doctor, "call_in_child", crash)
    openvino = next(backend for backend in diagnose().backends if backend.name == "openvino")
    assert (openvino.usable, openvino.note) == (
        False,
        "The engine's process ended with signal SIGILL",
    )


L4, H200, BLACKWELL = (
    GpuFacts(name, "580.1", capability, "13.0")
    for name, capability in (("L4", "8.9"), ("H200", "9.0"), ("RTX 5090", "12.0"))
)


@pytest.mark.parametrize(
    ("product", "gpu", "usable", "words"),
    [
        ("tensorrt_rtx", None, False, "ahead of time; running them needs an NVIDIA GPU"),
        ("tensorrt_rtx", L4, True, "builds and runs"),
        ("tensorrt_rtx", BLACKWELL, True, "builds and runs"),
        ("tensorrt_rtx", H200, False, r"runs none on the H200 \(SM90\), only on SM75.*SM121"),
        ("tensorrt", None, False, "where there is an NVIDIA GPU"),
        ("tensorrt", H200, True, "builds and runs"),
    ],
)
def test_a_tensorrt_is_usable_on_gpus_that_it_takes(
    product: str, gpu: GpuFacts | None, usable: bool, words: str
) -> None:
    found, note = deploy.commands.doctor._describe_product(PRODUCTS[product], gpu)
    assert found == usable
    assert re.search(words, note)


@pytest.mark.parametrize(
    ("packages", "version", "clash"),
    [
        ({"onnxruntime": "1.32.0"}, "1.32.0", False),
        ({"onnxruntime-gpu": "1.31.1"}, "1.31.1", False),
        ({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}, "1.32.0", True),
    ],
)
def test_two_onnx_runtimes_in_one_place_are_told(
    packages: dict[str, str], version: str, clash: bool
) -> None:
    machine = replace(describe_machine(), versions=packages)
    found = deploy.commands.doctor._examine(
        "onnxruntime", "onnxruntime", "", machine=machine, gpu=None
    )
    assert found.version == version
    assert ("onnxruntime-gpu 1.31.1 is installed as well" in found.note) == clash


def test_what_a_server_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert diagnose().serving == "HTTP and gRPC"
    monkeypatch.setattr(
        deploy.commands.doctor, "is_installed", lambda module: module not in ("uvloop", "grpc")
    )
    lacking = diagnose()
    assert lacking.serving == "no, uvloop, grpc not installed: pip install 'deploykit[serve]'"
    console = Console(file=io.StringIO(), width=100)
    print_diagnosis(lacking, console)
    assert f"serving   {lacking.serving}" in console.file.getvalue()


def test_a_sound_bundle_is_sound(pristine: Path) -> None:
    diagnosis = diagnose(pristine)
    assert [v.name for v in diagnosis.bundle] == [
        "onnxruntime-fp32",
        "onnxruntime-int8",
        "openvino-fp32",
    ]
    assert diagnosis.sound


def test_a_changed_bundle_is_refused(bundle_path: Path) -> None:
    (bundle_path / "report.html").write_text("changed")
    with pytest.raises(BundleError, match=r"report\.html was changed"):
        diagnose(bundle_path)


def test_brackets_and_escapes_are_printed_as_they_are() -> None:
    backend = Backend("tensorrt", False, None, "pip install 'deploykit[trt]' [/bold] \x1b[31m")
    diagnosis = replace(
        diagnose(),
        backends=(backend,),
        bundle=(Verification("[red]name[/red]\x1b[2J", "off [by] 3"),),
    )
    stream = io.StringIO()
    print_diagnosis(diagnosis, Console(file=stream, width=200))
    text = stream.getvalue()
    assert "pip install 'deploykit[trt]' [/bold] \\x1b[31m" in text
    assert "[red]name[/red]\\x1b[2J: off [by] 3" in text
    assert "\x1b" not in text


@pytest.mark.thorough
def test_doctor_needs_no_torch(pristine: Path, lean: Lean) -> None:
    done = lean("-m", "deploy", "doctor", pristine)
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("'deploykit[build]'", "'deploykit[openvino]'", "not installed"):
        assert line in done.stdout
    assert "DIFFERS" not in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.thorough
def test_a_winner_that_cannot_be_opened_is_not_sound(tmp_path: Path, lean: Lean) -> None:
    target = tmp_path / "openvino.deploy"
    with stage_bundle(target) as stage:
        fill_stage(stage, winner="openvino-fp32")
    done = lean("-m", "deploy", "doctor", target)
    assert done.returncode == 1
    assert "openvino-fp32: This needs 'openvino'" in done.stdout
