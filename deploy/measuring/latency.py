"""Latency of several engines, measured so that the differences can be believed.

Each engine lives in a process of its own. They run in turns: short blocks in random order, round
after round, on the same inputs with the same number of threads. A second copy of the baseline runs
among them; its ratio to the baseline is the noise of the day (the A/A control).
"""

import contextlib
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.engines.base import EngineSpec, Feeds
from deploy.engines.process import EngineProcess, open_processes
from deploy.measuring.bootstrap import Floats, Interval, estimate_quantiles, estimate_ratio
from export.errors import DeployError
from export.progress import Progress, ProgressCallback, ignore_progress

_MIN_BLOCK_S, _MAX_BLOCK_S = 0.01, 0.1
_MIN_CALLS, _MAX_CALLS = 3, 1000
_BLOCKS = 2
_MIN_ROUNDS, _MAX_ROUNDS = 10, 60
_SETTLE_S = 0.005
_WARM_CALLS = 3
_WARM_BLOCKS, _STABLE = 10, 0.03
_P99_SAMPLES = 1000


@dataclass(frozen=True)
class LatencySettings:
    """How long and in which order to measure.

    Attributes:
        seconds: aim of the whole measurement after warm-up; rounds are chosen to meet it.
        seed: of the order of the blocks and of the bootstrap.
    """

    seconds: float = 20.0
    seed: int = 0


@dataclass(frozen=True)
class EngineLatency:
    """Times of one engine in seconds with 95% intervals; `speedup` is over the baseline."""

    samples: int
    first: float
    p50: float
    p50_ci95: Interval
    p90: float
    p90_ci95: Interval
    p99: float | None
    p99_ci95: Interval | None
    speedup: float
    speedup_ci95: Interval
    block_medians: Floats
    """Seconds, shape (rounds, blocks), for ratios between any two engines of the run."""


@dataclass(frozen=True)
class LatencyReport:
    """Every engine of a run by name, those that failed with the reason, and the A/A control."""

    engines: dict[str, EngineLatency]
    failed: dict[str, str]
    control: float
    control_ci95: Interval
    rounds: int
    blocks_per_round: int
    seconds: float


@dataclass
class _Runner:
    """One engine of the run: its process and the plan of its blocks."""

    name: str
    process: EngineProcess
    first: float
    calls: int


def measure(
    baseline: EngineSpec,
    candidates: Sequence[EngineSpec],
    feeds: Feeds,
    settings: LatencySettings,
    progress: ProgressCallback = ignore_progress,
) -> LatencyReport:
    """Measure `candidates` against `baseline` on `feeds`, interleaved.

    Raises:
        DeployError: the baseline itself cannot be opened or run. A candidate that cannot is
            listed under `failed` with its reason, and the rest go on.
    """
    names = [spec.name for spec in (baseline, *candidates)]
    if len(set(names)) < len(names):
        raise ValueError(f"two engines of one name cannot be told apart: {names}")
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        block = _block_seconds(settings, engines=2 + len(candidates))
        specs = (baseline, baseline, *candidates)
        runners = []
        labels = ("baseline", "control", *names[1:])
        for label, process in zip(labels, open_processes(specs, stack), strict=True):
            try:
                runners.append(_start(label, process, feeds, block))
            except DeployError as error:
                if label in ("baseline", "control"):
                    raise
                failed[label] = str(error)
        started = time.perf_counter()
        times, failed_later = _run_rounds(runners, settings, progress)
        seconds = time.perf_counter() - started
    return _summarize(runners, times, {**failed, **failed_later}, seconds, settings)


def _start(name: str, process: EngineProcess | DeployError, feeds: Feeds, block: float) -> _Runner:
    """Make an engine's first call, and warm it up to a stable median."""
    if isinstance(process, DeployError):
        raise process
    first = process.prepare(feeds)
    median = float(process.time(1)[0])
    for _ in range(_WARM_BLOCKS):
        previous, median = median, float(np.median(process.time(_calls_for(median, block))))
        if abs(median - previous) <= _STABLE * previous:
            break
    return _Runner(name, process, first, _calls_for(median, block))


def _block_seconds(settings: LatencySettings, *, engines: int) -> float:
    """Length of a block: short enough for the least number of rounds in the time given."""
    share = settings.seconds / (_MIN_ROUNDS * _BLOCKS * engines)
    return min(_MAX_BLOCK_S, max(_MIN_BLOCK_S, share))


def _calls_for(seconds_per_call: float, block: float) -> int:
    return max(_MIN_CALLS, min(_MAX_CALLS, math.ceil(block / max(seconds_per_call, 1e-7))))


def _run_rounds(
    runners: list[_Runner], settings: LatencySettings, progress: ProgressCallback
) -> tuple[dict[str, list[Floats]], dict[str, str]]:
    """Blocks of all engines in random order, round after round. Seconds by engine and block."""
    order = random.Random(settings.seed)
    times: dict[str, list[Floats]] = {runner.name: [] for runner in runners}
    failed: dict[str, str] = {}
    started = time.perf_counter()
    done, rounds = 0, _MIN_ROUNDS
    while done < rounds:
        turns = [runner for runner in runners if runner.name not in failed for _ in range(_BLOCKS)]
        order.shuffle(turns)
        for runner in turns:
            if runner.name in failed:
                continue
            time.sleep(_SETTLE_S)  # thread pools of the engine before spin on for a while
            try:
                times[runner.name].append(runner.process.time(runner.calls, warmup=_WARM_CALLS))
            except DeployError as error:
                if runner.name in ("baseline", "control"):
                    raise
                failed[runner.name] = str(error)
        done += 1
        per_round = (time.perf_counter() - started) / done
        rounds = max(_MIN_ROUNDS, min(_MAX_ROUNDS, round(settings.seconds / per_round)))
        progress(Progress("measure latency", done, rounds))
    return times, failed


def _summarize(
    runners: list[_Runner],
    times: dict[str, list[Floats]],
    failed: dict[str, str],
    seconds: float,
    settings: LatencySettings,
) -> LatencyReport:
    arrays = {
        name: np.array(blocks).reshape(-1, _BLOCKS, blocks[0].size)
        for name, blocks in times.items()
        if name not in failed
    }
    medians = {name: np.median(array, axis=2) for name, array in arrays.items()}
    baseline = medians["baseline"]
    control, control_ci95 = estimate_ratio(baseline, medians["control"], seed=settings.seed)
    engines = {}
    for runner in runners:
        if runner.name == "control" or runner.name in failed:
            continue
        speedup, interval = 1.0, (1.0, 1.0)
        if runner.name != "baseline":
            speedup, interval = estimate_ratio(baseline, medians[runner.name], seed=settings.seed)
            interval = widen_interval(interval, control)
        engines[runner.process.spec.name] = _summarize_engine(
            arrays[runner.name], runner.first, (speedup, interval), settings.seed
        )
    return LatencyReport(
        engines=engines,
        failed=failed,
        control=control,
        control_ci95=control_ci95,
        rounds=len(baseline),
        blocks_per_round=_BLOCKS,
        seconds=seconds,
    )


def widen_interval(interval: Interval, control: float) -> Interval:
    """An interval of a speed-up, made wider by what the A/A control is off by.

    Two processes that run the same differ by a few percent for as long as they live, by the luck of
    their memory. Rounds and blocks of the same two processes cannot show that; the control does.
    """
    off = max(control, 1 / control)
    return interval[0] / off, interval[1] * off


def _summarize_engine(
    times: Floats, first: float, speedup: tuple[float, Interval], seed: int
) -> EngineLatency:
    enough = times.size >= _P99_SAMPLES
    (p50, p50_ci), (p90, p90_ci), (p99, p99_ci) = estimate_quantiles(times, (50, 90, 99), seed=seed)
    return EngineLatency(
        samples=int(times.size),
        first=first,
        p50=p50,
        p50_ci95=p50_ci,
        p90=p90,
        p90_ci95=p90_ci,
        p99=p99 if enough else None,
        p99_ci95=p99_ci if enough else None,
        speedup=speedup[0],
        speedup_ci95=speedup[1],
        block_medians=np.median(times, axis=2),
    )
