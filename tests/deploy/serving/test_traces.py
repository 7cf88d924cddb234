"""Traces, as a collector gets them: what is in them, whose they are, and what they never cost."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from collector import Collector, collecting, read
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from servers import Server, free_port, holding, rows, serving, wait_until, write_slow_script
from tiny import Cli

from deploy.serving.grpc.messages import INFERENCE
from deploy.serving.tracing.notes import RequestTrace
from deploy.serving.tracing.spans import SpanSender, find_endpoint, open_sender
from deploy.serving.tracing.traced import read_parent
from export.errors import ConfigError

pytestmark = pytest.mark.long
INFER = "POST /v2/models/{name}/infer"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
RUN_S = 0.1
SKEW_S = 0.2
"""Each trace has a clock of its own, of two that are read one after the other when it begins."""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slow_script(tmp_path_factory.mktemp("traces"), RUN_S)


@pytest.fixture(scope="module")
def slow(script: Path, pristine: Path) -> Iterator[Any]:
    """A server whose engine takes a tenth of a second, and the collector of its traces."""
    with collecting() as collector:
        server = Server(pristine, "--traces", collector.url, script=script).wait_until_ready()
        try:
            yield server, collector
        finally:
            server.stop()


@pytest.fixture
def traced(slow: Any) -> tuple[Server, Collector]:
    """The same, with nothing collected yet."""
    server, collector = slow
    collector.spans.clear()
    return server, collector


def ask(server: Server, **headers: str) -> tuple[int, Any]:
    return server.infer("tiny", rows([1, 2, 3, 4]), **headers)


def seconds(span: Any) -> float:
    return float(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def infer_over_grpc(server: Server, model: str = "tiny", **options: Any) -> Any:
    message = INFERENCE["ModelInferRequest"](model_name=model, id="of-grpc")
    entry = message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    entry.contents.fp32_contents.extend([1.0, 2.0, 3.0, 4.0])
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        return call(message.SerializeToString(), timeout=20, **options)


# --- what is in a trace


def test_two_requests_that_share_a_run_have_a_trace_each(traced: Any, script: Path) -> None:
    server, collector = traced
    threads = [
        threading.Thread(target=ask, args=(server,), kwargs={"X_Request_Id": f"r{number}"})
        for number in range(3)
    ]
    with holding(script):
        for number, thread in enumerate(threads, 1):
            thread.start()  # the first runs alone, the others wait for it together
            wait_until(lambda most=number: server.pending("tiny") == most)
        time.sleep(2 * SKEW_S)
    for thread in threads:
        thread.join()
    first, *joined = collector.wait_for(3)
    assert len({span.trace_id for span in (first, *joined)}) == 3
    for number, span in enumerate((first, *joined)):
        assert (span.name, span.parent_span_id) == (INFER, b"")
        assert read(span.attributes) == {
            "http.request.method": "POST",
            "http.route": "/v2/models/{name}/infer",
            "http.response.status_code": 200,
            "deploy.model": "tiny",
            "deploy.version": "1",
            "deploy.rows": 1,
            "deploy.request_id": f"r{number}",
        }
        parts = collector.parts(span)
        assert set(parts) == {"queue", "run", "write"}
        order = [parts[name] for name in ("queue", "run", "write")]
        times = [t for part in order for t in (part.start_time_unix_nano, part.end_time_unix_nano)]
        ends = [span.start_time_unix_nano, *times, span.end_time_unix_nano]
        assert ends == sorted(ends)
        assert seconds(parts["run"]) >= RUN_S
        assert abs(time.time() - span.end_time_unix_nano / 1e9) < 30
    runs = [read(collector.parts(span)["run"].attributes) for span in (first, *joined)]
    alone = {"deploy.batch.rows": 1, "deploy.batch.requests": 1}
    both = {"deploy.batch.rows": 2, "deploy.batch.requests": 2}
    assert runs == [alone, both, both]
    alone_run, *shared = [collector.parts(span)["run"] for span in (first, *joined)]
    skew = SKEW_S * 1e9
    assert shared[0].start_time_unix_nano >= alone_run.end_time_unix_nano - skew
    assert abs(shared[0].start_time_unix_nano - shared[1].start_time_unix_nano) < skew
    for span in joined:  # waited for the first, and not for longer
        queue = collector.parts(span)["queue"]
        assert queue.start_time_unix_nano < alone_run.end_time_unix_nano
    assert collector.resources[0]["service.name"] == "deploykit"


def test_a_refused_request_has_a_trace_that_says_so(traced: Any) -> None:
    server, collector = traced
    assert server.infer("tiny", {"inputs": []})[0] == 400
    assert server.infer("x" * 300, rows([1, 2, 3, 4]))[0] == 404
    late = rows([1, 2, 3, 4]) | {"parameters": {"timeout": 5000}}
    assert server.infer("tiny", late)[0] == 504
    malformed, unknown, expired = collector.wait_for(3)
    assert read(malformed.attributes)["http.response.status_code"] == 400
    assert read(malformed.attributes)["deploy.model"] == "tiny"
    assert malformed.status.code == malformed.status.STATUS_CODE_UNSET
    assert "deploy.model" not in read(unknown.attributes)
    assert "xxx" not in str(unknown)
    assert read(expired.attributes)["http.response.status_code"] == 504
    assert expired.status.code == expired.status.STATUS_CODE_ERROR
    assert set(collector.parts(malformed)) == {"write"}
    assert set(collector.parts(expired)) == {"queue", "write"}


def test_calls_over_grpc_have_traces_as_well(traced: Any) -> None:
    server, collector = traced
    infer_over_grpc(server, metadata=[("traceparent", PARENT)])
    with pytest.raises(grpc.RpcError, match="no model 'other'"):
        infer_over_grpc(server, "other")
    infer_over_grpc(server, metadata=[("traceparent", "00-nothing")])
    good, unknown, malformed = collector.wait_for(3)
    assert malformed.parent_span_id == b""
    assert (good.trace_id.hex(), good.parent_span_id.hex()) == (TRACE, SPAN)
    assert good.name == "inference.GRPCInferenceService/ModelInfer"
    attributes = read(good.attributes)
    assert attributes["rpc.grpc.status_code"] == 0
    assert (attributes["deploy.model"], attributes["deploy.rows"]) == ("tiny", 1)
    assert attributes["deploy.request_id"] == "of-grpc"
    assert set(collector.parts(good)) == {"queue", "run", "write"}
    assert read(unknown.attributes)["rpc.grpc.status_code"] == 5
    assert "other" not in str(unknown)


def test_probes_leave_no_traces(traced: Any) -> None:
    server, collector = traced
    for path in ("/v2/health/live", "/v2/health/ready/", "/metrics", "/v2/models/tiny/ready"):
        assert server.request("GET", path)[0] == 200
    assert server.ask("/v2/models/tiny")["name"] == "tiny"
    [span] = collector.wait_for(1)
    assert span.name == "GET"
    time.sleep(1.3)  # spans are sent every second
    assert sorted(span.name for span in collector.spans) == ["GET", "write"]


# --- whose trace it is


def test_a_trace_that_the_sender_began_is_continued(traced: Any) -> None:
    server, collector = traced
    ask(server, Traceparent=PARENT, Tracestate="a=1,b=2")
    [span] = collector.wait_for(1)
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, SPAN)
    assert span.trace_state == "a=1,b=2"
    assert collector.parts(span)["run"].trace_id.hex() == TRACE


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "x",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01" + "-a" * 5000,
        "00-\xff-\xfe",
    ],
)
def test_a_malformed_traceparent_begins_a_trace_and_fails_nothing(traced: Any, parent: str) -> None:
    server, collector = traced
    body = json.dumps(rows([1, 2, 3, 4])).encode()
    head = (
        "POST /v2/models/tiny/infer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\nTracestate: {'a' * 600}\r\nTraceparent: "
    )
    answered = server.raw(head.encode() + parent.encode("latin-1") + b"\r\n\r\n" + body)
    assert answered.startswith(b"HTTP/1.1 200")
    [span] = collector.wait_for(1)
    assert span.trace_id.hex() not in (TRACE, "0" * 32)
    assert (span.parent_span_id, span.trace_state) == (b"", "")


def test_a_traceparent_that_is_there_twice_is_none() -> None:
    assert read_parent([(b"traceparent", PARENT.encode())] * 2) == {}
    assert read_parent([("traceparent", PARENT), ("other", "1")]) == {"traceparent": PARENT}
    states = [(b"traceparent", PARENT.encode()), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    assert read_parent(states)["tracestate"] == "a=1,b=2"


# --- what it never costs


def test_a_collector_that_is_not_there_costs_no_request_anything(pristine: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    env = {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with serving(pristine, "--traces", url, env=env) as server:
        for _ in range(20):
            assert ask(server)[0] == 200
        wait_until(lambda: server.metrics()["deploy_trace_spans_dropped_total"] >= 80)
        assert server.metrics()["deploy_trace_spans_sent_total"] == 0
        said = [e for e in server.events if "traces cannot be sent" in e["message"]]
        assert len(said) == 1
    assert server.process.returncode == 0


def test_what_a_silent_collector_leaves_is_dropped_and_counted() -> None:
    with collecting() as collector:
        collector.speaks.clear()
        sender = SpanSender(OTLPSpanExporter(find_endpoint(collector.url)), {}, limit=10)
        sender.start()
        for _ in range(400):  # whoever waited here would wait for the collector to speak
            sender.finish(RequestTrace("a", {}, {}))
        assert sender.counts.refused >= 400 - 10 - 10  # those that wait, those on their way
        collector.speaks.set()
        sender.stop()
        assert sender.counts.sent + sender.counts.dropped == 400
        assert len(collector.spans) == sender.counts.sent


@pytest.mark.thorough
def test_the_last_traces_are_sent_before_the_server_ends(pristine: Path) -> None:
    with collecting() as collector:
        with serving(pristine, "--traces", collector.url) as server:
            for _ in range(5):
                assert ask(server)[0] == 200
        assert server.process.returncode == 0
        assert len(collector.wait_for(5)) == 5


@pytest.mark.thorough
def test_a_collector_that_hangs_does_not_keep_the_server_from_ending(pristine: Path) -> None:
    with collecting() as collector:
        collector.speaks.clear()
        server = Server(pristine, "--traces", collector.url).wait_until_ready()
        assert ask(server)[0] == 200
        time.sleep(1.2)  # until they are on their way
        assert server.stop() == 0


# --- where it is asked for


def test_nothing_of_it_is_there_where_nobody_asks(pristine: Path) -> None:
    assert open_sender("", {}) is None
    with serving(pristine) as server:
        assert ask(server, Traceparent=PARENT)[0] == 200
        assert not [name for name in server.metrics() if "trace" in name]
        maps = Path(f"/proc/{server.process.pid}/task").iterdir()
        names = {(task / "comm").read_text().strip() for task in maps}
        assert "traces" not in names


@pytest.mark.thorough
def test_opentelemetrys_own_variables_ask_for_traces(pristine: Path) -> None:
    with collecting() as collector:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_SERVICE_NAME": "shop",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0",
        }
        with serving(pristine, env=env) as server:
            assert ask(server)[0] == 200
            assert ask(server, Traceparent=PARENT)[0] == 200
        [span] = collector.wait_for(1)
        assert span.trace_id.hex() == TRACE  # the other was not sampled
        assert collector.resources[0]["service.name"] == "shop"
        assert collector.resources[0]["deployment.environment"] == "test"


@pytest.mark.parametrize(
    "environment",
    [
        {"OTEL_SERVICE_NAME": "a"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        },
    ],
)
def test_variables_that_do_not_ask_for_what_we_have(environment: dict[str, str]) -> None:
    assert open_sender("", environment) is None


def test_the_address_of_a_collector() -> None:
    assert find_endpoint("http://a:4318") == "http://a:4318/v1/traces"
    assert find_endpoint("https://a/") == "https://a/v1/traces"
    assert find_endpoint("http://a/other/path") == "http://a/other/path"
    for wrong in ("a:4318", "ftp://a", "http://", "/tmp/file"):
        with pytest.raises(ConfigError, match="must be the URL of a collector"):
            find_endpoint(wrong)


def test_a_wrong_address_is_said_before_anything_listens(pristine: Path, cli: Cli) -> None:
    code, _, err = cli("serve", pristine, "--traces", "collector:4318")
    assert (code, "must be the URL of a collector" in err) == (2, True)
