"""One version of a model as it is served: its state, its engine, what it counts."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Literal

from deploy.bundle.folder import Bundle
from deploy.engines.base import Array
from deploy.serving.batching.batcher import Batcher
from deploy.serving.batching.joining import JoiningGain
from deploy.serving.batching.running import BatchRun, RunPlan
from deploy.serving.batching.waiting import Job
from deploy.serving.errors import RequestError, UnavailableError
from deploy.serving.models.guards import Guard, GuardPlan
from deploy.serving.models.readiness import OpenedModel, open_verified
from deploy.serving.models.shadow import ShadowSampler
from deploy.serving.models.statistics import ModelStatistics
from deploy.serving.options import ServeOptions
from deploy.serving.protocol import InferRequest, ModelSignature, make_signature
from deploy.serving.tracing.notes import CURRENT, RequestTrace
from export.errors import DeployError, EngineError

_LOG = logging.getLogger("deploy.serving")
State = Literal["LOADING", "READY", "UNAVAILABLE", "UNLOADING"]
Outputs = dict[str, Array]


class ServedModel:
    """A bundle behind the protocol; `load` makes it ready.

    Args:
        name: as clients know it.
        version: likewise, a number as text.
        bundle: its hashes were checked when it was read.
        options: of the server.

    Attributes:
        state: as the repository index shows it.
        reason: why it takes no requests; empty when it does.
        opened: its engines, once they proved themselves.
        report: of the build.
        failure: why `load` failed, for whoever runs the server; `reason` is for its clients.
    """

    def __init__(self, name: str, version: str, bundle: Bundle, options: ServeOptions) -> None:
        self.name = name
        self.version = version
        self.bundle = bundle
        self.report = bundle.report()
        self.state: State = "LOADING"
        self.reason = "loading"
        self.failure: DeployError | None = None
        self.opened: OpenedModel | None = None
        self.statistics = ModelStatistics()
        self.signature: ModelSignature = make_signature(
            bundle.manifest.inputs, bundle.manifest.outputs
        )
        self.guard = Guard(GuardPlan({}))
        self.shadow: ShadowSampler | None = None
        self._options = options
        self._batcher: Batcher | None = None

    @property
    def ready(self) -> bool:
        """Whether it repeated its recorded answers and takes requests, which engines answer."""
        return self.state == "READY" and not self.stalled

    @property
    def obstacle(self) -> str:
        """Why it is not ready, in words; empty when it is."""
        return self.reason or ("an engine does not return" if self.stalled else "")

    @property
    def stalled(self) -> bool:
        """Whether all its engines have been running for longer than a request may take."""
        return self._batcher is not None and self._batcher.stalled_s > self._options.timeout

    @property
    def pending(self) -> int:
        """Requests that wait or run."""
        return self._batcher.pending if self._batcher is not None else 0

    async def load(self) -> bool:
        """Open and verify it, off the event loop; whether it is ready. `reason` says why not."""
        started = time.monotonic()
        try:
            opened = await asyncio.to_thread(open_verified, self.bundle, self._options)
        except DeployError as error:
            self._give_up(error)
            return False
        except Exception as error:  # noqa: BLE001  of no memory, say: nobody else would hear of it
            _LOG.exception("%s version %s cannot be opened", self.name, self.version)
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self._give_up(
                EngineError(
                    f"{self.bundle.path} cannot be opened: {reason[:300]}. Verify it with: deploy "
                    "verify; where memory lacks, lower --max-batch or --instances."
                )
            )
            return False
        if self.state != "LOADING":  # it was unloaded meanwhile
            opened.close()
            return False
        self._start(opened)
        _LOG.info(
            "%s version %s is ready after %.2f s: %s%s",
            self.name,
            self.version,
            time.monotonic() - started,
            opened.name,
            f", degraded: {opened.degraded}" if opened.degraded else "",
        )
        return True

    def submit(self, request: InferRequest) -> "asyncio.Future[Outputs]":
        """Hand a request to the engine; cancel the future to withdraw it.

        Raises:
            RequestError: not ready, too many rows, or the queue is full.
        """
        started = time.monotonic()
        trace = CURRENT.get()
        if trace is not None:
            self._note(trace, request)
        if self._batcher is None or not self.ready:
            error = UnavailableError(f"model {self.name!r} is not ready")
            self.statistics.fail(error, time.monotonic() - started)
            raise error
        limit = self._options.timeout
        timeout = limit if request.timeout_s is None else min(limit, request.timeout_s)
        try:
            future = self._batcher.submit(
                request.feeds,
                request.rows,
                priority=request.priority,
                timeout_s=timeout,
                trace=trace,
            )
        except RequestError as error:
            self.statistics.fail(error, time.monotonic() - started)
            raise
        if trace is not None:
            trace.queued = started
        if future.done():  # it ran on the event loop
            self._count(request, started, future)
        else:
            future.add_done_callback(lambda done: self._count(request, started, done))
        return future

    async def unload(self, timeout_s: float | None = None) -> bool:
        """Answer what was taken, then let the engines go.

        Args:
            timeout_s: that engines have to return; None: the ``stop_timeout`` of the server.

        Returns:
            Whether they did; one that did not is left as it is, since it runs.
        """
        if self.state in ("LOADING", "READY"):
            self.state, self.reason = "UNLOADING", "unloading"
        end = self._options.stop_timeout if timeout_s is None else timeout_s
        returned = self._batcher is None or await self._batcher.stop(end)
        if self.shadow is not None:
            returned &= await asyncio.to_thread(self.shadow.stop, end if returned else 0.0)
        if not returned:
            _LOG.error("%s version %s: an engine does not return", self.name, self.version)
        elif self.opened is not None:
            self.opened.close()
        return returned

    async def let_go(self) -> None:
        """After an `unload` that returned False: let the engines go once they return after all."""
        if self._batcher is not None:
            await self._batcher.stop()
        if self.shadow is not None:
            await asyncio.to_thread(self.shadow.stop)
        if self.opened is not None:
            self.opened.close()

    def describe(self) -> dict[str, Any]:
        """Model metadata, as the protocol has it; what is ours is under ``parameters``."""
        opened = self.opened
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": f"deploy_{opened.name}" if opened is not None else "deploy",
            "inputs": [tensor.describe() for tensor in self.signature.inputs.values()],
            "outputs": [tensor.describe() for tensor in self.signature.outputs.values()],
            "parameters": {
                "state": self.state,
                "reason": self.reason,
                "engine": opened.name if opened is not None else None,
                "degraded": opened.degraded if opened is not None else None,
                "max_batch": opened.policy.max_batch if opened and opened.policy.batched else 1,
                "sizes": self._describe_sizes(),
                "images": self._describe_images(),
                "notes": list(opened.notes) if opened is not None else [],
            },
        }

    def _give_up(self, error: DeployError) -> None:
        self.state, self.reason = "UNAVAILABLE", f"{type(error).__name__}: not verified"
        self.failure = error
        _LOG.error("%s version %s is not ready: %s", self.name, self.version, error)

    def _describe_sizes(self) -> dict[str, dict[str, list[int]]]:
        """By input and axis the least, best and greatest size and their step, where there are."""
        return {
            name: {
                str(axis): [s.least, s.best, s.most, s.step] for axis, s in tensor.ranges.items()
            }
            for name, tensor in self.signature.inputs.items()
            if tensor.ranges
        }

    def _describe_images(self) -> dict[str, dict[str, Any]]:
        """By input that takes uint8 images, [N, H, W, C], what the engine does to them."""
        images = self.bundle.manifest.images
        return {
            image.name: {"mean": [*image.mean], "std": [*image.std], "scale": image.scale}
            for image in (() if images is None else images.inputs)
        }

    def _start(self, opened: OpenedModel) -> None:
        measured = self.bundle.times().get(opened.name)
        statistics = self.statistics  # what was refused meanwhile stays counted
        if measured is None:
            statistics.reported_rows = self.report["measurement"]["batch"]
        else:
            statistics.reported_ms, statistics.reported_rows = measured.p50_ms, measured.rows
        ranges = self.bundle.manifest.input_ranges or {}
        self.guard = Guard(GuardPlan(ranges, opened.exempt, self._options.nonfinite))
        axes = {name: t.batch_axis or 0 for name, t in opened.signature.outputs.items()}
        self._batcher = Batcher(
            opened.engines,
            opened.policy,
            RunPlan(axes, self.guard, opened.sizes),
            observe=self._observe,
            gain=JoiningGain(opened.run_seconds),
        )
        self._batcher.start()
        if opened.reference is not None:
            self.shadow = ShadowSampler(opened.reference, self._options.shadow)
            self.shadow.start()
        self.opened, self.state, self.reason = opened, "READY", ""

    def _note(self, trace: RequestTrace, request: InferRequest) -> None:
        trace.note_model(self.name, self.version)
        trace.attributes["deploy.rows"] = request.rows
        if request.id:
            trace.attributes["deploy.request_id"] = request.id

    def _observe(self, jobs: Sequence[Job], run: BatchRun) -> None:
        """Count a run, and note it in the traces of its members."""
        self.statistics.observe(jobs, run)
        for job in jobs:
            if job.trace is not None:
                rows = sum(member.rows for member in jobs)
                job.trace.note_run(run.started, run.total_s, rows, len(jobs))

    def _count(
        self, request: InferRequest, started: float, done: "asyncio.Future[Outputs]"
    ) -> None:
        seconds = time.monotonic() - started
        if done.cancelled():
            self.statistics.fail(None, seconds)
            return
        error = done.exception()
        if error is None:
            self.statistics.succeed(seconds)
            if self.shadow is not None:
                self.shadow.offer(request.feeds, done.result())
        else:
            self.statistics.fail(error if isinstance(error, RequestError) else None, seconds)
