"""/metrics in Prometheus' text format: Triton's names where it has one, ours under ``deploy_``.

Labels are of models that this server has, never of what a client asks for, so the number of series
depends on the bundles alone.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from deploy.serving.models.model import ServedModel
from deploy.serving.models.repository import ModelRepository
from deploy.serving.models.statistics import BUCKETS_S
from deploy.serving.tracing.notes import SpanCounts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]
Sample = tuple[Labels, float]
STATUSES = (400, 401, 404, 405, 413, 415, 431, 500, 501, 503)
"""Under which refusals are counted."""


@dataclass
class ServerStatistics:
    """What is counted of the server and not of a model.

    Attributes:
        started: by the wall clock, in seconds.
        ready_after_s: seconds from the start of the process until all models were ready.
        refused: requests that met no model, by HTTP status.
        timed_out: connections closed because a request did not arrive, or an answer was not taken,
            in time.
        turned_away: connections closed because too many were open.
        inflight_bytes: bytes of bodies and of answers that are held.
        spans: what became of traces; None: none are asked for.
        deaths: of workers in whose place this one is; None: there is no supervisor.
    """

    started: float = field(default_factory=time.time)
    ready_after_s: float | None = None
    refused: dict[int, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    connections: int = 0
    timed_out: int = 0
    turned_away: int = 0
    inflight_bytes: int = 0
    spans: SpanCounts | None = None
    deaths: int | None = None

    def refuse(self, status: int) -> None:
        """Count a request that was refused before it reached a model."""
        self.refused[status if status in self.refused else 400] += 1


@dataclass(frozen=True)
class _Metric:
    name: str
    kind: str
    text: str
    value: Callable[[ServedModel], float | None]


_MODEL_METRICS = (
    _Metric(
        "nv_inference_request_success",
        "counter",
        "Requests that were answered",
        lambda model: model.statistics.success,
    ),
    _Metric(
        "nv_inference_count",
        "counter",
        "Samples that were run",
        lambda model: model.statistics.rows,
    ),
    _Metric(
        "nv_inference_exec_count",
        "counter",
        "Runs of the engine",
        lambda model: model.statistics.executions,
    ),
    _Metric(
        "nv_inference_request_duration_us",
        "counter",
        "Time of requests, in all",
        lambda model: model.statistics.request_us,
    ),
    _Metric(
        "nv_inference_queue_duration_us",
        "counter",
        "Time of requests in the queue",
        lambda model: model.statistics.queue_us,
    ),
    _Metric(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Time of requests while inputs were joined",
        lambda model: model.statistics.join_us,
    ),
    _Metric(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Time of requests in the engine",
        lambda model: model.statistics.compute_us,
    ),
    _Metric(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Time of requests while outputs were split and looked at",
        lambda model: model.statistics.split_us,
    ),
    _Metric(
        "nv_inference_pending_request_count",
        "gauge",
        "Requests that wait or run",
        lambda model: model.pending,
    ),
    _Metric(
        "deploy_model_ready",
        "gauge",
        "1 where the model repeated its recorded answers and takes requests",
        lambda model: float(model.ready),
    ),
    _Metric(
        "deploy_model_degraded",
        "gauge",
        "1 where another engine runs than the winner of the build",
        lambda model: float(model.opened is not None and model.opened.degraded is not None),
    ),
    _Metric(
        "deploy_nonfinite_outputs_total",
        "counter",
        "Requests whose outputs held NaN or infinity",
        lambda model: model.guard.nonfinite,
    ),
    _Metric(
        "deploy_inputs_out_of_range_total",
        "counter",
        "Requests with inputs beyond the calibration data",
        lambda model: model.guard.out_of_range,
    ),
    _Metric(
        "deploy_latency_live_ms",
        "gauge",
        "Median time of the last runs at the batch size of the report",
        lambda model: model.statistics.live_ms,
    ),
    _Metric(
        "deploy_latency_report_ms",
        "gauge",
        "Median time of such a run in the report of the build",
        lambda model: model.statistics.reported_ms,
    ),
    _Metric(
        "deploy_latency_drift_ratio",
        "gauge",
        "Live over reported time: 1 is as fast as when it was built",
        lambda model: model.statistics.drift,
    ),
    _Metric(
        "deploy_shadow_requests_total",
        "counter",
        "Requests that also ran on the float32 model",
        lambda model: model.shadow.compared if model.shadow else None,
    ),
    _Metric(
        "deploy_shadow_dropped_total",
        "counter",
        "Samples for which there was no time",
        lambda model: model.shadow.dropped if model.shadow else None,
    ),
    _Metric(
        "deploy_shadow_failed_total",
        "counter",
        "Samples on which the float32 model failed",
        lambda model: model.shadow.failed if model.shadow else None,
    ),
    _Metric(
        "deploy_shadow_largest_difference",
        "gauge",
        "Largest difference over the largest value of its output, of all samples",
        lambda model: model.shadow.largest if model.shadow else None,
    ),
    _Metric(
        "deploy_shadow_sqnr_db",
        "gauge",
        "Signal over error of all samples",
        lambda model: model.shadow.sqnr_db if model.shadow else None,
    ),
)


def render_metrics(repository: ModelRepository, server: ServerStatistics) -> bytes:
    """All metrics as they are now."""
    lines: list[str] = []
    models = repository.models()
    for metric in _MODEL_METRICS:
        values = ((_labels(model), metric.value(model)) for model in models)
        known = [(labels, value) for labels, value in values if value is not None]
        _write(lines, metric.name, metric.kind, metric.text, known)
    _write(
        lines,
        "nv_inference_request_failure",
        "counter",
        "Requests that were not answered with a result, by reason",
        [
            ({**_labels(model), "reason": reason}, count)
            for model in models
            for reason, count in model.statistics.failures.items()
        ],
    )
    _write_histogram(lines, models)
    _write_server(lines, repository, server)
    return ("\n".join(lines) + "\n").encode()


def _write_server(lines: list[str], repository: ModelRepository, server: ServerStatistics) -> None:
    refused = [({"status": str(status)}, count) for status, count in server.refused.items()]
    _write(lines, "deploy_refused_total", "counter", "Requests refused before a model", refused)
    plain: list[tuple[str, str, str, float | None]] = [
        ("deploy_ready", "gauge", "1 where all models are ready", float(repository.ready)),
        ("deploy_ready_after_seconds", "gauge", "Start until ready", server.ready_after_s),
        ("deploy_connections", "gauge", "Open connections", server.connections),
        (
            "deploy_connections_timed_out_total",
            "counter",
            "Connections on which a request did not arrive or an answer was not taken in time",
            server.timed_out,
        ),
        (
            "deploy_connections_turned_away_total",
            "counter",
            "Connections beyond those that may be open",
            server.turned_away,
        ),
        (
            "deploy_inflight_bytes",
            "gauge",
            "Bytes of bodies and answers held",
            server.inflight_bytes,
        ),
        (
            "deploy_trace_spans_sent_total",
            "counter",
            "Spans that the collector took",
            server.spans.sent if server.spans else None,
        ),
        (
            "deploy_trace_spans_dropped_total",
            "counter",
            "Spans for which there was no room, or that the collector did not take",
            server.spans.dropped if server.spans else None,
        ),
        ("deploy_worker_deaths_total", "counter", "Workers that were replaced", server.deaths),
        ("process_start_time_seconds", "gauge", "By the wall clock", server.started),
    ]
    for name, kind, text, value in plain:
        _write(lines, name, kind, text, [] if value is None else [({}, value)])


def _write_histogram(lines: list[str], models: Iterable[ServedModel]) -> None:
    name = "deploy_request_duration_seconds"
    lines += [f"# HELP {name} Time of requests, in all", f"# TYPE {name} histogram"]
    for model in models:
        total = 0
        for bound, count in zip((*BUCKETS_S, "+Inf"), model.statistics.histogram, strict=True):
            total += count
            lines.append(_line(f"{name}_bucket", {**_labels(model), "le": str(bound)}, total))
        lines.append(_line(f"{name}_sum", _labels(model), model.statistics.request_us / 1e6))
        lines.append(_line(f"{name}_count", _labels(model), total))


def _write(lines: list[str], name: str, kind: str, text: str, samples: Iterable[Sample]) -> None:
    lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    lines += [_line(name, labels, value) for labels, value in samples]


def _labels(model: ServedModel) -> dict[str, str]:
    return {"model": model.name, "version": model.version}


def _line(name: str, labels: Labels, value: float) -> str:
    """Names of models need no escapes: see `deploy.serving.models.repository`."""
    inside = ",".join(f'{key}="{text}"' for key, text in labels.items())
    number = repr(round(value, 6) if isinstance(value, float) else value)
    return f"{name}{{{inside}}} {number}" if inside else f"{name} {number}"
