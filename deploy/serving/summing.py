"""The metrics of several workers as those of one: counters summed, states as the worst of them."""

from collections.abc import Iterable

_SUMMED = (
    "nv_inference_pending_request_count",
    "deploy_connections",
    "deploy_inflight_bytes",
)
"""Gauges that are amounts."""

_WORST_IS_LEAST = (
    "deploy_ready",
    "deploy_model_ready",
    "deploy_shadow_sqnr_db",
    "process_start_time_seconds",
)
"""Gauges of which the least counts; of others the largest does."""


def sum_metrics(texts: Iterable[str]) -> str:
    """Several answers of /metrics as one.

    Args:
        texts: each as `deploy.serving.metrics` writes it.
    """
    kinds: dict[str, str] = {}
    lines: dict[str, float | None] = {}
    for text in texts:
        for line in text.splitlines():
            if line.startswith("#"):
                lines.setdefault(line, None)
                if line.startswith("# TYPE "):
                    _, _, name, kind = line.split(" ")
                    kinds[name] = kind
                continue
            series, _, value = line.rpartition(" ")
            name = series.partition("{")[0]
            lines[series] = _join(name, kinds, lines.get(series), float(value))
    written = (
        key if value is None else f"{key} {int(value) if value.is_integer() else repr(value)}"
        for key, value in lines.items()
    )
    return "\n".join(written) + "\n"


def _join(name: str, kinds: dict[str, str], known: float | None, value: float) -> float:
    if known is None:
        return value
    if kinds.get(name) != "gauge" or name in _SUMMED:
        return round(known + value, 6)
    return min(known, value) if name in _WORST_IS_LEAST else max(known, value)
