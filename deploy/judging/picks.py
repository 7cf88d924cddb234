"""Outputs whose rows are picked by rank, where an error of values changes places of whole rows."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from deploy.judging.parity import ParityReport
from export.onnx.graph import is_standard, node_label

_PICKERS = {"TopK": 1, "NonMaxSuppression": 0}
"""By operator the first output that is places: values by rank change as what is ranked does."""


def find_picked(path: Path) -> dict[str, str]:
    """By output of the ONNX model at `path` the operator that picks its rows, and where it stands.

    An output that depends on several has the last of them; one that depends on none is not there.
    """
    model = onnx.load(path, load_external_data=False)
    picked: dict[str, str] = {}
    for node in model.graph.node:
        found = next((picked[name] for name in reversed(node.input) if name in picked), None)
        if found is not None:
            picked |= dict.fromkeys(filter(None, node.output), found)
        if node.op_type in _PICKERS and is_standard(node):
            places = node.output[_PICKERS[node.op_type] :]
            where = f"{node.op_type} at {node_label(node)}"
            picked |= dict.fromkeys(filter(None, places), where)
    return {value.name: picked[value.name] for value in model.graph.output if value.name in picked}


def warn_of_picks(path: Path, rejected: Sequence[ParityReport]) -> str | None:
    """What to do where the worst output of a rejected candidate is picked by rank; else None.

    Args:
        path: the ONNX model.
        rejected: how far the candidates that failed their gate are from the reference.
    """
    differing = [report for report in rejected if report.sqnr_db < math.inf]
    if not differing:
        return None
    picked = find_picked(path)
    if not any(_find_worst(report) in picked for report in differing):
        return None
    return _describe(picked)


def _find_worst(report: ParityReport) -> str:
    return min(report.outputs, key=lambda output: output.nearness_db).name


def _describe(picked: Mapping[str, str]) -> str:
    names = ", ".join(picked)
    wheres = ", ".join(dict.fromkeys(picked.values()))
    return (
        f"The rows of {names} are picked by rank ({wheres}): where two scores change places by "
        "rounding, whole rows do, and nearly as good an answer looks like another one. Return the "
        "scores and what is picked from, which are compared value by value, and pick from them "
        "after the engine."
    )
