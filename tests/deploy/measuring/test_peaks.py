"""Peaks are measured where they can be, and null where not."""

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from process_state import no_child_left

import deploy.measuring.peaks
from deploy.engines import EngineSpec
from deploy.engines.openvino import cpu_has_bf16
from deploy.measuring.peaks import measure_peaks


@pytest.fixture(autouse=True)
def _no_memory() -> Iterator[None]:
    measure_peaks.cache_clear()
    yield
    measure_peaks.cache_clear()


@pytest.mark.thorough
def test_peaks_are_plausible_figures_in_gmacs() -> None:
    with no_child_left():
        peaks = measure_peaks(threads=1)
    assert list(peaks) == ["fp32", "bf16", "int8"]
    fp32, bf16, int8 = peaks.values()
    assert fp32 is not None
    assert int8 is not None
    assert 1 < fp32 < 2000
    assert int8 > 0.5 * fp32
    assert (bf16 is not None) == cpu_has_bf16()


def test_the_chain_has_the_macs_that_times_are_divided_into() -> None:
    assert sum(28 * 28 * 256 * 256 for _ in range(8)) == deploy.measuring.peaks._MACS


def test_the_chain_is_of_the_format_of_its_opset_whatever_onnx_is_installed(tmp_path: Path) -> None:
    """ONNX Runtime 1.30 reads up to 13; onnx 1.23 would write 14."""
    model = deploy.measuring.peaks._make_chain(tmp_path / "chain.onnx")
    assert onnx.load(model.path).ir_version == 10


def test_without_openvino_bf16_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def record(spec: EngineSpec, feeds: object) -> float:
        asked.append((spec.engine, spec.precision))
        return 1.0

    monkeypatch.setattr(deploy.measuring.peaks, "is_installed", lambda module: False)
    monkeypatch.setattr(deploy.measuring.peaks, "_measure", record)
    assert measure_peaks(threads=1) == {"fp32": 1.0, "bf16": None, "int8": 1.0}
    assert asked == [("onnxruntime", "fp32"), ("onnxruntime", "int8")]


def test_a_precision_that_does_not_run_is_null() -> None:
    spec = EngineSpec("openvino", "fp16", "nothing.onnx", 1)
    assert deploy.measuring.peaks._measure(spec, {}) is None
