"""A batch norm behind a concatenation of channels becomes one for each part, before it.

    bn(cat(x, y))  =  cat(bn_x(x), bn_y(y))

where bn_x has the norm's numbers for the channels of x. No bit of the result changes. It is done
where the parts come from layers that the norms can be folded into, as where kernels of several
sizes share a norm, or two ways through a block; one part may come from something else, since no
more norms are left then than before.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from export.artifacts import Fused, Skip
from export.fusion.constants import Constants
from export.fusion.draft import Draft, read_argument
from export.fusion.mutation import Mutations
from export.fusion.norm_paths import trace_layer
from export.fusion.norms import NORMS, read_norm
from export.fusion.options import FusionOptions

aten = torch.ops.aten

_CONCATENATIONS = frozenset({aten.cat.default, aten.concat.default})
_NONE: frozenset[fx.Node] = frozenset()
_NUMBERS = ("weight", "bias", "running_mean", "running_var")


def split_norms(draft: Draft, options: FusionOptions) -> tuple[tuple[Fused, ...], tuple[Skip, ...]]:
    """Take every such norm of `draft` before its concatenation; folding it is another pass's."""
    mutations = Mutations(draft.graph)
    constants = Constants(draft, mutations)
    norms = [node for node in draft.graph.nodes if node.target in NORMS and node not in constants]
    queue = [(norm, norm) for norm in norms]
    while queue:
        norm, original = queue.pop()
        joined = read_argument(norm, "input")
        parts = _list_parts(draft, joined)
        rigid = [part for part in parts if not _leads_to_layers(draft, part)]
        if len(rigid) > 1 or len(rigid) == len(parts) or not _is_readable(draft, norm):
            continue
        if not any(mutations.is_changed_between(part, original, without=_NONE) for part in parts):
            queue += [(made, original) for made in _split(draft, norm, joined, parts)]
    return (), ()


def _list_parts(draft: Draft, joined: fx.Node) -> list[fx.Node]:
    """What is concatenated along the channels for one reader alone; else nothing.

    Nothing either where parts have other dtypes than the whole: norms of them would round, or fail.
    """
    if joined.target not in _CONCATENATIONS or len(joined.users) != 1:
        return []
    parts = read_argument(joined, "tensors")
    rank = joined.meta["val"].ndim
    if int(read_argument(joined, "dim")) % rank != 1 or len({*parts}) != len(parts):
        return []
    if any(part.meta["val"].dtype != joined.meta["val"].dtype for part in parts):
        return []
    sizes = [part.meta["val"].shape[1] for part in parts if part.meta["val"].ndim == rank]
    known = len(sizes) == len(parts) and all(isinstance(size, int) for size in sizes)
    return list(parts) if known else []


def _leads_to_layers(draft: Draft, part: fx.Node) -> bool:
    """Whether norms of this value can be folded into the layers before it."""
    inner = _list_parts(draft, part)
    if inner:
        return all(_leads_to_layers(draft, item) for item in inner)
    layer = trace_layer(part)
    if not isinstance(layer, fx.Node) or not part.users:
        return False
    weight, bias = (read_argument(layer, name) for name in ("weight", "bias"))
    if draft.stored(weight) is None or (bias is not None and draft.stored(bias) is None):
        return False
    return bool(part.meta["val"].ndim == weight.meta["val"].ndim)


def _is_readable(draft: Draft, norm: fx.Node) -> bool:
    """Whether its numbers are stored, and the normalized tensor is all that it returns."""
    found = read_norm(norm, draft.stored)
    return not isinstance(found, str) and isinstance(norm.meta.get("val"), torch.Tensor)


def _split(draft: Draft, norm: fx.Node, joined: fx.Node, parts: list[fx.Node]) -> Iterator[fx.Node]:
    """Put the norms of `parts` in place of `norm`."""
    beside: fx.Node = read_argument(norm, "running_mean")
    made: list[fx.Node] = []
    start = 0
    for part in parts:
        end = start + part.meta["val"].shape[1]
        numbers = {name: _cut(draft, norm, name, (start, end), beside) for name in _NUMBERS}
        made.append(_call_again(draft, norm, {"input": part, **numbers}))
        start = end
    whole = _call_again(draft, joined, {"tensors": made}, before=norm)
    draft.erase(norm, whole)
    draft.graph.erase_node(joined)
    return iter(made)


def _cut(
    draft: Draft, norm: fx.Node, name: str, channels: tuple[int, int], beside: fx.Node
) -> fx.Node | None:
    """The numbers of some channels, stored beside the others."""
    node: fx.Node | None = read_argument(norm, name)
    tensor = None if node is None else draft.stored(node)
    if node is None or tensor is None:
        return None
    piece = nn.Parameter(tensor.detach()[slice(*channels)].clone(), draft.requires_grad(node))
    return draft.add(draft.target(node), piece, beside=beside)


def _call_again(
    draft: Draft, node: fx.Node, changed: dict[str, Any], before: fx.Node | None = None
) -> fx.Node:
    """The call of `node` with some arguments `changed`, right before it or another node."""
    target: Any = node.target
    names = [argument.name for argument in target._schema.arguments]
    args = tuple(changed.get(name, read_argument(node, name)) for name in names)
    with draft.graph.inserting_before(before or node):
        made = draft.graph.call_function(target, args)
    made.meta = {key: item for key, item in node.meta.items() if key != "val"}
    with node.meta["val"].fake_mode:
        made.meta["val"] = target(*fx.node.map_arg(args, lambda item: item.meta["val"]))
    return made
