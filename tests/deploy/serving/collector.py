"""A collector of OpenTelemetry on loopback, which keeps what it is sent."""

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

WAIT_S = 40.0
"""Seconds after which spans that are waited for do not come any more."""


class Collector(ThreadingHTTPServer):
    """Decodes what is posted to /v1/traces.

    Attributes:
        spans: all that came.
        resources: what was said of their senders.
        speaks: nothing is answered before this is set.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self.speaks = threading.Event()
        self.speaks.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def wait_for(self, count: int) -> list[Any]:
        """The spans of requests, in order of their beginning, once there are as many."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            roots = [span for span in list(self.spans) if span.kind == span.SPAN_KIND_SERVER]
            if len(roots) >= count:
                return sorted(roots, key=lambda span: span.start_time_unix_nano)
            time.sleep(0.02)
        raise AssertionError(self.spans)

    def parts(self, root: Any) -> dict[str, Any]:
        """The spans within that of a request, by name."""
        return {
            span.name: span
            for span in list(self.spans)
            if span.parent_span_id == root.span_id and span.trace_id == root.trace_id
        }


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.speaks.wait()
        if self.path != "/v1/traces":
            self.send_error(404)
            return
        for sent in ExportTraceServiceRequest.FromString(data).resource_spans:
            self.server.resources.append(read(sent.resource.attributes))
            for scope in sent.scope_spans:
                self.server.spans += scope.spans
        answer = ExportTraceServiceResponse().SerializeToString()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who waited has gone
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


def read(attributes: Any) -> dict[str, Any]:
    """Attributes as plain values."""
    return {
        entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in attributes
    }


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens, and ends."""
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield collector
    finally:
        collector.speaks.set()
        collector.shutdown()
        collector.server_close()
        thread.join()
