"""Sends traces to a collector, by OpenTelemetry's protocol over HTTP.

A thread of its own makes spans of the notes of `notes.py` and sends them. The event loop appends
to a queue with a bound, and where that is full counts what is lost; so a collector that is slow or
dead costs requests nothing. Needs the `otel` extra.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from deploy.serving.tracing.notes import RequestTrace, SpanCounts
from export.errors import ConfigError
from export.optional import is_installed, require

_LOG = logging.getLogger("deploy.serving")
MAX_WAITING = 2048
"""Requests whose traces may wait to be sent."""

_BATCH = 256
"""Requests whose traces are sent at once."""

_EVERY_S = 1.0
_LAST_S = 5.0
"""Seconds that a collector has, in the end, to take what is left."""

_PATH = "/v1/traces"
_SERVICE = "deploykit"


class SpanSender:
    """Takes the notes of requests that are done.

    Args:
        exporter: of OpenTelemetry, or anything with its `export` and `shutdown`.
        resource: what is said of this server in all of them.
        limit: requests that may wait.

    Attributes:
        counts: what became of the spans.
    """

    def __init__(
        self, exporter: Any, resource: Mapping[str, str], limit: int = MAX_WAITING
    ) -> None:
        sdk = require("opentelemetry.sdk.trace", extra="otel")
        resources = require("opentelemetry.sdk.resources", extra="otel")
        propagation = require("opentelemetry.trace.propagation.tracecontext", extra="otel")
        self._api = require("opentelemetry.trace", extra="otel")
        self._exporter = exporter
        self._limit = limit
        self._batch = min(limit, _BATCH)
        self._made = _collect(sdk.SpanProcessor)()
        provider = sdk.TracerProvider(
            resource=resources.Resource.create(dict(resource)), shutdown_on_exit=False
        )
        provider.add_span_processor(self._made)
        self._tracer = provider.get_tracer("deploy.serving")
        self._propagator = propagation.TraceContextTextMapPropagator()
        self._waiting: deque[RequestTrace] = deque()
        self._wake = threading.Event()
        self._ending = False
        self._works = True
        self.counts = SpanCounts()
        self._thread = threading.Thread(target=self._work, name="traces", daemon=True)

    def start(self) -> None:
        """Start the thread that sends."""
        self._thread.start()

    def finish(self, trace: RequestTrace) -> None:
        """A request is done; its trace is sent when there is time."""
        trace.ended = time.monotonic()
        if self._ending or len(self._waiting) >= self._limit:
            self.counts.refused += 1 + sum(1 for _ in trace.parts())
            return
        self._waiting.append(trace)
        if len(self._waiting) >= self._batch:
            self._wake.set()

    def stop(self, seconds: float = _LAST_S) -> None:
        """Send what is left, for as many seconds at most, and end the thread."""
        self._ending = True
        self._wake.set()
        self._thread.join(seconds)
        self._exporter.shutdown()
        self._thread.join(1.0)
        if self._waiting or self._thread.is_alive():
            _LOG.warning("the last traces could not be sent: the collector does not take them")

    def _work(self) -> None:
        while self._waiting or not self._ending:
            self._wake.wait(_EVERY_S)
            self._wake.clear()
            while self._waiting:
                count = min(len(self._waiting), self._batch)
                self._send([self._waiting.popleft() for _ in range(count)])

    def _send(self, traces: Sequence[RequestTrace]) -> None:
        for trace in traces:
            self._make_spans(trace)
        spans = self._made.take()
        if not spans:  # none was sampled
            return
        try:
            result = self._exporter.export(spans)
            works, reason = result.name == "SUCCESS", "it refused them or gave no answer"
        except (OSError, ValueError, RuntimeError) as error:
            works, reason = False, str(error)
        if works:
            self.counts.sent += len(spans)
        else:
            self.counts.failed += len(spans)
        if works != self._works:  # once, not for every batch
            self._works = works
            _LOG.warning("traces are sent again" if works else f"traces cannot be sent: {reason}")

    def _make_spans(self, trace: RequestTrace) -> None:
        span = self._tracer.start_span(
            trace.name,
            context=self._propagator.extract(trace.parent),
            kind=self._api.SpanKind.SERVER,
            attributes=trace.attributes,
            start_time=trace.began_ns,
        )
        if not span.is_recording():
            return
        inside = self._api.set_span_in_context(span)
        for name, begun, ended, attributes in trace.parts():
            part = self._tracer.start_span(
                name,
                context=inside,
                attributes=attributes,
                start_time=trace.nanoseconds(begun),
            )
            part.end(trace.nanoseconds(ended))
        if trace.failed:
            span.set_status(self._api.StatusCode.ERROR)
        span.end(trace.nanoseconds(trace.ended))


def open_sender(traces: str, environment: Mapping[str, str]) -> SpanSender | None:
    """A sender to where traces are asked for; None: nobody asks.

    Args:
        traces: ``--traces``: a URL; empty: what OpenTelemetry's own variables say.
        environment: has those variables.

    Raises:
        ConfigError: `traces` is no URL of HTTP, or one of OpenTelemetry's variables cannot be used.
        MissingExtraError: `traces` is given and OpenTelemetry is not installed.
    """
    if not traces and not _is_asked_for(environment):
        return None
    module = require("opentelemetry.exporter.otlp.proto.http.trace_exporter", extra="otel")
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # we say it once, in our words
    endpoint = {"endpoint": find_endpoint(traces)} if traces else {}  # else it reads them itself
    named = "OTEL_SERVICE_NAME" in environment
    named |= "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    try:
        exporter = module.OTLPSpanExporter(**endpoint)
    except ValueError as error:
        raise ConfigError(f"A variable OTEL_EXPORTER_OTLP_* cannot be used: {error}.") from error
    return SpanSender(exporter, {} if named else {"service.name": _SERVICE})


def find_endpoint(traces: str) -> str:
    """The URL that traces are posted to: `traces`, with the usual path where it has none.

    Raises:
        ConfigError: it is no URL of HTTP.
    """
    parts = urlsplit(traces)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--traces {traces}: must be the URL of a collector, such as http://127.0.0.1:4318."
        )
    return traces if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}{_PATH}"


def _is_asked_for(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables ask for traces in a way that this server can answer."""

    def read(name: str, default: str = "") -> str:
        return environment.get(f"OTEL_{name}", "").strip() or default

    if read("SDK_DISABLED").lower() == "true" or read("TRACES_EXPORTER", "otlp") != "otlp":
        return False
    wanted = any(
        read(name)
        for name in (
            "EXPORTER_OTLP_ENDPOINT",
            "EXPORTER_OTLP_TRACES_ENDPOINT",
            "TRACES_EXPORTER",
        )
    )
    if not wanted:
        return False
    protocol = read("EXPORTER_OTLP_TRACES_PROTOCOL") or read("EXPORTER_OTLP_PROTOCOL")
    if protocol not in ("", "http/protobuf"):
        _LOG.warning("no traces: OTEL_EXPORTER_OTLP_PROTOCOL is not http/protobuf")
        return False
    if not is_installed("opentelemetry.exporter.otlp.proto.http"):
        _LOG.warning("no traces: OTEL_* asks for them; pip install 'deploykit[otel]' brings them")
        return False
    return True


def _collect(base: Any) -> Any:
    """A span processor that keeps what was made until it is sent."""

    class Made(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self._spans: list[Any] = []

        def on_end(self, span: Any) -> None:
            self._spans.append(span)

        def take(self) -> list[Any]:
            taken, self._spans = self._spans, []
            return taken

    return Made
