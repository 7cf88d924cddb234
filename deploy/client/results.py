"""What driving a server came to, in the terms of a build's report.

Keys and units are those of ``report.json`` where both have them: times in milliseconds, 95%
intervals, p99 only from 1,000 answers up. Nothing is clipped.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import numpy as np

from deploy.client.connection import FAILURES
from deploy.client.generator import Trace
from deploy.client.settings import LoadSettings
from deploy.measuring.bootstrap import Floats, Interval, estimate_quantiles
from deploy.measuring.machine import Machine

SCHEMA_VERSION = 1

_P99_SAMPLES = 1000
_ROUNDS, _BLOCKS = 10, 2
_LATE_S = 0.001


@dataclass(frozen=True)
class ServerLatency:
    """Seconds from the intended start to the whole answer, over the answers with status 200.

    Intervals are None below 200 answers, p99 below 1,000.
    """

    samples: int
    mean: float
    p50: float
    p50_ci95: Interval | None
    p90: float
    p90_ci95: Interval | None
    p99: float | None
    p99_ci95: Interval | None
    largest: float


@dataclass(frozen=True)
class Target:
    """The server that was driven.

    Attributes:
        name, version: of the server, by its own word.
        request_bytes: of one request, with its head.
    """

    url: str
    model: str
    name: str
    version: str
    request_bytes: int


@dataclass(frozen=True)
class LoadReport:
    """One run.

    Attributes:
        made: requests that were made.
        seconds: from the start to the last answer.
        errors: how many requests came to what else than 200, by status or failure.
        latency: None where nothing was answered.
        late_p99: seconds by which the generator itself was late, at most, in 99% of requests; it is
            in the latencies.
    """

    created: str
    target: Target
    settings: LoadSettings
    machine: Machine
    made: int
    seconds: float
    errors: dict[str, int]
    latency: ServerLatency | None
    late_p99: float

    @property
    def answered(self) -> int:
        """Requests that were answered with 200."""
        return self.latency.samples if self.latency else 0

    @property
    def throughput(self) -> float:
        """Answers with 200 a second."""
        return self.answered / self.seconds if self.seconds > 0 else 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before the figures are trusted."""
        found = []
        if self.errors:
            count = sum(self.errors.values())
            found.append(f"{count} of {self.made} requests failed; they are not in the latencies.")
        if self.late_p99 > _LATE_S:
            found.append(
                f"The generator was late by up to {self.late_p99 * 1e3:.1f} ms in 99% of requests, "
                "and that is in the latencies: this machine had too little time for it."
            )
        rate = self.settings.rate
        if rate is not None and self.answered and self.seconds > 1.1 * self.settings.seconds:
            found.append(
                f"The server did not keep up with {rate:g} requests a second: the last answer came "
                f"{self.seconds - self.settings.seconds:.1f} s after the last request was due."
            )
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `docs/clients.md` documents them."""
        settings, latency = self.settings, self.latency
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "load",
            "created": self.created,
            "deploykit": self.machine.versions.get("deploykit"),
            "server": asdict(self.target),
            "machine": self.machine.as_dict(),
            "measurement": {
                "loop": "closed" if settings.rate is None else "open",
                "rate_per_s": settings.rate,
                "arrivals": None if settings.rate is None else settings.arrivals,
                "concurrency": settings.callers if settings.rate is None else None,
                "batch": settings.batch,
                "seed": settings.seed,
                "seconds": self.seconds,
                "timeout_s": settings.timeout,
                "connections": settings.connections,
                "generator_late_p99_ms": self.late_p99 * 1e3,
            },
            "requests": {"made": self.made, "answered": self.answered, "errors": self.errors},
            "latency": None if latency is None else _in_milliseconds(latency),
            "throughput": {
                "requests_per_s": self.throughput,
                "samples_per_s": self.throughput * settings.batch,
            },
            "warnings": list(self.warnings),
        }


def load_schema() -> dict[str, Any]:
    """The JSON schema of `LoadReport.as_dict`, draft 2020-12."""
    text = resources.files("deploy.client").joinpath("schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def summarize(trace: Trace, target: Target, settings: LoadSettings, machine: Machine) -> LoadReport:
    """The figures of one run."""
    counts = Counter(outcome for outcome in trace.outcomes if outcome != 200)
    latencies = trace.latencies
    return LoadReport(
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        target=target,
        settings=settings,
        machine=machine,
        made=len(trace.outcomes),
        seconds=max(trace.ended, default=0.0),
        errors={FAILURES.get(key, str(key)): count for key, count in sorted(counts.items())},
        latency=summarize_latency(latencies, seed=settings.seed) if len(latencies) else None,
        late_p99=float(np.percentile(trace.lateness, 99)) if trace.begun else 0.0,
    )


def summarize_latency(latencies: Floats, *, seed: int) -> ServerLatency:
    """Percentiles of `latencies`, in the order in which the requests were to be made.

    Neighbours share the state of the server, so intervals come from resampling 20 runs of them.
    """
    p50, p90, p99 = (float(value) for value in np.percentile(latencies, (50, 90, 99)))
    calls = len(latencies) // (_ROUNDS * _BLOCKS)
    intervals: tuple[Interval | None, ...] = (None, None, None)
    if calls >= 10:
        blocks = latencies[: calls * _ROUNDS * _BLOCKS].reshape(1, _ROUNDS, _BLOCKS, calls)
        intervals = tuple(ci for _, ci in estimate_quantiles(blocks, (50, 90, 99), seed=seed))
    enough = len(latencies) >= _P99_SAMPLES
    return ServerLatency(
        samples=len(latencies),
        mean=float(latencies.mean()),
        p50=p50,
        p50_ci95=intervals[0],
        p90=p90,
        p90_ci95=intervals[1],
        p99=p99 if enough else None,
        p99_ci95=intervals[2] if enough else None,
        largest=float(latencies.max()),
    )


def _in_milliseconds(latency: ServerLatency) -> dict[str, Any]:
    def scale(pair: Interval | None) -> list[float] | None:
        return None if pair is None else [end * 1e3 for end in pair]

    return {
        "samples": latency.samples,
        "mean_ms": latency.mean * 1e3,
        "p50_ms": latency.p50 * 1e3,
        "p50_ci95": scale(latency.p50_ci95),
        "p90_ms": latency.p90 * 1e3,
        "p90_ci95": scale(latency.p90_ci95),
        "p99_ms": None if latency.p99 is None else latency.p99 * 1e3,
        "p99_ci95": scale(latency.p99_ci95),
        "max_ms": latency.largest * 1e3,
    }
