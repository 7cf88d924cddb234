"""``hstack``, ``vstack``, ``dstack`` and ``column_stack`` as concatenations.

The exporter writes them as loops over sequences of tensors, of which neither OpenVINO nor TensorRT
has any form.
"""

from typing import Any

import torch
from torch import fx

from export.fusion.calls import add_call
from export.fusion.draft import Draft, read_argument

aten = torch.ops.aten

_RANKS: dict[Any, int] = {
    aten.hstack.default: 1,
    aten.vstack.default: 2,
    aten.dstack.default: 3,
    aten.column_stack.default: 2,
}
"""How many axes each tensor has at least where it is put beside the others."""


def write_out_stacks(draft: Draft) -> bool:
    """Whether there was a stack of tensors that have axes."""
    stacks = [node for node in draft.graph.nodes if node.target in _RANKS and _have_axes(node)]
    for node in stacks:
        with draft.graph.inserting_before(node):
            parts = [_raise_rank(node, part) for part in read_argument(node, "tensors")]
            joined = add_call(node, aten.cat.default, parts, _choose_axis(node, parts[0]))
        draft.erase(node, joined)
    return bool(stacks)


def _have_axes(node: fx.Node) -> bool:
    return all(part.meta["val"].ndim for part in read_argument(node, "tensors"))


def _choose_axis(node: fx.Node, part: fx.Node) -> int:
    if node.target == aten.dstack.default:
        return 2
    if node.target == aten.vstack.default:
        return 0
    return 1 if part.meta["val"].ndim > 1 else 0


def _raise_rank(node: fx.Node, part: fx.Node) -> fx.Node:
    """A row becomes a matrix of one row, in a column stack of one column; a matrix gets depth."""
    columns = node.target == aten.column_stack.default
    while (rank := part.meta["val"].ndim) < _RANKS[node.target]:
        part = add_call(node, aten.unsqueeze.default, part, -1 if columns or rank == 2 else 0)
    return part
