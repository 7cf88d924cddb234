"""The machine's engines with what would help, and each engine of a bundle on this machine."""

import io
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


def test_tensorrt_is_usable_only_with_a_gpu() -> None:
    machine = describe_machine()
    for gpu, usable in ((None, False), ("NVIDIA L4, 570.1", True)):
        found = deploy.commands.doctor._examine(
            "tensorrt_rtx", "tensorrt-rtx", "rtx", machine=replace(machine, gpu=gpu)
        )
        if "not installed" in found.note:
            pytest.skip("tensorrt_rtx is not installed")
        assert found.usable == usable
        assert ("needs an NVIDIA GPU" in found.note) == (gpu is None)


def test_nvidia_tensorrt_does_nothing_without_a_gpu() -> None:
    machine = replace(describe_machine(), gpu=None)
    assert "where there is an NVIDIA GPU" in deploy.commands.doctor._describe_gpu(
        "tensorrt", machine
    )


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


def test_doctor_needs_no_torch(pristine: Path, lean: Lean) -> None:
    done = lean("-m", "deploy", "doctor", pristine)
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("'deploykit[build]'", "'deploykit[openvino]'", "not installed"):
        assert line in done.stdout
    assert "DIFFERS" not in done.stdout
    assert "\x1b" not in done.stdout


def test_a_winner_that_cannot_be_opened_is_not_sound(tmp_path: Path, lean: Lean) -> None:
    target = tmp_path / "openvino.deploy"
    with stage_bundle(target) as stage:
        fill_stage(stage, winner="openvino-fp32")
    done = lean("-m", "deploy", "doctor", target)
    assert done.returncode == 1
    assert "openvino-fp32: This needs 'openvino'" in done.stdout
