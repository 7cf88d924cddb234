"""What waits is bounded, grouped by what may share a run, and taken in the order of urgency."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.serving.batching.waiting import DEFAULT_PRIORITY, BatchPolicy, Job, WaitingJobs
from deploy.serving.errors import QueueFullError


def make_job(
    rows: int = 1, *, width: int = 4, dtype: str = "float32", priority: int = 0, at: float = 0.0
) -> Job:
    return Job({"x": np.zeros((rows, width), dtype)}, rows, priority, at, lambda outcome: None)


def fill(policy: BatchPolicy, *jobs: Job) -> WaitingJobs:
    waiting = WaitingJobs(policy)
    for job in jobs:
        waiting.add(job)
    return waiting


def test_a_run_holds_what_arrived_first_up_to_its_rows() -> None:
    jobs = [make_job(3, at=float(at)) for at in range(4)]
    waiting = fill(BatchPolicy(max_batch=8), *jobs)
    assert waiting.take(10.0) == jobs[:2]
    assert waiting.take(10.0) == jobs[2:]
    assert (waiting.rows, waiting.size, waiting.jobs) == (0, 0, 0)


def test_what_does_not_fit_leads_the_next_run() -> None:
    first, large, small = make_job(3, at=0.0), make_job(6, at=1.0), make_job(1, at=2.0)
    waiting = fill(BatchPolicy(max_batch=8), first, large, small)
    assert waiting.take(10.0) == [first, small]
    assert waiting.take(10.0) == [large]


def test_other_shapes_and_dtypes_never_share_a_run() -> None:
    jobs = [make_job(), make_job(width=5), make_job(dtype="float64"), make_job()]
    waiting = fill(BatchPolicy(), *jobs)
    runs = [waiting.take(10.0) for _ in range(3)]
    assert runs == [[jobs[0], jobs[3]], [jobs[1]], [jobs[2]]]


def test_the_urgent_go_first_and_equals_in_order() -> None:
    late, urgent, default = make_job(at=0.0, priority=200), make_job(priority=1), make_job()
    waiting = fill(BatchPolicy(max_batch=1), late, default, urgent)
    assert [waiting.take(10.0) for _ in range(3)] == [[urgent], [default], [late]]
    assert default.priority == DEFAULT_PRIORITY
    least = make_job(priority=10**6)
    fill(BatchPolicy(), least)
    assert least.priority == 255


def test_a_part_of_a_run_waits_as_long_as_it_may_and_a_full_one_not_at_all() -> None:
    waiting = fill(BatchPolicy(max_batch=4, max_delay_s=5.0), make_job(2, at=1.0))
    assert waiting.take(5.9) == []
    assert waiting.next_due() == 6.0
    assert len(waiting.take(6.0)) == 1
    waiting = fill(BatchPolicy(max_batch=4, max_delay_s=5.0), make_job(2), make_job(2))
    assert len(waiting.take(0.0)) == 2
    assert waiting.next_due() is None


def test_whoever_waits_longest_decides_when_a_group_is_due_however_urgent_others_are() -> None:
    late, urgent = make_job(at=1.0, priority=200), make_job(at=3.0, priority=1)
    for jobs in ((late, urgent), (urgent, late)):
        waiting = fill(BatchPolicy(max_batch=4, max_delay_s=5.0), *jobs)
        assert waiting.next_due() == 6.0
        assert waiting.take(6.0) == [urgent, late]


def test_models_without_a_batch_axis_run_alone() -> None:
    waiting = fill(BatchPolicy(batched=False, max_delay_s=9.0), make_job(3), make_job(3))
    assert [len(waiting.take(0.0)) for _ in range(3)] == [1, 1, 0]


def test_rows_and_bytes_are_bounded() -> None:
    waiting = fill(BatchPolicy(queue_rows=3), make_job(2))
    with pytest.raises(QueueFullError, match="2 rows wait"):
        waiting.add(make_job(2))
    waiting.add(make_job(1))
    waiting = fill(BatchPolicy(queue_bytes=40), make_job(2))
    with pytest.raises(QueueFullError, match="32 bytes wait"):
        waiting.add(make_job(1))
    fill(BatchPolicy(queue_bytes=48), make_job(2), make_job(1))


def test_what_was_removed_is_gone_and_counts_no_more() -> None:
    kept, gone = make_job(2), make_job(2)
    waiting = fill(BatchPolicy(queue_rows=4), kept, gone)
    assert waiting.remove(gone)
    assert not waiting.remove(gone)
    assert (waiting.rows, waiting.jobs, waiting.size) == (2, 1, 32)
    waiting.add(make_job(2))
    assert waiting.take(10.0)[0] is kept
    assert not waiting.remove(kept)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("add", "remove", "take")),
            st.integers(1, 4),
            st.sampled_from((3, 4)),
            st.integers(0, 3),
        ),
        max_size=60,
    )
)
def test_no_job_is_lost_or_taken_twice(steps: list[tuple[str, int, int, int]]) -> None:
    policy = BatchPolicy(max_batch=4, queue_rows=20)
    waiting, inside = WaitingJobs(policy), []
    for at, (what, rows, width, priority) in enumerate(steps):
        if what == "add":
            job = make_job(rows, width=width, priority=priority, at=float(at))
            if sum(other.rows for other in inside) + rows > policy.queue_rows:
                with pytest.raises(QueueFullError):
                    waiting.add(job)
                continue
            waiting.add(job)
            inside.append(job)
        elif what == "remove" and inside:
            assert waiting.remove(inside.pop(rows % len(inside)))
        elif what == "take":
            taken = waiting.take(float(at))
            assert bool(taken) == bool(inside)
            assert sum(job.rows for job in taken) <= policy.max_batch
            assert len({job.group for job in taken}) <= 1
            if taken:
                assert taken[0].priority == min(job.priority for job in inside)
            for job in taken:
                inside.remove(job)
        assert waiting.rows == sum(job.rows for job in inside)
        assert waiting.jobs == len(inside)
