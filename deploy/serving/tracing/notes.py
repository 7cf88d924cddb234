"""What is noted of a request for its trace: a few numbers, on the event loop.

The edge (`traced.py`) begins a note and puts it into the context of the request's task, where the
model finds it; the batcher carries it along. Spans are made of it elsewhere: `spans.py`. Where
nobody asked for traces there is no note, and looking for one is all that is done.
"""

import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

Attributes = dict[str, str | int]


@dataclass(slots=True, eq=False)
class RequestTrace:
    """One request as its trace shows it. Times are of the monotonic clock, in seconds.

    Attributes:
        name: of its span; one of few.
        parent: what its sender said of the trace that it is part of, as headers of the W3C.
        attributes: of its span; none longer than a request's id may be.
        began: when it came.
        began_ns: the same by the wall clock, in nanoseconds since 1970.
        failed: the server is to blame for its status.
        queued: when it was handed to a model's queue; None: never.
        ran: beginning and end of the run of an engine that it was in.
        run: what is said of that run.
        wrote: when its answer was begun to be written.
        ended: when all was done.
    """

    name: str
    parent: Mapping[str, str]
    attributes: Attributes
    began: float = field(default_factory=time.monotonic)
    began_ns: int = field(default_factory=time.time_ns)
    failed: bool = False
    queued: float | None = None
    ran: tuple[float, float] | None = None
    run: Attributes = field(default_factory=dict)
    wrote: float | None = None
    ended: float = 0.0

    def note_model(self, name: str, version: str) -> None:
        """It is for this model, which the server has."""
        self.attributes["deploy.model"] = name
        self.attributes["deploy.version"] = version

    def note_run(self, started: float, seconds: float, rows: int, requests: int) -> None:
        """It was in a run of an engine, with others where `requests` is more than 1.

        A run that ends after the request did, since it was out of time, is not part of it.
        """
        if self.ended:
            return
        self.ran = (started, started + seconds)
        self.run = {"deploy.batch.rows": rows, "deploy.batch.requests": requests}

    def parts(self) -> Iterator[tuple[str, float, float, Attributes]]:
        """What the request's time went to: name, beginning, end, attributes."""
        if self.queued is not None:
            yield "queue", self.queued, self.ran[0] if self.ran else self.ended, {}
        if self.ran is not None:
            yield "run", *self.ran, self.run
        if self.wrote is not None:
            yield "write", self.wrote, self.ended, {}

    def nanoseconds(self, moment: float) -> int:
        """A time of the monotonic clock as one of the wall clock."""
        return self.began_ns + round((moment - self.began) * 1e9)


@dataclass
class SpanCounts:
    """What became of spans, for /metrics.

    Attributes:
        sent: taken by the collector.
        refused: there was no room for them; counted on the event loop.
        failed: the collector did not take them; counted by the thread that sends.
    """

    sent: int = 0
    refused: int = 0
    failed: int = 0

    @property
    def dropped(self) -> int:
        """All that are lost."""
        return self.refused + self.failed


CURRENT: ContextVar[RequestTrace | None] = ContextVar("deploy_trace", default=None)
"""The note of the request that the running task answers; None: no traces are asked for."""


def note_model(name: str, version: str) -> None:
    """The running task answers a request for this model, which the server has."""
    trace = CURRENT.get()
    if trace is not None:
        trace.note_model(name, version)
