"""A scale of channels behind a change of axes goes before it, to the layer that it can merge with.

    permute(linear(x)) * s  =  permute(linear(x) * s')

where s has one value a channel and s' is s along the axis where the channels stood before. No bit
of the result changes. ConvNeXt's layer scale stands like this: its linear layers have the channels
last, the rest of the network has them first.
"""

from typing import Any

import torch
from torch import fx

from export.artifacts import Fused, Skip
from export.fusion.constants import Constants
from export.fusion.cost import is_layer
from export.fusion.draft import Draft, read_argument
from export.fusion.mutation import DROPOUTS, Mutations
from export.fusion.options import FusionOptions

aten = torch.ops.aten

_WITHOUT_EFFECT = frozenset({*DROPOUTS, aten.clone.default, aten.contiguous.default})


def hoist_scales(
    draft: Draft, options: FusionOptions
) -> tuple[tuple[Fused, ...], tuple[Skip, ...]]:
    """Take every such scale of `draft` before its change of axes; merging it is another pass's."""
    mutations = Mutations(draft.graph)
    constants, changed = Constants(draft, mutations), mutations.changed()
    for node in [node for node in draft.graph.nodes if node.target is aten.mul.Tensor]:
        pair = node.all_input_nodes
        for moved, scale in (pair, pair[::-1]) if len(pair) == 2 else ():
            if scale in constants and not {node, moved} & changed:
                _hoist(draft, node, moved, scale)
                break
    return (), ()


def _hoist(draft: Draft, node: fx.Node, moved: fx.Node, scale: fx.Node) -> None:
    order = _read_order(moved)
    if order is None or list(moved.users) != [node] or not _follows_layer(moved.args[0]):
        return
    rank = len(order)
    shape = [1] * (rank - scale.meta["val"].ndim) + list(scale.meta["val"].shape)
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    if len(shape) != rank or len(axes) != 1 or order[axes[0]] != rank - 1:
        return

    def call(target: Any, *args: Any) -> fx.Node:
        made = draft.graph.call_function(target, args)
        made.meta = {key: item for key, item in node.meta.items() if key != "val"}
        with node.meta["val"].fake_mode:
            made.meta["val"] = target(*fx.node.map_arg(args, lambda item: item.meta["val"]))
        return made

    with draft.graph.inserting_before(node):
        flat = call(aten.reshape.default, scale, [shape[axes[0]]])
        scaled = call(aten.mul.Tensor, moved.args[0], flat)
        draft.erase(node, call(aten.permute.default, scaled, order))
    draft.graph.erase_node(moved)


def _read_order(node: fx.Node) -> list[int] | None:
    """Which axis of its source each axis of a permuted value is; None if it is not permuted."""
    if node.op != "call_function":
        return None
    value = node.meta.get("val")
    rank = value.ndim if isinstance(value, torch.Tensor) else 0
    if node.target is aten.permute.default:
        return [int(axis) % rank for axis in read_argument(node, "dims")]
    if node.target is aten.transpose.int:
        order = list(range(rank))
        one, other = (int(read_argument(node, name)) % rank for name in ("dim0", "dim1"))
        order[one], order[other] = other, one
        return order
    return None


def _follows_layer(node: Any) -> bool:
    """Whether a layer made the value, for this reader alone."""
    while isinstance(node, fx.Node) and len(node.users) == 1:
        if is_layer(node):
            return True
        if node.target not in _WITHOUT_EFFECT or read_argument(node, "train", False):
            return False
        node = node.args[0]
    return False
