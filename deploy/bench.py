"""Latency, interleaved, of the engines that a bundle or an ONNX file can be opened with."""

from pathlib import Path

import numpy as np

from deploy.bundle import FALLBACK, GOLDEN, Bundle
from deploy.engines import EngineSpec, Feeds
from deploy.golden import read_golden
from deploy.inputs import synthetic_feeds
from deploy.latency import LatencyReport, LatencySettings, measure
from deploy.machine import usable_cores
from deploy.process import EngineProcess
from export.errors import BundleError, LoadError
from export.optional import is_installed
from export.progress import ProgressCallback, ignore_progress


def bench_bundle(
    bundle: Bundle,
    settings: LatencySettings,
    *,
    batch: int = 1,
    threads: int = 0,
    trust: tuple[str, ...] = (),
    progress: ProgressCallback = ignore_progress,
) -> tuple[str, LatencyReport]:
    """Measure every engine of a bundle that can be opened here, on its golden inputs.

    Returns:
        The name of the baseline (eager torch where the bundle holds it and torch is installed, else
        the float32 engine of ONNX Runtime) and the times.

    Raises:
        BundleError: the bundle has nothing that can be opened here.
    """
    names = [name for name, entry in bundle.manifest.engines.items() if entry.not_run is None]
    if not names:
        raise BundleError(f"{bundle.path} has no engine that can be run on this machine.")
    preferred = ("torch", FALLBACK) if is_installed("torch") else (FALLBACK,)
    baseline = next((name for name in preferred if name in names), names[0])
    specs = {name: bundle.spec(name, threads=threads, trust=trust) for name in names}
    golden = read_golden(bundle.path / GOLDEN).inputs
    static = bundle.manifest.inputs[0].shape[0]
    size = static if isinstance(static, int) else batch
    feeds = {name: array[np.arange(size) % len(array)] for name, array in golden.items()}
    others = [spec for name, spec in specs.items() if name != baseline]
    return baseline, measure(specs[baseline], others, feeds, settings, progress)


def bench_onnx(
    path: Path,
    settings: LatencySettings,
    *,
    batch: int = 1,
    threads: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> tuple[str, LatencyReport]:
    """Measure an ONNX file in ONNX Runtime and, where installed, OpenVINO, on synthetic inputs.

    Raises:
        LoadError: there is no such file.
        EngineError: ONNX Runtime cannot open it.
    """
    if not path.is_file():
        raise LoadError(f"{path}: no such file. Pass a bundle or an ONNX file.")
    threads = threads or usable_cores()
    baseline = EngineSpec("onnxruntime", "fp32", str(path), threads)
    others = []
    if is_installed("openvino"):
        others = [EngineSpec("openvino", p, str(path), threads) for p in ("fp32", "bf16")]
    with EngineProcess(baseline) as process:
        feeds: Feeds = synthetic_feeds(process.inputs, batch, seed=settings.seed)
    return baseline.name, measure(baseline, others, feeds, settings, progress)
