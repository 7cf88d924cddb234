"""What the driver's tool says of the GPU."""

from pathlib import Path

import pytest

from export.gpu import GpuFacts, read_gpu

TOOL = """#!/bin/sh
case "$1" in
--query-gpu*) {query} ;;
-q) echo "    CUDA Version                          : 13.0" ;;
esac
"""


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a driver's tool that answers so onto the path."""

    def write(query: str) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(TOOL.format(query=query))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        read_gpu.cache_clear()

    yield write
    monkeypatch.undo()
    read_gpu.cache_clear()


def test_name_driver_capability_and_cuda_are_read(tool) -> None:
    tool('echo "NVIDIA L4, 580.65.06, 8.9"; echo "NVIDIA L4, 580.65.06, 8.9"')
    gpu = read_gpu()
    assert gpu == GpuFacts("NVIDIA L4", "580.65.06", "8.9", "13.0")
    assert gpu.target == "SM89"


@pytest.mark.parametrize("query", ["exit 9", "echo no devices were found", "true"])
def test_a_driver_that_does_not_work_is_no_gpu(tool, query: str) -> None:
    tool(query)
    assert read_gpu() is None


def test_a_tool_that_is_no_program_is_no_gpu(tool, tmp_path: Path) -> None:
    tool("true")
    (tmp_path / "nvidia-smi").write_bytes(b"\x7fELF broken")
    assert read_gpu() is None


def test_without_the_tool_there_is_no_gpu(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    read_gpu.cache_clear()
    assert read_gpu() is None
    read_gpu.cache_clear()
