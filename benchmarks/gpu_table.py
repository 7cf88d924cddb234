"""What `benchmarks/gpu.py` measured, as numbers and as one table. Nothing here needs a GPU."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from deploy.judging.output_parity import decibels
from deploy.measuring.bootstrap import estimate_ratio
from export.gpu import GpuState

BASELINE, CONTROL = "eager fp32", "eager fp32 (control)"
HEADS = (
    "network",
    "engine",
    "SQNR float64, dB",
    "max rel float64",
    "SQNR eager, dB",
    "max rel eager",
    "batch",
    "compute, ms",
    "with copies, ms",
    "against eager fp32",
    "most images/s",
)

Array = np.ndarray[Any, Any]


def compare(expected: Array, ours: Array) -> dict[str, float | None]:
    """SQNR in dB, and the largest error over the largest value expected.

    JSON has no infinity: what is identical has no SQNR, and what is no number has neither.
    """
    exact = expected.astype(np.float64)
    noise = ours.astype(np.float64) - exact
    if not np.isfinite(noise).all():
        return {"sqnr_db": None, "max_rel": None}
    if not noise.any():
        return {"sqnr_db": None, "max_rel": 0.0}
    sqnr = decibels(float(np.square(exact).sum()), float(np.square(noise).sum()))
    largest = float(np.abs(exact).max()) or 1.0
    return {"sqnr_db": sqnr, "max_rel": float(np.abs(noise).max()) / largest}


def measure_parity(exact: Array, answers: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """Every engine's answers beside those of float64 on the CPU and of eager float32 on the GPU."""
    found = {}
    for name, ours in answers.items():
        to_exact = compare(exact, ours)
        to_eager = compare(answers[BASELINE], ours) if BASELINE in answers else {}
        found[name] = {
            **{f"{key}_float64": value for key, value in to_exact.items()},
            **{f"{key}_eager": value for key, value in to_eager.items()},
        }
    return found


def summarize(
    compute: Mapping[str, Array], wall: Mapping[str, Array], *, batch: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Medians in ms, throughput, and the speed-up over eager in float32 with its 95% interval.

    Args:
        compute: block medians in seconds, [rounds, blocks], of the GPU's own work.
        wall: likewise by the host's clock, with both copies.
        batch: samples in a call.
        seed: of the resampling.
    """
    found = {}
    for name, blocks in compute.items():
        median = float(np.median(blocks))
        entry: dict[str, Any] = {
            "compute_ms": median * 1e3,
            "wall_ms": float(np.median(wall[name])) * 1e3,
            "images_per_s": batch / median,
        }
        for label, times in (("compute", compute), ("wall", wall)):
            if BASELINE in times:
                pair = times[BASELINE][None], times[name][None]
                ratio, interval = estimate_ratio(*pair, seed=seed)
                entry[f"{label}_speedup"], entry[f"{label}_speedup_ci95"] = ratio, list(interval)
        found[name] = entry
    return found


def make_table(result: Mapping[str, Any]) -> str:
    """One markdown table: a row a network and engine, at the smallest batch; then what is missing.

    The sweep over batches is in the JSON; the last column is its best, and at which batch.
    """
    rows = [list(HEADS), ["---"] * len(HEADS)]
    notes: list[str] = []
    for network, entry in result["networks"].items():
        batches = sorted(entry["batches"], key=int)
        names = dict.fromkeys(
            [*entry["parity"], *(name for batch in batches for name in entry["batches"][batch])]
        )
        rows += [_row(network, name, entry, batches) for name in names]
        notes += [f"{network}: {name}: {reason}" for name, reason in entry["failed"].items()]
        notes += [f"{network}: {line}" for line in describe_states(entry["states"])]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *dict.fromkeys(notes)]).rstrip()


def _row(network: str, name: str, entry: Mapping[str, Any], batches: list[str]) -> list[str]:
    parity = entry["parity"].get(name, {})
    timed = [batch for batch in batches if name in entry["batches"][batch]]
    cells = [network, name]
    cells += [*_parity_cells(parity, "float64"), *_parity_cells(parity, "eager")]
    if not timed:
        return [*cells, *["-"] * (len(HEADS) - len(cells))]
    first = entry["batches"][timed[0]][name]
    ratio = "-"
    if "compute_speedup" in first:
        ratio = "{:.2f}x ({:.2f} to {:.2f})".format(
            first["compute_speedup"], *first["compute_speedup_ci95"]
        )
    best = max(timed, key=lambda batch: entry["batches"][batch][name]["images_per_s"])
    most = entry["batches"][best][name]["images_per_s"]
    times = [f"{first['compute_ms']:.3f}", f"{first['wall_ms']:.3f}"]
    return [*cells, timed[0], *times, ratio, f"{most:,.0f} at {best}"]


def _parity_cells(parity: Mapping[str, Any], against: str) -> tuple[str, str]:
    """SQNR and largest error; ``NaN`` where an answer is no number, ``-`` where there is none."""
    if f"max_rel_{against}" not in parity:
        return "-", "-"
    sqnr, largest = parity[f"sqnr_db_{against}"], parity[f"max_rel_{against}"]
    if largest is None:
        return "NaN", "NaN"
    return "identical" if sqnr is None else f"{sqnr:.1f}", f"{largest:.1e}"


def describe_states(states: list[Mapping[str, Any]]) -> list[str]:
    """What the driver said before and after: clocks, power, temperature, and what held it back."""
    known = [state["gpu"] for state in states if state["gpu"] is not None]
    if not known:
        return ["nvidia-smi tells neither clocks nor what limits them"]
    parts = []
    for key, unit in (("sm_mhz", "MHz"), ("watts", "W"), ("celsius", "°C")):
        values = [state[key] for state in known if state[key] is not None]
        if values:
            parts.append(f"{min(values):g} to {max(values):g} {unit}")
    highest = [state["max_sm_mhz"] for state in known if state["max_sm_mhz"] is not None]
    most = f" (at most {max(highest):g} MHz)" if highest else ""
    reasons = dict.fromkeys(reason for state in known for reason in state["reasons"] or ())
    held = ", ".join(reason for reason in reasons if reason != "idle") or "nothing"
    return [f"{', '.join(parts)}{most}; clocks were held back by {held}"]


def state_json(when: str, state: GpuState | None) -> dict[str, Any]:
    """A state of the GPU as plain values."""
    return {"when": when, "gpu": None if state is None else asdict(state)}
