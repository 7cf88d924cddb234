"""One run of an engine for several requests: joined, called, split, and looked at member by member.

Runs in the thread of an engine's instance. A batch that fails is run again member by member, so
that only the request that is to blame gets the blame.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deploy.engines.base import Array, Feeds
from deploy.serving.batching.waiting import Job
from deploy.serving.errors import EngineFailedError, RequestError, describe_failure
from export.errors import DeployError

_LOG = logging.getLogger("deploy.serving")

Run = Callable[[Feeds], dict[str, Array]]
"""An opened engine, or anything that is called as one."""
Inspect = Callable[[Feeds, Mapping[str, Array]], RequestError | None]
"""Looks at the inputs and outputs of one request; what it returns is answered in their place."""
Outcome = dict[str, Array] | RequestError


class BatchRun(NamedTuple):
    """What became of a run.

    Attributes:
        outcomes: one a job, in their order.
        executions: how often the engine was called.
        started: when, by the monotonic clock.
        join_s: seconds spent on joining inputs.
        compute_s: seconds in the engine.
        split_s: seconds spent on splitting and looking at outputs.
    """

    outcomes: list[Outcome]
    executions: int
    started: float
    join_s: float
    compute_s: float
    split_s: float

    @property
    def total_s(self) -> float:
        """Seconds of all of it."""
        return self.join_s + self.compute_s + self.split_s


def accept_all(feeds: Feeds, outputs: Mapping[str, Array]) -> RequestError | None:
    """Look at nothing."""
    return None


@dataclass(frozen=True)
class RunPlan:
    """How every run of an engine is done.

    Attributes:
        batch_axes: which axis of each output is the batch.
        inspect: sees inputs and outputs of every request.
        sizes: the only numbers of rows that the engine is to see, ascending; a run is filled up to
            the next one. Empty: any. For engines that compile a program for every size.
    """

    batch_axes: Mapping[str, int]
    inspect: Inspect = accept_all
    sizes: tuple[int, ...] = ()


def run_batch(engine: Run, jobs: Sequence[Job], plan: RunPlan) -> BatchRun:
    """Run all of `jobs` at once, and one by one where that fails; never raises.

    Args:
        engine: called with named arrays.
        jobs: of one group; their rows are joined on the leading axis.
        plan: how.
    """
    started = time.monotonic()
    try:
        return _run_together(engine, jobs, plan, started)
    except Exception:  # noqa: BLE001  no memory to join, say; the thread of later requests goes on
        _LOG.exception("a run failed")
        failed = EngineFailedError("the server failed on this request; its log says how")
        return BatchRun([failed] * len(jobs), 0, started, 0.0, 0.0, time.monotonic() - started)


def _run_together(engine: Run, jobs: Sequence[Job], plan: RunPlan, started: float) -> BatchRun:
    feeds = _join(jobs, plan)
    joined = time.monotonic()
    outputs = _call(engine, feeds)
    if isinstance(outputs, RequestError) and len(jobs) > 1:
        return _run_alone(engine, jobs, plan)
    computed = time.monotonic()
    outcomes = (
        [outputs] if isinstance(outputs, RequestError) else _split(outputs, feeds, jobs, plan)
    )
    outcomes = [
        outcome
        if isinstance(outcome, RequestError)
        else plan.inspect(job.feeds, outcome) or outcome
        for job, outcome in zip(jobs, outcomes, strict=True)
    ]
    ended = time.monotonic()
    return BatchRun(outcomes, 1, started, joined - started, computed - joined, ended - computed)


def _run_alone(engine: Run, jobs: Sequence[Job], plan: RunPlan) -> BatchRun:
    runs = [run_batch(engine, [job], plan) for job in jobs]
    return BatchRun(
        outcomes=[run.outcomes[0] for run in runs],
        executions=1 + len(runs),
        started=runs[0].started,
        join_s=sum(run.join_s for run in runs),
        compute_s=sum(run.compute_s for run in runs),
        split_s=sum(run.split_s for run in runs),
    )


def _call(engine: Run, feeds: Feeds) -> Outcome:
    try:
        return engine(feeds)
    except DeployError as error:
        _LOG.warning("the engine failed: %s", error)
        return EngineFailedError(f"the engine failed on this request: {describe_failure(error)}")
    except Exception:  # noqa: BLE001  a bug below must not end the thread of all later requests
        _LOG.exception("the engine failed in a way that it does not declare")
        return EngineFailedError("the engine failed on this request; the server's log says how")


def _join(jobs: Sequence[Job], plan: RunPlan) -> Feeds:
    """One batch of all jobs' rows; where it must be filled up, the last row is repeated."""
    first = jobs[0].feeds
    if len(jobs) == 1 and not plan.sizes:
        return first
    rows = sum(job.rows for job in jobs)
    missing = next((size for size in plan.sizes if size >= rows), rows) - rows
    if len(jobs) == 1 and not missing:
        return first
    parts = {name: [job.feeds[name] for job in jobs] for name in first}
    for arrays in parts.values():
        arrays += [arrays[-1][-1:]] * missing
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _split(
    outputs: dict[str, Array], feeds: Feeds, jobs: Sequence[Job], plan: RunPlan
) -> list[Outcome]:
    """Each job's own rows of the outputs, as views."""
    if feeds is jobs[0].feeds:
        return [outputs]
    rows = next(iter(feeds.values())).shape[0]
    for name, axis in plan.batch_axes.items():
        if outputs[name].shape[axis] != rows:
            _LOG.error("output %r has shape %s for %d rows", name, outputs[name].shape, rows)
            failed = EngineFailedError(f"output {name!r} does not have a row for every sample")
            return [failed] * len(jobs)
    shares: list[Outcome] = []
    start = 0
    for job in jobs:
        window = slice(start, start + job.rows)
        shares.append(
            {
                name: array[(slice(None),) * plan.batch_axes[name] + (window,)]
                for name, array in outputs.items()
            }
        )
        start += job.rows
    return shares
