"""What waits for an engine: grouped by what may share a run, ordered by urgency, bounded.

Plain data and no clock of its own; `deploy.serving.batching.batcher` drives it.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

from deploy.engines.base import Array
from deploy.serving.errors import QueueFullError
from deploy.serving.tracing.notes import RequestTrace

DEFAULT_PRIORITY = 128
LEAST_URGENT = 255
"""Priorities beyond are taken for this one, so that their number is bounded."""


@dataclass(frozen=True)
class BatchPolicy:
    """How requests share runs, and how many may wait.

    Attributes:
        max_batch: rows of a run, at most; a request of more is refused. 1: every request alone.
        max_delay_s: how long a request may wait for others while an engine is free.
        queue_rows: rows that may wait, at most.
        queue_bytes: bytes of inputs that may wait, at most.
        batched: whether requests may share a run at all.
    """

    max_batch: int = 8
    max_delay_s: float = 0.0
    queue_rows: int = 256
    queue_bytes: int = 256 * 2**20
    batched: bool = True


@dataclass(eq=False)
class Job:
    """One request on its way through the batcher.

    Attributes:
        feeds: named inputs.
        rows: samples in it.
        priority: 1 is the most urgent.
        arrived: when, by the monotonic clock.
        answer: called once with the outputs or the reason why there are none; not after `cancel`.
        size: bytes of its inputs.
        group: requests of equal groups may share a run.
        trace: notes what becomes of it, where traces are asked for.
    """

    feeds: dict[str, Array]
    rows: int
    priority: int
    arrived: float
    answer: Callable[[dict[str, Array] | BaseException], None]
    size: int = field(init=False, default=0)
    group: Hashable = field(init=False, default=None)
    trace: RequestTrace | None = None

    def measure(self) -> None:
        """Find out size and group, which only those need that wait."""
        self.priority = min(self.priority or DEFAULT_PRIORITY, LEAST_URGENT)
        self.size = sum(array.nbytes for array in self.feeds.values())
        self.group = tuple(
            (name, array.dtype, array.shape[1:]) for name, array in self.feeds.items()
        )


class _Group:
    """Jobs that may share a run: by priority, then in order of arrival."""

    def __init__(self) -> None:
        self.levels: dict[int, dict[Job, None]] = {}
        self.rows = 0

    def __iter__(self) -> Iterator[Job]:
        for priority in sorted(self.levels):
            yield from self.levels[priority]

    def add(self, job: Job) -> None:
        self.levels.setdefault(job.priority, {})[job] = None
        self.rows += job.rows

    def remove(self, job: Job) -> bool:
        level = self.levels.get(job.priority, {})
        if job not in level:
            return False
        del level[job]
        if not level:
            del self.levels[job.priority]
        self.rows -= job.rows
        return True

    def oldest(self) -> float:
        return min(next(iter(level)).arrived for level in self.levels.values())


class WaitingJobs:
    """The queue of one model.

    Args:
        policy: its bounds, and what a run may hold.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._groups: dict[Hashable, _Group] = {}
        self.rows = 0
        self.size = 0
        self.jobs = 0

    def add(self, job: Job) -> None:
        """Let `job` wait.

        Raises:
            QueueFullError: it would be more rows or bytes than may wait.
        """
        job.measure()
        if self.rows + job.rows > self._policy.queue_rows:
            raise QueueFullError(f"the queue is full: {self.rows} rows wait")
        if self.size + job.size > self._policy.queue_bytes:
            raise QueueFullError(f"the queue is full: {self.size} bytes wait")
        self._groups.setdefault(job.group, _Group()).add(job)
        self.rows += job.rows
        self.size += job.size
        self.jobs += 1

    def remove(self, job: Job) -> bool:
        """Forget `job`; False where it does not wait (any more)."""
        group = self._groups.get(job.group)
        if group is None or not group.remove(job):
            return False
        if not group.levels:
            del self._groups[job.group]
        self.rows -= job.rows
        self.size -= job.size
        self.jobs -= 1
        return True

    def take(self, now: float, *, alone: bool = False) -> list[Job]:
        """The jobs of the next run, which wait no more; empty where none is due at `now`.

        With `alone` it is one job, the first of those that are due.

        Due is a group that fills a run, and one whose oldest member waited as long as it may. The
        most urgent member decides which goes first. A job that does not fit into what is left of a
        run stays, and leads one of the next.
        """
        due = [group for group in self._groups.values() if self._due_at(group) <= now]
        if not due:
            return []
        group = min(due, key=_urgency)
        taken: list[Job] = []
        room = self._policy.max_batch if self._policy.batched and not alone else 0
        for job in group:
            if job.rows <= room or not taken:
                taken.append(job)
                room -= job.rows
            if room <= 0:
                break
        for job in taken:
            self.remove(job)
        return taken

    def next_due(self) -> float | None:
        """When the next group will be due; None where nothing waits."""
        return min(map(self._due_at, self._groups.values()), default=None)

    def _due_at(self, group: _Group) -> float:
        if not self._policy.batched or group.rows >= self._policy.max_batch:
            return float("-inf")
        return group.oldest() + self._policy.max_delay_s


def _urgency(group: _Group) -> tuple[int, float]:
    first = next(iter(group))
    return first.priority, first.arrived
