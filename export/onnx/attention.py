"""Attention written out where the exporter does not take it, or writes more than there is to do.

    softmax(q scale k^T + mask) v

over the last two axes, as `torch.nn.functional.scaled_dot_product_attention` defines it; a query
from which the mask hides all keys gets zeros, where the softmax would have NaN; where it is causal,
a query sees the keys up to its own number. Up to opset 22 the exporter takes four axes alone, and
transposes keys by three axes whose sizes it works out when the model runs, with a scale for queries
and another for keys: nine operators more for each attention, behind which engines do not see a
transposed product.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, fx

from export.fusion.calls import add_call
from export.fusion.constants import Constants
from export.fusion.draft import Draft, read_argument
from export.fusion.mutation import Mutations

aten = torch.ops.aten

_ATTENTION = aten.scaled_dot_product_attention.default
_NATIVE_RANK = 4
_NATIVE_OPSET = 23
"""From here on ONNX has an operator for attention over four axes."""


def write_out_attention(draft: Draft, *, opset: int) -> bool:
    """Write out the attention of `draft` for which `opset` has no operator.

    Attention that drops values, shares keys among queries, or is causal over four axes is left.

    Returns:
        Whether there was any.
    """
    found = [node for node in draft.graph.nodes if _is_plain(node) and not _is_native(node, opset)]
    constants = Constants(draft, Mutations(draft.graph))
    blind = [_may_hide_all(constants, read_argument(node, "attn_mask")) for node in found]
    for node, may_hide_all in zip(found, blind, strict=True):
        with draft.graph.inserting_before(node):
            draft.erase(node, _write_out(draft.graph, node, may_hide_all=may_hide_all))
    return bool(found)


def _is_plain(node: fx.Node) -> bool:
    """Whether nothing but a scale and a mask belongs to this attention.

    Causal attention over four axes is the exporter's; it takes no others.
    """
    if node.target is not _ATTENTION:
        return False
    causal = read_argument(node, "is_causal", False) and node.meta["val"].ndim == _NATIVE_RANK
    return not causal and not any(
        read_argument(node, option, False) for option in ("dropout_p", "enable_gqa")
    )


def _is_native(node: fx.Node, opset: int) -> bool:
    """Whether ONNX has an operator for it that ONNX Runtime runs.

    That takes only scales above zero, as many heads of keys as of queries, and masks with a row for
    each query.
    """
    if opset < _NATIVE_OPSET or node.meta["val"].ndim != _NATIVE_RANK:
        return False
    query, key, value, mask = (
        read_argument(node, name) for name in ("query", "key", "value", "attn_mask")
    )
    scale = read_argument(node, "scale")
    heads = [item.meta["val"].shape[1] for item in (query, key, value)]
    spread = mask is not None and any(_is_one(size) for size in mask.meta["val"].shape[-2:])
    return (scale is None or scale > 0) and len({*map(str, heads)}) == 1 and not spread


def _is_one(size: int | torch.SymInt) -> bool:
    return isinstance(size, int) and size == 1


def _may_hide_all(constants: Constants, mask: fx.Node | None) -> bool:
    """Whether there may be a query that sees no key, which a constant mask shows."""
    if mask is None:
        return False
    value = constants.find(mask, torch.device("cpu"))
    if value is None:
        return True
    hidden = value == (0 if mask.meta["val"].dtype == torch.bool else -math.inf)
    return bool(hidden.all(-1).any())


def _write_out(graph: fx.Graph, node: fx.Node, *, may_hide_all: bool) -> fx.Node:
    query, key, value, mask = (
        read_argument(node, name) for name in ("query", "key", "value", "attn_mask")
    )
    scale = read_argument(node, "scale")
    if scale is None:
        scale = 1 / math.sqrt(int(query.meta["val"].shape[-1]))

    call = partial(add_call, node)
    query = call(aten.mul.Scalar, query, scale)
    scores = call(aten.matmul.default, query, call(aten.transpose.int, key, -2, -1))
    if mask is not None:
        example: Tensor = mask.meta["val"]
        if example.dtype == torch.bool:
            hidden = call(aten.logical_not.default, mask)
            scores = call(aten.masked_fill.Scalar, scores, hidden, -math.inf)
        else:
            scores = call(aten.add.Tensor, scores, mask)
    if read_argument(node, "is_causal", False):
        scores = call(aten.masked_fill.Scalar, scores, _hide_later(call, query, key), -math.inf)
    answer = call(aten.matmul.default, call(aten.softmax.int, scores, -1), value)
    if mask is None or not may_hide_all:
        return answer
    # Behind the products, since engines fuse them with the softmax between. The largest value of a
    # mask would say as much, but where all are minus infinity OpenVINO finds a finite number.
    if mask.meta["val"].dtype == torch.bool:
        hidden = call(aten.logical_not.default, mask)
    else:
        hidden = call(aten.eq.Scalar, mask, -math.inf)
    blind = call(aten.all.dim, hidden, -1, True)
    return call(aten.masked_fill.Scalar, answer, blind, 0.0)


def _hide_later(call: Callable[..., fx.Node], query: fx.Node, key: fx.Node) -> fx.Node:
    """Which keys stand behind their query: true where the column is greater than the row."""

    def count(source: fx.Node) -> int | fx.Node:
        size = source.meta["val"].shape[-2]
        return size if isinstance(size, int) else call(aten.sym_size.int, source, -2)

    rows, columns = (call(aten.arange.default, count(source)) for source in (query, key))
    return call(aten.gt.Tensor, columns, call(aten.unsqueeze.default, rows, -1))
