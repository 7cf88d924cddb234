"""torch where it is here with CUDA, else pycuda, else a sentence that says what to install."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import deploy.engines.device_memory as memories
from export.errors import DeployError


@pytest.mark.parametrize(
    ("installed", "cuda", "chosen"),
    [
        (("torch", "pycuda"), True, "torch"),
        (("torch",), True, "torch"),
        (("torch", "pycuda"), False, "pycuda"),
        (("pycuda",), False, "pycuda"),
        (("torch",), False, "This torch was built without CUDA, or finds no GPU"),
        ((), False, "needs torch with CUDA, or pycuda"),
    ],
    ids=range(6),
)
def test_the_library_that_can_be_used_is_taken(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], cuda: bool, chosen: str
) -> None:
    torch = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: cuda))
    required: list[str] = []

    def require(module: str, *, extra: str) -> Any:
        required.append(module)
        return torch

    monkeypatch.setattr(memories, "is_installed", lambda module: module in installed)
    monkeypatch.setattr(memories, "require", require)
    if chosen in ("torch", "pycuda"):
        assert memories.choose_memory().name == chosen
    else:
        with pytest.raises(DeployError, match=rf"{chosen}.*pip install pycuda"):
            memories.choose_memory()
    assert required == (["torch"] if "torch" in installed else [])


def test_neither_library_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, deploy.engines.device_memory.pycuda_memory, "
        "deploy.engines.device_memory.torch_memory, deploy.engines.tensorrt; "
        "assert not {'torch', 'pycuda', 'tensorrt_rtx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
