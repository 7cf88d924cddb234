"""Latency of several engines, measured so that the differences can be believed.

Each engine lives in a process of its own. They run in turns: short blocks in random order, round
after round, on the same inputs with the same number of threads. A second copy of the baseline runs
among them; its ratio to the baseline is the noise of the day (the A/A control). In the course of it
all are closed and opened anew, since a process has its luck for as long as it lives.
"""

import contextlib
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deploy.engines.base import EngineSpec, Feeds
from deploy.engines.process import EngineProcess, open_processes
from deploy.measuring.bootstrap import Floats, Interval, estimate_quantiles, estimate_ratio
from deploy.measuring.luck import Luck, estimate_luck, widen_interval
from export.errors import DeployError
from export.progress import Progress, ProgressCallback, ignore_progress

_MIN_BLOCK_S, _MAX_BLOCK_S = 0.002, 0.1
_MIN_CALLS, _MAX_CALLS = 3, 1000
_BLOCKS = 2
_MIN_ROUNDS, _MAX_ROUNDS = 12, 60
_OPENINGS, _OPENINGS_OF_FEW, _FEW = 2, 3, 4
_SETTLE_S = 0.005
_WARM_CALLS = 3
_LONG_S = 0.75
"""Seconds from which a call goes without warm-up and fills a block alone: what another engine left
cold costs milliseconds. Below, there are as many calls of either kind as it holds."""
_WARM_BLOCKS, _STABLE, _WARM_S = 10, 0.03, 3.0
_P99_SAMPLES = 1000
_BASELINE, _CONTROL = "baseline", "control"


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
    """Seconds, shape (openings, rounds, blocks), for ratios between any two engines of the run."""
    luck: Luck
    """Of the run, shared by all of its engines."""


@dataclass(frozen=True)
class LatencyReport:
    """Every engine of a run by name, those that failed with the reason, and the A/A control.

    `rounds` are those of all `openings` together.
    """

    engines: dict[str, EngineLatency]
    failed: dict[str, str]
    control: float
    control_ci95: Interval
    openings: int
    rounds: int
    blocks_per_round: int
    seconds: float


@dataclass
class _Session:
    """What all openings have in common: the settings, and what is known so far."""

    specs: Mapping[str, EngineSpec]
    feeds: Feeds
    settings: LatencySettings
    progress: ProgressCallback
    order: random.Random
    openings: int
    rounds: int = 0
    """Of each opening; the first decides."""
    done: int = 0
    seconds: float = 0.0
    first: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    warm: dict[str, int] = field(default_factory=dict)
    times: dict[str, list[Floats]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def fail(self, name: str, error: DeployError) -> None:
        """A candidate is listed with its reason and left out from here on.

        Raises:
            DeployError: it is the baseline, without which there is nothing to compare with.
        """
        if name in (_BASELINE, _CONTROL):
            raise error
        self.failed[name] = str(error)


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
    specs = {_BASELINE: baseline, _CONTROL: baseline}
    specs.update({spec.name: spec for spec in candidates})
    session = _Session(
        specs=specs,
        feeds=feeds,
        settings=settings,
        progress=progress,
        order=random.Random(settings.seed),
        openings=_OPENINGS_OF_FEW if len(specs) <= _FEW else _OPENINGS,
    )
    for _ in range(session.openings):
        _measure_opening(session)
    return _summarize(session)


def _measure_opening(session: _Session) -> None:
    """Open all that have not failed, warm them up, and run one opening's rounds."""
    names = [name for name in session.specs if name not in session.failed]
    with contextlib.ExitStack() as stack:
        opened = open_processes([session.specs[name] for name in names], stack)
        running: dict[str, EngineProcess] = {}
        for name, process in zip(names, opened, strict=True):
            try:
                running[name] = _start(session, name, process)
            except DeployError as error:
                session.fail(name, error)
        started = time.perf_counter()
        _run_rounds(session, running)
        session.seconds += time.perf_counter() - started


def _start(session: _Session, name: str, process: EngineProcess | DeployError) -> EngineProcess:
    """Make an engine's first call, and warm it up to a stable median, or for `_WARM_S`."""
    if isinstance(process, DeployError):
        raise process
    block = _block_seconds(session.settings, engines=len(session.specs))
    first = process.prepare(session.feeds)
    median = spent = float(process.time(1)[0])
    for _ in range(_WARM_BLOCKS):
        calls = _calls_for(median, block)
        previous, median = median, float(np.median(process.time(calls)))
        spent += calls * median
        if abs(median - previous) <= _STABLE * previous or spent > _WARM_S:
            break
    session.first.setdefault(name, first)
    session.calls.setdefault(name, _calls_for(median, block))
    session.warm.setdefault(name, _fit_calls(median, _WARM_CALLS))
    return process


def _block_seconds(settings: LatencySettings, *, engines: int) -> float:
    """Length of a block: short enough for the least number of rounds in the time given."""
    share = settings.seconds / (_MIN_ROUNDS * _BLOCKS * engines)
    return min(_MAX_BLOCK_S, max(_MIN_BLOCK_S, share))


def _calls_for(seconds_per_call: float, block: float) -> int:
    least = max(1, _fit_calls(seconds_per_call, _MIN_CALLS))
    return max(least, min(_MAX_CALLS, math.ceil(block / max(seconds_per_call, 1e-7))))


def _fit_calls(seconds_per_call: float, most: int) -> int:
    """Calls that fit into `_LONG_S`, up to `most`."""
    return min(most, int(_LONG_S / max(seconds_per_call, 1e-7)))


def _run_rounds(session: _Session, running: Mapping[str, EngineProcess]) -> None:
    """Blocks of all engines in random order, round after round.

    The first opening takes as many rounds as fit its share of the time, the others as many as it.
    """
    started = time.perf_counter()
    done, rounds = 0, session.rounds or _share(_MIN_ROUNDS, session.openings)
    while done < rounds:
        turns = [name for name in running if name not in session.failed for _ in range(_BLOCKS)]
        session.order.shuffle(turns)
        for name in turns:
            if name in session.failed:
                continue
            time.sleep(_SETTLE_S)  # thread pools of the engine before spin on for a while
            try:
                block = running[name].time(session.calls[name], warmup=session.warm[name])
            except DeployError as error:
                session.fail(name, error)
            else:
                session.times.setdefault(name, []).append(block)
        done += 1
        if not session.rounds:
            per_round = (time.perf_counter() - started) / done
            fitting = round(session.settings.seconds / session.openings / per_round)
            least, most = (_share(n, session.openings) for n in (_MIN_ROUNDS, _MAX_ROUNDS))
            rounds = max(done, least, min(most, fitting))  # a slow one may leave room for fewer
        session.done += 1
        session.progress(Progress("measure latency", session.done, rounds * session.openings))
    session.rounds = rounds


def _share(rounds: int, openings: int) -> int:
    return -(-rounds // openings)


def _summarize(session: _Session) -> LatencyReport:
    shape = (session.openings, session.rounds, _BLOCKS)
    arrays = {
        name: np.array(blocks).reshape(*shape, blocks[0].size)
        for name, blocks in session.times.items()
        if name not in session.failed
    }
    medians = {name: np.median(array, axis=3) for name, array in arrays.items()}
    seed = session.settings.seed
    luck = estimate_luck(list(medians.values()), seed=seed)
    baseline = medians[_BASELINE]
    control, control_ci95 = compare_times(baseline, medians[_CONTROL], luck, seed=seed)
    engines = {}
    for name, spec in session.specs.items():
        if name == _CONTROL or name in session.failed:
            continue
        speedup, interval = 1.0, (1.0, 1.0)
        if name != _BASELINE:
            speedup, interval = compare_times(baseline, medians[name], luck, seed=seed)
        engines[spec.name] = _summarize_engine(
            arrays[name], session.first[name], (speedup, interval), luck, seed
        )
    return LatencyReport(
        engines=engines,
        failed=session.failed,
        control=control,
        control_ci95=control_ci95,
        openings=session.openings,
        rounds=session.openings * session.rounds,
        blocks_per_round=_BLOCKS,
        seconds=session.seconds,
    )


def compare_times(
    numerator: Floats, denominator: Floats, luck: Luck, *, seed: int
) -> tuple[float, Interval]:
    """Ratio of the block medians of two engines of a run, and its 95% interval, luck included."""
    ratio, interval = estimate_ratio(numerator, denominator, seed=seed)
    return ratio, widen_interval(ratio, interval, luck.margin(2))


def _summarize_engine(
    times: Floats, first: float, speedup: tuple[float, Interval], luck: Luck, seed: int
) -> EngineLatency:
    enough = times.size >= _P99_SAMPLES
    found = estimate_quantiles(times, (50, 90, 99), seed=seed)
    (p50, p50_ci), (p90, p90_ci), (p99, p99_ci) = (
        (value, widen_interval(value, interval, luck.margin(1))) for value, interval in found
    )
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
        block_medians=np.median(times, axis=3),
        luck=luck,
    )
