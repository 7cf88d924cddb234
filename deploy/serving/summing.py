"""The metrics of several workers as those of one: counters summed, states as the worst of them."""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

_WAIT_S = 1.0
"""Seconds that a worker has to tell its metrics; one that is being replaced has none."""

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


async def ask_peers(own: Path) -> list[str]:
    """The metrics of all other workers, whose sockets lie beside `own`."""
    peers = [path for path in sorted(own.parent.glob("*.sock")) if path != own]
    answers = await asyncio.gather(*map(_ask, peers))
    return [text for text in answers if text is not None]


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


async def _ask(path: Path) -> str | None:
    try:
        async with asyncio.timeout(_WAIT_S):
            reader, writer = await asyncio.open_unix_connection(path, limit=2**24)
            writer.write(b'{"command": "metrics"}\n')
            reply = json.loads(await reader.readline())
            writer.close()
    except (OSError, ValueError, TimeoutError):
        return None
    text: str = reply["ok"]["text"]
    return text
