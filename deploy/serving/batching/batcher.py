"""Joins requests into runs of an engine: at once where an instance is free, else as they queue.

- A request that finds an instance free and nothing waiting runs at once.
- Otherwise it waits, within bounds of rows and bytes. An instance that comes free takes what fills
  a run, or whose oldest member has waited `max_delay_s`; with a delay of 0 whatever waits.
- Requests share a run where that takes less time a row than one after the other, as seen so far.
- A run that takes less than handing it to a thread does happens on the event loop itself.
- A run holds at most `max_batch` rows of requests that agree in dtypes and trailing shapes; no
  request is split.
- What expires or is cancelled while it waits is never run; while it runs, its neighbours do not
  notice.

Everything but the runs happens on the event loop, so there are no locks.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence

from deploy.engines.base import Array
from deploy.serving.batching.inline import InlineRuns
from deploy.serving.batching.joining import JoiningGain
from deploy.serving.batching.running import BatchRun, Run, RunPlan, run_batch
from deploy.serving.batching.waiting import BatchPolicy, Job, WaitingJobs
from deploy.serving.errors import (
    DeadlineError,
    MalformedRequestError,
    QueueFullError,
    UnavailableError,
)
from deploy.serving.tracing.notes import RequestTrace

Observe = Callable[[Sequence[Job], BatchRun], None]
"""Told of every run, on the event loop, before its answers are given."""


class _Instance:
    """A thread that runs one engine, a batch at a time."""

    def __init__(self, engine: Run, number: int) -> None:
        self.engine = engine
        self.inbox: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self.since = 0.0
        self.name = f"engine-{number}"


class Batcher:
    """The way of requests to the instances of one engine.

    Args:
        engines: one a thread; each is called by its own thread only.
        policy: how requests share runs, and how many may wait.
        plan: how a run is done, in the engine's thread.
        observe: told of every run.
        gain: what is known of sharing runs.

    Use it within a running event loop, from `start` to `stop`.
    """

    def __init__(
        self,
        engines: Sequence[Run],
        policy: BatchPolicy,
        plan: RunPlan,
        *,
        observe: Observe | None = None,
        gain: JoiningGain | None = None,
    ) -> None:
        self.policy = policy
        self._plan = plan
        self._observe = observe
        self._instances = [_Instance(engine, number) for number, engine in enumerate(engines)]
        self._idle: list[_Instance] = []
        self._waiting = WaitingJobs(policy)
        self._running: set[Job] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._seconds_a_row = 0.0
        self._gain = gain or JoiningGain()
        self._inline = InlineRuns()

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        return self._waiting.jobs + len(self._running)

    @property
    def stalled_s(self) -> float:
        """Seconds for which all instances have been running; 0 where one is free."""
        if self._idle or not self._running:
            return 0.0
        return time.monotonic() - max(instance.since for instance in self._instances)

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self._waiting.jobs

    def start(self) -> None:
        """Start a thread for every instance."""
        self._loop = asyncio.get_running_loop()
        for instance in self._instances:
            thread = threading.Thread(
                target=self._work, args=(instance,), name=instance.name, daemon=True
            )
            instance.thread = thread
            thread.start()
        self._idle = list(self._instances)

    def submit(
        self,
        feeds: dict[str, Array],
        rows: int,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        trace: RequestTrace | None = None,
    ) -> "asyncio.Future[dict[str, Array]]":
        """Hand over a request; cancel the future to withdraw it.

        Args:
            feeds: all inputs, checked against the model's signature.
            rows: samples in it.
            priority: 1 is the most urgent; 0 is in the middle.
            timeout_s: seconds until it is given up; None: never.
            trace: goes along with it, for `observe`.

        Raises:
            MalformedRequestError: it has more rows than a run may hold.
            QueueFullError: too much waits already.
            UnavailableError: the batcher was stopped.
        """
        if self._stopping:
            raise UnavailableError("the server is shutting down")
        if self.policy.batched and rows > self.policy.max_batch:
            raise MalformedRequestError(
                f"a request may have {self.policy.max_batch} rows and has {rows}; send it in parts"
            )
        future: asyncio.Future[dict[str, Array]] = self._loop.create_future()
        job = Job(feeds, rows, priority, time.monotonic(), _Answer(future), trace)
        if self._idle and not self._waiting.jobs:
            size = _count_bytes([job])
            if self._inline.allow(size):
                done = run_batch(self._idle[-1].engine, [job], self._plan)
                self._inline.observe(done.total_s, size, inline=True)
                self._finish([job], done)
                return future
            self._run([job])
        else:
            self._queue(job)
        timer = None
        if timeout_s is not None:
            timer = self._loop.call_later(timeout_s, self._expire, job)
        future.add_done_callback(lambda done: self._settle(job, done, timer))
        return future

    async def drain(self) -> None:
        """Return once nothing waits or runs; requests may still come."""
        while self.pending:
            await asyncio.sleep(0.005)

    async def stop(self, timeout_s: float | None = None) -> bool:
        """Take no more requests, finish those there are, end the threads.

        Returns:
            Whether all is done; False: an engine did not return within `timeout_s`, and its thread
            and what it has in hand are left to themselves.
        """
        self._stopping = True
        self._dispatch()
        try:
            async with asyncio.timeout(timeout_s):
                await self.drain()
        except TimeoutError:
            return False
        self._idle = []
        for instance in self._instances:
            instance.inbox.put(None)
        for instance in self._instances:
            if instance.thread is not None:
                await asyncio.to_thread(instance.thread.join)
        return True

    def _queue(self, job: Job) -> None:
        try:
            self._waiting.add(job)
        except QueueFullError as error:
            seconds = self._waiting.rows * self._seconds_a_row / len(self._instances)
            raise QueueFullError(str(error), max(1, min(60, round(seconds)))) from None
        if self._idle:
            self._dispatch()

    def _dispatch(self) -> None:
        """Give due jobs to free instances, and come back when the next ones will be due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle and self._waiting.jobs:
            now = float("inf") if self._stopping else time.monotonic()
            jobs = self._waiting.take(now, alone=not self._should_join())
            if not jobs:
                due = self._waiting.next_due()
                if due is not None:
                    delay = max(0.0, due - time.monotonic())
                    self._timer = self._loop.call_later(delay, self._dispatch)
                return
            self._run(jobs)

    def _should_join(self) -> bool:
        """Whoever lets requests wait for others wants them joined; else it must pay."""
        waiting, most = self._waiting.rows, self.policy.max_batch
        if self.policy.max_delay_s > 0 or self._waiting.jobs < 2:
            return True
        return self._gain.pays(min(waiting, most), pressed=waiting > most)

    def _run(self, jobs: list[Job]) -> None:
        self._running.update(jobs)
        instance = self._idle.pop()
        instance.since = time.monotonic()
        instance.inbox.put(jobs)

    def _work(self, instance: _Instance) -> None:
        """The thread of an instance."""
        while (jobs := instance.inbox.get()) is not None:
            done = run_batch(instance.engine, jobs, self._plan)
            self._loop.call_soon_threadsafe(self._return, instance, jobs, done)
            del jobs, done  # an idle thread must not keep the last request's memory

    def _return(self, instance: _Instance, jobs: list[Job], done: BatchRun) -> None:
        """An instance is free again."""
        self._idle.append(instance)
        self._running.difference_update(jobs)
        if self._waiting.jobs:
            self._dispatch()  # the engine's time is dearer than that of the answers
        self._inline.observe(done.total_s, _count_bytes(jobs), inline=False)
        self._finish(jobs, done)

    def _finish(self, jobs: list[Job], done: BatchRun) -> None:
        rows = sum(job.rows for job in jobs)
        if done.executions == 1:
            self._gain.observe(len(jobs), rows, done.total_s)
        self._seconds_a_row += 0.2 * (done.compute_s / rows - self._seconds_a_row)
        if self._observe is not None:
            self._observe(jobs, done)
        for job, outcome in zip(jobs, done.outcomes, strict=True):
            job.answer(outcome)

    def _expire(self, job: Job) -> None:
        waited = self._waiting.remove(job)
        job.answer(DeadlineError("waited too long" if waited else "took too long"))

    def _settle(
        self,
        job: Job,
        done: "asyncio.Future[dict[str, Array]]",
        timer: asyncio.TimerHandle | None,
    ) -> None:
        """Whatever ended a request, its timer ends, and it waits no more."""
        if timer is not None:
            timer.cancel()
        if done.cancelled():
            self._waiting.remove(job)


def _count_bytes(jobs: Sequence[Job]) -> int:
    return sum(array.nbytes for job in jobs for array in job.feeds.values())


class _Answer:
    """Settles a future once; it may have been cancelled or expired before."""

    __slots__ = ("_future",)

    def __init__(self, future: "asyncio.Future[dict[str, Array]]") -> None:
        self._future = future

    def __call__(self, outcome: dict[str, Array] | BaseException) -> None:
        if self._future.done():
            return
        if isinstance(outcome, BaseException):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)
