"""What a served model has done so far, in numbers; only the event loop counts."""

import bisect
import statistics
from collections import deque
from collections.abc import Sequence

from deploy.serving.batching.running import BatchRun
from deploy.serving.batching.waiting import Job
from deploy.serving.errors import REASONS, RequestError

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histogram, in seconds; one more is without bound."""

_RECENT = 512
"""Runs whose times are kept for the live median."""

_ENOUGH = 20
"""Runs below which no median is told."""


class ModelStatistics:
    """Counters of one model. Durations are sums over requests, in microseconds, as Triton has them.

    Args:
        reported_ms: median time of one run in the report of the build; None: not measured.
        reported_rows: rows of such a run.
    """

    def __init__(self, reported_ms: float | None = None, reported_rows: int = 1) -> None:
        self.reported_ms = reported_ms
        self.reported_rows = reported_rows
        self.success = 0
        self.failures = dict.fromkeys(REASONS, 0)
        self.rows = 0
        self.executions = 0
        self.request_us = 0.0
        self.queue_us = 0.0
        self.join_us = 0.0
        self.compute_us = 0.0
        self.split_us = 0.0
        self.histogram = [0] * (len(BUCKETS_S) + 1)
        self._run_ms: deque[float] = deque(maxlen=_RECENT)
        self._request_ms: deque[float] = deque(maxlen=_RECENT)

    def observe(self, jobs: Sequence[Job], run: BatchRun) -> None:
        """Count one run of the engine."""
        self.executions += run.executions
        rows, count = 0, len(jobs)
        for job in jobs:
            self.queue_us += (run.started - job.arrived) * 1e6
            rows += job.rows
        self.rows += rows
        self.join_us += run.join_s * 1e6 * count
        self.compute_us += run.compute_s * 1e6 * count
        self.split_us += run.split_s * 1e6 * count
        if rows == self.reported_rows and run.executions == 1:
            self._run_ms.append(run.compute_s * 1e3)

    def succeed(self, seconds: float) -> None:
        """Count a request that was answered."""
        self.success += 1
        self._finish(seconds)

    def fail(self, error: RequestError | None, seconds: float) -> None:
        """Count a request that was not answered with a result; None: its sender went away."""
        reason = "CANCELED" if error is None else error.reason
        self.failures[reason if reason in self.failures else "OTHER"] += 1
        if error is not None:
            error.counted = True
        self._finish(seconds)

    @property
    def live_ms(self) -> float | None:
        """Median time of the last runs of `reported_rows` rows; None: too few yet."""
        return _median(self._run_ms)

    @property
    def request_ms(self) -> float | None:
        """Median time of the last requests, from arrival to answer."""
        return _median(self._request_ms)

    @property
    def drift(self) -> float | None:
        """Live median over that of the report: 1 is as fast as when it was built."""
        live = self.live_ms
        return None if live is None or not self.reported_ms else live / self.reported_ms

    def _finish(self, seconds: float) -> None:
        self.request_us += seconds * 1e6
        self.histogram[bisect.bisect_left(BUCKETS_S, seconds)] += 1
        self._request_ms.append(seconds * 1e3)


def _median(times: deque[float]) -> float | None:
    return statistics.median(times) if len(times) >= _ENOUGH else None
