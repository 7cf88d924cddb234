"""What the driver's tool says of the GPU."""

import ctypes
from pathlib import Path

import pytest

from export.gpu import GpuFacts, GpuState, read_gpu, read_gpu_state

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


STATE = """
case "$1" in
*clocks_event_reasons*) {new} ;;
*clocks_throttle_reasons*) {old} ;;
esac
exit"""


def test_clocks_power_temperature_and_why_clocks_are_low_are_read(tool) -> None:
    tool(STATE.format(new='echo "1410, 1980, 2619, 312.45, 64, 0x0000000000000024"', old="exit 2"))
    assert read_gpu_state() == GpuState(
        1410, 1980, 2619, 312.45, 64, ("power cap", "software thermal slowdown")
    )


def test_an_older_driver_is_asked_by_its_own_name(tool) -> None:
    refused = 'echo "Field \\"clocks_event_reasons.active\\" is not a valid field"; exit 2'
    tool(STATE.format(new=refused, old='echo "300, 1590, 5000, [N/A], 41, 0x0000000000000000"'))
    assert read_gpu_state() == GpuState(300, 1590, 5000, None, 41, ())


def test_bits_without_a_name_are_shown_and_what_is_no_number_is_not_known(tool) -> None:
    tool(STATE.format(new='echo "300, 1590, 5000, 20, 41, 0x1001"', old="exit 2"))
    assert read_gpu_state().reasons == ("idle", "0x1000")
    tool(STATE.format(new='echo "[N/A], 1590, 5000, 20, 41, [Not Supported]"', old="exit 2"))
    state = read_gpu_state()
    assert (state.sm_mhz, state.reasons) == (None, None)


def test_a_tool_that_fails_tells_no_state(tool) -> None:
    tool("exit 9")
    assert read_gpu_state() is None


@pytest.mark.gpu
def test_the_tool_says_of_the_gpu_what_cuda_says() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    gpu = read_gpu()
    assert gpu is not None
    properties = torch.cuda.get_device_properties(0)
    assert gpu.name == properties.name
    assert gpu.capability == f"{properties.major}.{properties.minor}"
    assert gpu.target == f"SM{properties.major}{properties.minor}"
    version = ctypes.c_int()
    assert ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) == 0
    assert gpu.cuda == f"{version.value // 1000}.{version.value % 1000 // 10}"
    assert gpu.driver.count(".") >= 1


@pytest.mark.gpu
def test_the_state_of_a_gpu_that_works_is_plausible() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    a = torch.ones(4096, 4096, device="cuda")
    for _ in range(50):
        a @ a
    state = read_gpu_state()
    torch.cuda.synchronize()
    assert state is not None
    assert state.sm_mhz is not None
    assert state.max_sm_mhz is not None
    assert 100 < state.sm_mhz <= state.max_sm_mhz
    assert state.memory_mhz is None or state.memory_mhz > 100
    assert state.watts is None or 5 < state.watts < 2000
    assert state.celsius is None or 5 < state.celsius < 120
    assert state.reasons is not None
    assert all(not reason.startswith("0x") for reason in state.reasons), state.reasons
