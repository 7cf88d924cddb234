"""Latency, interleaved, of the engines that a bundle or an ONNX file can be opened with."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deploy.bundle.folder import FALLBACK, Bundle
from deploy.bundle.substitutes import AS_THEY_ARE, Substitution, settle_unfit
from deploy.engines import EngineSpec, Feeds
from deploy.engines.availability import find_obstacle
from deploy.engines.device import needs_gpu
from deploy.engines.process import EngineProcess
from deploy.inputs.declared import synthetic_feeds
from deploy.measuring.latency import LatencyReport, LatencySettings, measure
from deploy.measuring.machine import describe_machine, usable_cores
from export.errors import BundleError, DeployError, EngineError, LoadError, TrustError
from export.onnx.tensor_types import read_precision
from export.optional import is_installed
from export.progress import ProgressCallback, ignore_progress


@dataclass(frozen=True)
class Bench:
    """What was measured against what.

    Attributes:
        baseline: name of the engine that the speed-ups are over.
        latency: of all engines that ran, and the reasons of those that failed.
        not_run: those that cannot be run as asked, with the reason.
        notes: on engines that were built again for this machine.
        conditions: CPU, threads, batch and time, in words.
    """

    baseline: str
    latency: LatencyReport
    not_run: Mapping[str, DeployError]
    notes: tuple[str, ...] = ()
    conditions: str = ""


def bench_bundle(
    bundle: Bundle,
    settings: LatencySettings,
    *,
    batch: int = 1,
    threads: int = 0,
    trust: tuple[str, ...] = (),
    substitution: Substitution = AS_THEY_ARE,
    progress: ProgressCallback = ignore_progress,
) -> Bench:
    """Measure every engine of a bundle that can be opened here, on its golden inputs.

    The baseline is the first that can be run: eager torch where the bundle holds it, the float32
    engine of ONNX Runtime, any other. What becomes of engines of TensorRT that do not run here is
    in `substitution`.

    Raises:
        EngineError: one of them does not, and the others were not to be measured without it.
        BundleError: the bundle has nothing for this machine.
        DeployError: nothing of it can be run; the error is that of the last engine tried.
    """
    entries = bundle.manifest.engines
    rebuilt, not_run = settle_unfit(bundle, substitution, threads=threads)
    names = [
        name
        for name, entry in entries.items()
        if name not in not_run and (entry.not_run is None or needs_gpu(entry))
    ]
    if not names:
        raise BundleError(f"{bundle.path} has no engine that can be run on this machine.")
    golden = bundle.golden().inputs
    static = bundle.manifest.inputs[0].shape[0]
    size = static if isinstance(static, int) else batch
    feeds = {name: array[np.arange(size) % len(array)] for name, array in golden.items()}
    preferred = ("torch", FALLBACK)
    order = sorted(names, key=lambda name: (name not in preferred, name != "torch"))
    specs = [
        rebuilt[name].spec if name in rebuilt else bundle.spec(name, threads=threads, trust=trust)
        for name in order
    ]
    found = _measure(specs, feeds, settings, progress)
    notes = tuple(each.note for each in rebuilt.values())
    return replace(found, not_run={**not_run, **found.not_run}, notes=notes)


def bench_onnx(
    path: Path,
    settings: LatencySettings,
    *,
    batch: int = 1,
    threads: int = 0,
    progress: ProgressCallback = ignore_progress,
) -> Bench:
    """Measure an ONNX file in ONNX Runtime and, where installed, OpenVINO, on synthetic inputs.

    Both run it in the precision of its graph; a float32 graph runs in OpenVINO in bf16 as well.

    Raises:
        LoadError: there is no such file, or it is no ONNX model.
        EngineError: ONNX Runtime cannot open it.
    """
    if not path.is_file():
        raise LoadError(f"{path}: no such file. Pass a bundle or an ONNX file.")
    threads = threads or usable_cores()
    precision = read_precision(path)
    baseline = EngineSpec("onnxruntime", precision, str(path), threads)
    others = []
    if is_installed("openvino"):
        precisions = ("fp32", "bf16") if precision == "fp32" else (precision,)
        others = [EngineSpec("openvino", p, str(path), threads) for p in precisions]
    with EngineProcess(baseline) as process:
        feeds: Feeds = synthetic_feeds(process.inputs, batch, seed=settings.seed)
    return _measure([baseline, *others], feeds, settings, progress)


def _measure(
    specs: Sequence[EngineSpec],
    feeds: Feeds,
    settings: LatencySettings,
    progress: ProgressCallback,
) -> Bench:
    """Measure all that this machine can run; the first that does is the baseline."""
    not_run: dict[str, DeployError] = {}
    for spec in specs:
        if (reason := find_obstacle(spec.engine, spec.precision)) is not None:
            not_run[spec.name] = EngineError(reason)
    waiting = [spec for spec in specs if spec.name not in not_run]
    failed: dict[str, str] = {}
    while waiting:
        baseline, *waiting = waiting
        try:
            report = measure(baseline, waiting, feeds, settings, progress)
        except DeployError as error:
            if not waiting:
                raise
            if isinstance(error, TrustError):
                not_run[baseline.name] = error
            else:
                failed[baseline.name] = str(error)
            continue
        latency = replace(report, failed={**failed, **report.failed})
        conditions = _describe_conditions(baseline.threads, feeds)
        return Bench(baseline.name, latency, not_run, conditions=conditions)
    raise EngineError("; ".join(f"{name}: {error}" for name, error in not_run.items()))


def _describe_conditions(threads: int, feeds: Feeds) -> str:
    """What the times hold for, the batch of the inputs that were timed among it."""
    machine = describe_machine()
    batch = next((len(array) for array in feeds.values() if array.ndim), 1)
    devices = " and ".join(name for name in (machine.cpu, machine.gpu) if name)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{devices}, {threads} thread{'s' * (threads != 1)}, batch {batch}, {now}"
