"""The pages that people look at: status at ``/``, the protocol at ``/docs``."""

import time
from html import escape
from typing import Any

from deploy.serving.metrics import ServerStatistics
from deploy.serving.models.model import ServedModel
from deploy.serving.models.repository import ModelRepository

_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1c2024;background:#fff;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1.5rem}
td,th{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #e2e5e9;
vertical-align:top}
th{font-weight:500;color:#5a6470;width:34%}
.good{color:#11703a}.bad{color:#b3261e}.small{color:#5a6470;font-size:13px}
code{background:#f2f4f6;padding:.1rem .3rem;border-radius:3px}
@media(prefers-color-scheme:dark){body{background:#15181b;color:#e6e8ea}
td,th{border-color:#32383e}th,.small{color:#9ba5b1}code{background:#24292e}.good{color:#63c98a}.bad{color:#ff8f86}}
"""

_SCRIPT = """
async function refresh() {
  try {
    const answer = await fetch("status.json");
    const status = await answer.json();
    for (const model of status.models)
      for (const [key, text] of Object.entries(model.shown)) {
        const cell = document.getElementById(model.name + "/" + model.version + "/" + key);
        if (cell) cell.textContent = text;
      }
    document.getElementById("state").textContent = status.ready ? "ready" : "not ready";
    document.getElementById("state").className = status.ready ? "good" : "bad";
  } catch (error) {
    document.getElementById("state").textContent = "no answer";
    document.getElementById("state").className = "bad";
  }
}
setInterval(refresh, 2000);
"""

_ROWS = {
    "state": "State",
    "engine": "Engine",
    "parity": "Parity when built",
    "built": "Time of a run when built",
    "live": "Time of a run now",
    "drift": "Now over then",
    "request": "Time of a request now",
    "answered": "Answered",
    "refused": "Not answered",
    "batch": "Samples a run",
    "pending": "Waiting or running",
    "guards": "Values to look at",
    "shadow": "Beside the float32 model",
    "notes": "Notes",
}


def describe_status(repository: ModelRepository, server: ServerStatistics) -> dict[str, Any]:
    """What the status page shows, as plain values."""
    return {
        "ready": repository.ready,
        "draining": repository.draining,
        "uptime_s": round(time.time() - server.started, 1),
        "ready_after_s": server.ready_after_s,
        "models": [
            {
                "name": model.name,
                "version": model.version,
                "state": model.state,
                "reason": model.reason,
                "degraded": model.opened.degraded if model.opened else None,
                "live_ms": model.statistics.live_ms,
                "reported_ms": model.statistics.reported_ms,
                "drift": model.statistics.drift,
                "success": model.statistics.success,
                "shown": _show_model(model),
            }
            for model in repository.models()
        ],
    }


def render_status(repository: ModelRepository, server: ServerStatistics) -> str:
    """The status page, whole without its script, live with it."""
    parts = [
        f"<h1>deploy serve: <span id=state class={'good' if repository.ready else 'bad'}>"
        f"{'ready' if repository.ready else 'not ready'}</span></h1>",
        "<p class=small><a href=docs>protocol</a> &middot; <a href=metrics>metrics</a> &middot; "
        f"up since {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(server.started))} UTC</p>",
    ]
    for model in repository.models():
        title = f"{escape(model.name)} <span class=small>version {escape(model.version)}</span>"
        parts.append(f"<h2>{title}</h2><table>")
        for key, text in _show_model(model).items():
            identity = escape(f"{model.name}/{model.version}/{key}")
            parts.append(f'<tr><th>{_ROWS[key]}</th><td id="{identity}">{escape(text)}</td></tr>')
        parts.append("</table>")
    return _page("deploy serve", "".join(parts) + f"<script>{_SCRIPT}</script>")


def render_docs(document: dict[str, Any]) -> str:
    """The OpenAPI document as a page."""
    parts = [f"<h1>{escape(document['info']['title'])}</h1>"]
    parts.append("<p>As a document for tools: <a href=openapi.json>openapi.json</a></p>")
    for path, item in document["paths"].items():
        for method in ("get", "post"):
            if method not in item:
                continue
            operation = item[method]
            parts.append(f"<h3><code>{method.upper()} {escape(path)}</code></h3>")
            parts.append(f"<p>{escape(operation['summary'])}</p><table>")
            for status, answer in operation["responses"].items():
                text = escape(answer["description"])
                parts.append(f"<tr><th>{escape(status)}</th><td>{text}</td></tr>")
            parts.append("</table>")
    return _page("Open Inference Protocol v2", "".join(parts))


def _page(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        '<meta name=viewport content="width=device-width">'
        f"<style>{_STYLE}</style><body>{body}</body></html>"
    )


def _show_model(model: ServedModel) -> dict[str, str]:
    """Every row of a model's table, as text."""
    counts = model.statistics
    opened = model.opened
    degraded = f" (degraded: {opened.degraded})" if opened and opened.degraded else ""
    failures = {reason: count for reason, count in counts.failures.items() if count}
    runs = counts.executions
    return {
        "state": model.state.lower() + (f": {model.reason}" if model.reason else ""),
        "engine": (opened.name if opened else "none") + degraded,
        "parity": _show_parity(model),
        "built": _show_ms(counts.reported_ms, f" at batch {counts.reported_rows}"),
        "live": _show_ms(counts.live_ms, f" at batch {counts.reported_rows}"),
        "drift": "-" if counts.drift is None else f"{counts.drift:.2f}x",
        "request": _show_ms(counts.request_ms),
        "answered": f"{counts.success}",
        "refused": ", ".join(f"{n} {reason.lower()}" for reason, n in failures.items()) or "0",
        "batch": f"{counts.rows / runs:.2f}" if runs else "-",
        "pending": f"{model.pending}",
        "guards": (
            f"{model.guard.nonfinite} requests with NaN or infinity in outputs, "
            f"{model.guard.out_of_range} with inputs beyond calibration"
        ),
        "shadow": _show_shadow(model),
        "notes": "; ".join(opened.notes if opened else ()) or "none",
    }


def _show_parity(model: ServedModel) -> str:
    name = model.opened.name if model.opened else model.bundle.winner
    if name == "torch":
        return "the model itself"
    rows = [row for row in model.report["candidates"] if row["name"] == name]
    parity = rows[0]["parity"] if rows else None
    if parity is None:
        return "-"
    words = [parity["gate"]]
    scores = parity.get("accuracies") or {"": parity["accuracy"]}
    for output, score in scores.items():
        if score:
            measure = score.get("measure", "accuracy") + (f" in {output}" if output else "")
            words.append(f"{measure} {score['candidate']:.2%} against {score['reference']:.2%}")
    ratios = [out["sqnr_db"] for out in parity["outputs"] if out["sqnr_db"] is not None]
    if ratios:
        words.append(f"{min(ratios):.1f} dB")
    return "; ".join(words)


def _show_shadow(model: ServedModel) -> str:
    shadow = model.shadow
    if shadow is None:
        return "not sampled"
    ratio = "" if shadow.sqnr_db is None else f", {shadow.sqnr_db:.1f} dB"
    return f"{shadow.compared} compared, largest difference {shadow.largest:.2g}{ratio}"


def _show_ms(value: float | None, suffix: str = "") -> str:
    return "-" if value is None else f"{value:.3g} ms{suffix}"
