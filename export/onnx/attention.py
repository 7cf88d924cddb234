"""Attention written out where the exporter does not take it, or writes more than there is to do.

    softmax(q scale k^T + mask) v

over the last two axes, as `torch.nn.functional.scaled_dot_product_attention` defines it; a query
from which the mask hides all keys gets zeros, where the softmax would have NaN; where it is causal,
a query sees the keys up to its own number; heads of queries may share one of keys. Up to opset 22
the exporter takes four axes alone, and transposes keys by three axes whose sizes it works out when
the model runs, with a scale for queries and another for keys: nine operators more for each
attention, behind which engines do not see a transposed product.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, fx, nn

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

    Attention that drops values or is causal over four axes is left.

    Returns:
        Whether there was any.
    """
    alike = _drop_needless_sharing(draft.graph)
    found = [node for node in draft.graph.nodes if _is_plain(node) and not _is_native(node, opset)]
    constants = Constants(draft, Mutations(draft.graph))
    blind = [_may_hide_all(constants, read_argument(node, "attn_mask")) for node in found]
    for node, may_hide_all in zip(found, blind, strict=True):
        with draft.graph.inserting_before(node):
            draft.erase(node, _write_out(draft, node, may_hide_all=may_hide_all))
    return alike or bool(found)


def _drop_needless_sharing(graph: fx.Graph) -> bool:
    """Whether heads may be shared somewhere and are as many: the exporter refuses that."""
    found = [
        node
        for node in graph.nodes
        if node.target is _ATTENTION and _are_shared(node) and len(_count_heads(node)) == 1
    ]
    for node in found:
        node.kwargs = {name: v for name, v in node.kwargs.items() if name != "enable_gqa"}
    return bool(found)


def _count_heads(node: fx.Node) -> set[str]:
    """The different numbers of heads among queries, keys and values."""
    parts = (read_argument(node, name) for name in ("query", "key", "value"))
    return {str(part.meta["val"].shape[-3]) for part in parts}


def _is_plain(node: fx.Node) -> bool:
    """Whether nothing but a scale and a mask belongs to this attention.

    Causal attention over four axes is the exporter's; it takes no others.
    """
    if node.target is not _ATTENTION:
        return False
    causal = read_argument(node, "is_causal", False) and node.meta["val"].ndim == _NATIVE_RANK
    return not causal and not read_argument(node, "dropout_p", False)


def _is_native(node: fx.Node, opset: int) -> bool:
    """Whether ONNX has an operator for it that ONNX Runtime runs.

    That takes only scales above zero, as many heads of keys as of queries unless they are shared,
    and masks with a row for each query.
    """
    if opset < _NATIVE_OPSET or node.meta["val"].ndim != _NATIVE_RANK:
        return False
    mask, scale = (read_argument(node, name) for name in ("attn_mask", "scale"))
    spread = mask is not None and any(_is_one(size) for size in mask.meta["val"].shape[-2:])
    alike = _are_shared(node) or len(_count_heads(node)) == 1
    return (scale is None or scale > 0) and alike and not spread


def _are_shared(node: fx.Node) -> bool:
    """Whether several heads of queries may have one of keys and values among them."""
    return bool(read_argument(node, "enable_gqa", False))


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


def _write_out(draft: Draft, node: fx.Node, *, may_hide_all: bool) -> fx.Node:
    query, key, value, mask = (
        read_argument(node, name) for name in ("query", "key", "value", "attn_mask")
    )
    scale = read_argument(node, "scale")
    if scale is None:
        scale = 1 / math.sqrt(int(query.meta["val"].shape[-1]))

    call = partial(add_call, node)
    if _are_shared(node):
        key, value = (_repeat_heads(draft, node, item) for item in (key, value))
    blind = None
    if mask is not None and may_hide_all:
        mask, blind = _show_to_the_blind(call, mask)
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
    if blind is None:
        return answer
    # Behind the products, since engines fuse them with the softmax between. The largest value of a
    # mask would say as much, but where all are minus infinity OpenVINO finds a finite number.
    return call(aten.masked_fill.Scalar, answer, blind, 0.0)


def _show_to_the_blind(call: Callable[..., fx.Node], mask: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The mask with all keys shown to a query that would see none, and which queries these are.

    So no step holds NaN, which calibration could not tell from one that is a fault.
    """
    if mask.meta["val"].dtype == torch.bool:
        blind = call(aten.logical_not.default, call(aten.any.dim, mask, -1, True))
        return call(aten.logical_or.default, mask, blind), blind
    blind = call(aten.all.dim, call(aten.eq.Scalar, mask, -math.inf), -1, True)
    return call(aten.masked_fill.Scalar, mask, blind, 0.0), blind


def _repeat_heads(draft: Draft, node: fx.Node, shared: fx.Node) -> fx.Node:
    """Keys or values with a head for each of the queries; those side by side share one."""
    query: fx.Node = read_argument(node, "query")
    heads, kinds = (int(item.meta["val"].shape[-3]) for item in (query, shared))
    if heads == kinds:
        return shared
    sources = torch.arange(kinds).repeat_interleave(heads // kinds)
    sources = nn.Parameter(sources, requires_grad=False)
    stored = draft.add(f"{node.name}_heads", sources, beside=None)
    return add_call(node, aten.index_select.default, shared, -3, stored)


def _hide_later(call: Callable[..., fx.Node], query: fx.Node, key: fx.Node) -> fx.Node:
    """Which keys stand behind their query: true where the column is greater than the row."""

    def count(source: fx.Node) -> int | fx.Node:
        size = source.meta["val"].shape[-2]
        return size if isinstance(size, int) else call(aten.sym_size.int, source, -2)

    rows, columns = (call(aten.arange.default, count(source)) for source in (query, key))
    return call(aten.gt.Tensor, columns, call(aten.unsqueeze.default, rows, -1))
