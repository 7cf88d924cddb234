"""The scale of written-out attention: put to the queries where its masked scores have it.

    softmax(mask((q k^T) s)) v   →   softmax(mask((q s) k^T)) v

which is how `export.onnx.attention` writes it. It is less to do wherever there are more keys than
channels of a head, and float16 holds scores that are scaled before they are summed. TensorRT for
RTX 1.7 fails in 16 bits on the former where the mask is minus infinity and a head has twelve
channels, say, which is no multiple of eight.
"""

from typing import Any

import torch
from torch import fx

from export.fusion.calls import add_call
from export.fusion.constants import Constants
from export.fusion.draft import Draft, read_argument
from export.fusion.mutation import Mutations

aten = torch.ops.aten

_SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default})
_PRODUCTS = frozenset({aten.matmul.default, aten.bmm.default})
_MASKS = {
    aten.masked_fill.Scalar: (0,),
    aten.masked_fill.Tensor: (0,),
    aten.where.self: (1, 2),
    aten.where.ScalarSelf: (2,),
    aten.where.ScalarOther: (1,),
    aten.add.Tensor: (0, 1),
}
"""Operators that mask scores, by which of their arguments the scores may be."""

_MOVES = frozenset(
    {
        *(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.clone.default),
        *(aten.unsqueeze.default, aten.squeeze.dim, aten.transpose.int, aten.permute.default),
        *(aten.contiguous.default, aten.alias.default, aten.dropout.default),
    }
)
"""What leaves values as they are and may stand between scores and their softmax."""

_SCALES = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar})


def scale_queries(draft: Draft) -> bool:
    """Whether there were scores to take a scale from."""
    mutations = Mutations(draft.graph)
    constants = Constants(draft, mutations)
    nodes = [node for node in draft.graph.nodes if node.target in _SOFTMAX]
    scales = dict.fromkeys(_find_scale(node, constants) for node in nodes)
    found = [scale for scale in scales if scale is not None and not _is_late(scale, mutations)]
    for scale in found:
        product: Any = scale.args[0]
        query, key = product.args[:2]
        with draft.graph.inserting_before(scale):
            scaled = _call(scale, query, scale.args[1])
            again = _call(product, scaled, key)
        draft.erase(scale, again)
    return bool(found)


def _call(like: fx.Node, *args: Any) -> fx.Node:
    """The operator of `like`, in its place among the user's modules, on others."""
    target: Any = like.target
    return add_call(like, target, *args)


def _find_scale(softmax: fx.Node, constants: Constants) -> fx.Node | None:
    """What scales the scores of `softmax`, a product of two values, before they are masked."""
    reached, masked = [read_argument(softmax, "self")], False
    while reached:
        node = reached.pop()
        if not isinstance(node, fx.Node) or len(node.users) != 1:
            continue
        if node.target in _MASKS:
            masked = True
            reached += [node.args[place] for place in _MASKS[node.target]]
        elif node.target in _MOVES:
            reached.append(node.args[0])
        elif masked and _scales_product(node, constants):
            return node
    return None


def _is_late(scale: fx.Node, mutations: Mutations) -> bool:
    """Whether queries or keys, which are read where `scale` is, may be others by then."""
    sources = scale.all_input_nodes[0].all_input_nodes
    return any(
        mutations.is_changed_between(source, scale, without=frozenset()) for source in sources
    )


def _scales_product(node: fx.Node, constants: Constants) -> bool:
    if node.target not in _SCALES:
        return False
    product, factor = node.args[:2]
    if not isinstance(product, fx.Node) or product.target not in _PRODUCTS:
        return False
    values = [item.meta["val"] for item in (node, product, *product.all_input_nodes)]
    return (
        len(product.users) == 1
        and values[0].is_floating_point()
        and len({value.dtype for value in values}) == 1
        and min(value.ndim for value in values) > 1
        and _is_one_number(factor, constants)
    )


def _is_one_number(factor: object, constants: Constants) -> bool:
    """Whether a factor is known and has no axes, which queries would get of it."""
    if isinstance(factor, fx.Node):
        return factor in constants and factor.meta["val"].ndim == 0
    return isinstance(factor, int | float) and not isinstance(factor, bool)
