"""The numbers and tables of `benchmarks/peers.py`, from the times of its blocks."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from deploy.measuring.bootstrap import estimate_ratio
from deploy.measuring.latency import compare_times
from deploy.measuring.luck import estimate_luck, widen_interval

MERGED = ("repvgg_a0", "mobileone_s1")
PEERS = {
    "eager": "net.pt",
    "eager channels_last": "net.pt",
    "eager bf16": "net.pt",
    "torch.compile, frozen": "net.pt",
    "onnxruntime fp32": "plain.onnx",
    "onnxruntime quantize_static": "static.onnx",
    "openvino fp32": "plain.onnx",
    "openvino bf16": "plain.onnx",
    "openvino nncf int8": "nncf.xml",
}
INT8_PEERS = ("onnxruntime quantize_static", "openvino nncf int8")
OURS = "deploy"
SEED = 0


def find_rivals(times: dict[str, np.ndarray], count: int) -> list[str]:
    """The fastest peers."""
    peers = [name for name in times if name != OURS]
    return sorted(peers, key=lambda name: float(np.median(times[name])))[:count]


def summarize(times: dict[str, np.ndarray], reopened: dict[str, np.ndarray]) -> dict[str, Any]:
    """Medians in ms, and ours against eager and against the best peer.

    Args:
        times: block medians in seconds of all, [rounds, blocks].
        reopened: of ours and the fastest peers, [openings, rounds, blocks]. The best of them is the
            fastest here, and what openings differ by widens both intervals.
    """
    (best,) = find_rivals(reopened, 1)
    luck = estimate_luck(list(reopened.values()), seed=SEED)
    ratio, interval = compare_times(reopened[OURS], reopened[best], luck, seed=SEED)
    speedup, bounds = estimate_ratio(times["eager"][None], times[OURS][None], seed=SEED)
    bounds = widen_interval(speedup, bounds, replace(luck, openings=1).margin(2))
    return {
        "p50_ms": _in_ms(times),
        "reopened_p50_ms": _in_ms(reopened),
        "best_peer": best,
        "ratio": round(ratio, 3),
        "ratio_ci95": [round(end, 3) for end in interval],
        "speedup": round(speedup, 2),
        "speedup_ci95": [round(end, 2) for end in bounds],
    }


def _in_ms(times: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: round(float(np.median(blocks)) * 1e3, 3) for name, blocks in times.items()}


def make_table(result: dict[str, Any]) -> str:
    """Markdown: a row a network, times in ms, ours last."""
    columns = [*PEERS, OURS]
    heads = ["network", *columns, "winner", "against the best peer", "against eager", "of the peak"]
    rows = [heads, ["---"] * len(heads)]
    for name, entry in result["networks"].items():
        times, build = entry["p50_ms"], entry["build"]
        precision = "int8" if build["winner"].split("-")[1] in ("int8", "mixed") else None
        peak = result["peaks_gmacs"].get(precision or build["winner"].split("-")[1])
        rate = build["macs"] / times[OURS] / 1e6
        rows.append(
            [
                name,
                *(f"{times[peer]:.2f}" if peer in times else "-" for peer in columns),
                build["winner"],
                "{:.2f} ({:.2f} to {:.2f}), {}".format(
                    entry["ratio"], *entry["ratio_ci95"], entry["best_peer"]
                ),
                "{:.1f}x ({:.1f} to {:.1f})".format(entry["speedup"], *entry["speedup_ci95"]),
                f"{100 * rate / peak:.0f}%" if peak else "-",
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for label, names in (
        ("merged", MERGED),
        ("the rest", [n for n in result["networks"] if n not in MERGED]),
        ("all", list(result["networks"])),
    ):
        ratios = [result["networks"][n]["ratio"] for n in names if n in result["networks"]]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            lines.append(f"\nGeometric mean of the ratio to the best peer, {label}: {mean:.3f}")
    return "\n".join(lines)


def make_quality_table(result: dict[str, Any]) -> str:
    """Markdown: output SQNR in dB of every int8; the share of MACs that our winner has in it."""
    columns = [*INT8_PEERS, f"{OURS} onnxruntime-int8", f"{OURS} openvino-int8", OURS]
    rows = [["network", *columns, "MACs in int8"], ["---"] * (len(columns) + 2)]
    for name, entry in result["networks"].items():
        found = entry["sqnr_db"]
        census = entry["build"]["census"] or {}
        shares = [
            part["share_of_macs"]
            for part in census.get("precisions") or ()
            if part["precision"] == "int8"
        ]
        cells = [f"{found[column]:.1f}" if column in found else "-" for column in columns]
        rows.append([name, *cells, f"{100 * sum(shares):.0f}%"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
