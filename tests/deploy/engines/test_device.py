"""Where the baseline runs, and what is said where it cannot run there."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deploy.engines.device
from deploy.config import BuildConfig
from deploy.engines.device import choose_device, explain_no_cuda
from deploy.judging.eager import ON_CPU, EagerBaseline, settle_eager
from export.errors import ConfigError, EngineError
from export.gpu import GpuFacts

L4 = GpuFacts("NVIDIA L4", "580.65.06", "8.9", "13.0")


def fake_torch(*, available: bool, cuda: str | None = "13.0") -> Any:
    return SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: available),
        version=SimpleNamespace(cuda=cuda),
        __version__="2.13.0",
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def describe(gpu: GpuFacts | None, torch_: Any) -> None:
        monkeypatch.setattr(deploy.engines.device, "read_gpu", lambda: gpu)
        monkeypatch.setattr(deploy.engines.device, "require", lambda *_, **__: torch_)

    return describe


@pytest.mark.parametrize("available", [True, False])
def test_auto_takes_the_gpu_where_torch_can_and_the_cpu_is_always_to_be_had(
    machine, available: bool
) -> None:
    machine(L4 if available else None, fake_torch(available=available))
    assert choose_device("auto") == ("cuda" if available else "cpu")
    assert choose_device("cpu") == "cpu"


def test_the_gpu_that_is_asked_for_and_is_not_there_is_an_error_with_the_fix(machine) -> None:
    machine(None, fake_torch(available=False))
    with pytest.raises(ConfigError, match=r"--device cuda: no NVIDIA GPU.*--device cpu") as caught:
        choose_device("cuda")
    assert caught.value.exit_code == 2


def test_a_torch_without_cuda_or_with_another_driver_is_told_apart(machine) -> None:
    machine(L4, fake_torch(available=False, cuda=None))
    with pytest.raises(ConfigError, match="built without CUDA, and cannot use the NVIDIA L4"):
        choose_device("cuda")
    machine(L4, fake_torch(available=False))
    with pytest.raises(ConfigError, match=r"CUDA 13.0\) cannot use .* driver 580.65.06"):
        choose_device("cuda")


def test_this_torch_is_asked_by_its_own_word() -> None:
    assert (explain_no_cuda(torch) is None) == torch.cuda.is_available()


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device tpu: must be auto or cpu or cuda"):
        BuildConfig(device="tpu")


def test_eager_on_the_cpu_is_the_reference_itself() -> None:
    assert settle_eager("cpu", "auto", {}) is ON_CPU


def test_eager_on_the_gpu_keeps_what_it_is_off_by() -> None:
    report: Any = object()
    assert settle_eager("cuda", "auto", {"torch": report}) == EagerBaseline("cuda", report)


def test_a_model_that_only_runs_on_the_cpu_is_measured_there_unless_the_gpu_was_asked_for() -> None:
    checked = {"torch": "at batch size 1: tensors on two devices."}
    eager = settle_eager("cuda", "auto", checked)
    assert eager.device == "cpu"
    assert "tensors on two devices" in str(eager.warning)
    with pytest.raises(EngineError, match=r"tensors on two devices.*--device cpu"):
        settle_eager("cuda", "cuda", checked)
