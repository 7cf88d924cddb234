"""Attention over more or fewer axes than four, which the exporter does not take, written out.

    softmax(q k^T * scale + mask) v

over the last two axes, as `torch.nn.functional.scaled_dot_product_attention` defines it.
"""

import math
from typing import Any

import torch
from torch import Tensor, fx

from export.fusion.draft import Draft, read_argument

aten = torch.ops.aten

_ATTENTION = aten.scaled_dot_product_attention.default
_EXPORTED_RANK = 4


def write_out_attention(draft: Draft) -> bool:
    """Write out the attention of `draft` whose values have not four axes.

    Attention that drops values, is causal, or shares keys among queries is left.

    Returns:
        Whether there was any.
    """
    found = [node for node in draft.graph.nodes if _is_odd(node)]
    for node in found:
        with draft.graph.inserting_before(node):
            draft.erase(node, _write_out(draft.graph, node))
    return bool(found)


def _is_odd(node: fx.Node) -> bool:
    if node.target is not _ATTENTION or node.meta["val"].ndim == _EXPORTED_RANK:
        return False
    return not any(
        read_argument(node, name, False) for name in ("dropout_p", "is_causal", "enable_gqa")
    )


def _write_out(graph: fx.Graph, node: fx.Node) -> fx.Node:
    query, key, value, mask = (
        read_argument(node, name) for name in ("query", "key", "value", "attn_mask")
    )
    scale = read_argument(node, "scale")
    if scale is None:
        scale = 1 / math.sqrt(int(query.meta["val"].shape[-1]))

    def call(target: Any, *args: Any) -> fx.Node:
        made = graph.call_function(target, args)
        made.meta = {key: item for key, item in node.meta.items() if key != "val"}
        with node.meta["val"].fake_mode:
            given = fx.node.map_arg(args, lambda item: item.meta["val"])
            made.meta["val"] = target(*given)
        return made

    scores = call(aten.matmul.default, query, call(aten.transpose.int, key, -2, -1))
    scores = call(aten.mul.Scalar, scores, scale)
    if mask is not None:
        example: Tensor = mask.meta["val"]
        if example.dtype == torch.bool:
            hidden = call(aten.logical_not.default, mask)
            scores = call(aten.masked_fill.Scalar, scores, hidden, -math.inf)
        else:
            scores = call(aten.add.Tensor, scores, mask)
    return call(aten.matmul.default, call(aten.softmax.int, scores, -1), value)
