"""What is counted of a model, and how far it has drifted from the report of its build."""

import numpy as np
import pytest

from deploy.serving.batching.running import BatchRun
from deploy.serving.batching.waiting import Job
from deploy.serving.errors import DeadlineError, NotOfferedError, QueueFullError
from deploy.serving.models.statistics import BUCKETS_S, ModelStatistics


def observe(statistics: ModelStatistics, *sizes: int, compute_s: float = 0.002) -> None:
    jobs = [
        Job({"x": np.zeros((rows, 1))}, rows, 0, 10.0 - 0.001 * number, lambda outcome: None)
        for number, rows in enumerate(sizes)
    ]
    statistics.observe(jobs, BatchRun([], 1, 10.0, 0.0001, compute_s, 0.0002))


def test_runs_are_counted_as_triton_counts_them() -> None:
    statistics = ModelStatistics()
    observe(statistics, 2, 3)
    assert (statistics.rows, statistics.executions) == (5, 1)
    assert statistics.queue_us == pytest.approx(1000)
    assert statistics.compute_us == pytest.approx(2 * 2000)
    assert statistics.join_us == pytest.approx(2 * 100)


def test_requests_are_counted_by_what_became_of_them() -> None:
    statistics = ModelStatistics()
    statistics.succeed(0.002)
    statistics.succeed(100.0)
    statistics.fail(QueueFullError("full"), 0.0)
    statistics.fail(DeadlineError("late"), 0.0)
    statistics.fail(NotOfferedError("no"), 0.0)
    statistics.fail(None, 0.0)
    assert statistics.success == 2
    failures = {reason: count for reason, count in statistics.failures.items() if count}
    assert failures == {"REJECTED": 1, "TIMEOUT": 1, "OTHER": 1, "CANCELED": 1}
    assert sum(statistics.histogram) == 6
    assert statistics.histogram[BUCKETS_S.index(0.0025)] == 1
    assert statistics.histogram[-1] == 1


@pytest.mark.parametrize("bucket", range(len(BUCKETS_S)))
def test_a_bucket_holds_its_upper_bound_as_prometheus_has_it(bucket: int) -> None:
    statistics = ModelStatistics()
    statistics.succeed(BUCKETS_S[bucket])
    assert statistics.histogram[bucket] == 1


def test_requests_that_ran_again_one_by_one_tell_no_time_of_a_run() -> None:
    statistics = ModelStatistics(reported_ms=2.0, reported_rows=2)
    for executions in (3, 1):
        assert statistics.live_ms is None
        for _ in range(20):
            jobs = [Job({}, 1, 0, 0.0, lambda outcome: None) for _ in range(2)]
            statistics.observe(jobs, BatchRun([], executions, 0.0, 0.0, 0.002, 0.0))
    assert statistics.live_ms == pytest.approx(2.0)
    assert statistics.executions == 80


def test_drift_is_the_live_median_over_that_of_the_report() -> None:
    statistics = ModelStatistics(reported_ms=2.0, reported_rows=1)
    for _ in range(19):
        observe(statistics, 1, compute_s=0.003)
    assert statistics.drift is None  # too few
    observe(statistics, 1, compute_s=0.003)
    assert statistics.drift == pytest.approx(1.5)
    for _ in range(100):
        observe(statistics, 4, compute_s=0.1)  # another batch size says nothing
    assert statistics.drift == pytest.approx(1.5)
    for _ in range(600):
        observe(statistics, 1, compute_s=0.001)
    assert statistics.drift == pytest.approx(0.5)
    assert ModelStatistics().drift is None
