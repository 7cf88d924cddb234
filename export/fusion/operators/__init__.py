"""aten operators as linear, shift-invariant maps; told by operator and data flow, never by name."""

import torch
from torch import Tensor, fx

from export.fusion.norms import NORMS
from export.fusion.operators import arithmetic, channels, layers
from export.fusion.operators.base import Frame, Layout, Operator, Reader, Survey, name_operator
from export.fusion.operators.layers import MATRICES, describe_layer

__all__ = [
    "Frame",
    "Layout",
    "Operator",
    "Operators",
    "Survey",
    "describe_layer",
    "is_candidate",
    "read_operators",
]

aten = torch.ops.aten

Operators = dict[fx.Node, Operator | str]
"""Of every computed node the operator that it is, or why it is none."""

_READERS: dict[object, Reader] = {**layers.READERS, **arithmetic.READERS, **channels.READERS}
"""One reader an operator. What is not here is taken for a non-linearity."""

_OTHER_PADDINGS = {
    getattr(aten, f"{mode}_pad{rank}d").default: mode
    for mode in ("reflection", "replication")
    for rank in (1, 2, 3)
}

_REARRANGEMENTS = frozenset(
    {
        *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("permute", "transpose", "t", "numpy_T", "movedim", "expand", "select", "unbind", "roll"),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "flip", "repeat", "index"),
    }
)


def read_operators(survey: Survey) -> Operators:
    """What each computed, not constant node of the graph is."""
    return {
        node: _read(survey, node)
        for node in survey.draft.graph.nodes
        if node.op == "call_function" and node not in survey.constants
    }


def is_candidate(node: fx.Node) -> bool:
    """Whether the operator is one that merges, in some form; norms tell their reasons elsewhere."""
    if node.target in arithmetic.REDUCTIONS:
        return arithmetic.is_stacked_sum(node)
    return node.target in _READERS and node.target not in NORMS and node.target not in MATRICES


def _read(survey: Survey, node: fx.Node) -> Operator | str:
    if node.target in _OTHER_PADDINGS:
        return f"the padding mode is {_OTHER_PADDINGS[node.target]}, not zeros"
    reader = _READERS.get(node.target)
    if reader is None and name_operator(node) in _REARRANGEMENTS:
        return f"a change of shape ({name_operator(node)}) stands between"
    if reader is None:
        name = name_operator(node)
        kind = "resize" if "upsample" in name else "non-linearity"
        return f"a {kind} ({name}) stands between"
    if node not in survey.borders and survey.mutations.is_stale(node):
        return "a value is changed in place while something still reads it"
    values = [node, *(i for i in node.all_input_nodes if i not in survey.constants)]
    dtypes = {v.meta["val"].dtype for v in values if isinstance(v.meta.get("val"), Tensor)}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        return "the number format changes between"
    return reader(survey, node)
