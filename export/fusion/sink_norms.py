"""A batch norm before an average over positions goes behind it, to the layer that reads that one.

    mean(bn(x))  =  bn(mean(x))

since a norm in inference is a scale and a shift of each channel, and the weights of an average sum
to one. What then stands before the layer merges with it; a network that ends with a norm, a global
pool and a classifier ends with the pool and the classifier. What is done to one value a channel is
done to all values of the channel at once, so that less is left to do even where nothing merges.
A norm of one position a channel goes behind the change of shape that takes its axes away.
"""

import torch
from torch import Tensor, fx

from export.artifacts import Fused, Skip
from export.fusion.constants import Constants
from export.fusion.cost import is_layer
from export.fusion.draft import Draft, read_argument
from export.fusion.evaluation import evaluate, hint
from export.fusion.mutation import DROPOUTS, Mutations
from export.fusion.norm_paths import FLATTENINGS, find_layer
from export.fusion.norms import NORMS, read_norm
from export.fusion.options import FusionOptions
from export.fusion.paths import find_path
from export.fusion.trial import Trial, find_fault, measure_error

aten = torch.ops.aten

_ADAPTIVE: dict[object, int] = {
    aten.adaptive_avg_pool1d.default: 3,
    aten.adaptive_avg_pool2d.default: 4,
    aten.adaptive_avg_pool3d.default: 5,
}
"""With the rank of what they pool, a batch included."""
_SQUEEZES = frozenset({aten.squeeze.dim, aten.squeeze.dims, *FLATTENINGS})
_WITHOUT_EFFECT = frozenset({*DROPOUTS, aten.contiguous.default, aten.clone.default})


def sink_norms(draft: Draft, options: FusionOptions) -> tuple[tuple[Fused, ...], tuple[Skip, ...]]:
    """Take every such norm of `draft` to its layer; merging it with that is another pass's."""
    mutations = Mutations(draft.graph)
    constants, changed = Constants(draft, mutations), mutations.changed()
    skipped: list[Skip] = []
    for norm in [node for node in draft.graph.nodes if node.target in NORMS]:
        if norm in constants or isinstance(find_layer(norm), fx.Node):
            continue
        if isinstance(read_norm(norm, draft.stored), str):
            continue
        steps = _find_steps(norm)
        source: fx.Node = read_argument(norm, "input")
        if not steps or {norm, *steps} & changed:
            continue
        if mutations.is_changed_between(source, steps[0], without=frozenset()):
            continue
        fault = _prove(draft, norm, steps)
        if fault is None:
            _sink(draft, norm, steps)
        else:
            skipped.append(Skip(find_path(draft, norm), "batch norm", fault))
    return (), tuple(skipped)


def _find_steps(norm: fx.Node) -> list[fx.Node]:
    """What leads from `norm` to layers: an average, a change of shape; nothing if anything else."""
    steps: list[fx.Node] = []
    if not isinstance(norm.meta.get("val"), Tensor):
        return []
    node = norm
    while not all(_is_layer_of(user, node) for user in node.users):
        users = list(node.users)
        if len(users) != 1 or not _keeps_affine_maps(users[0], node):
            return []
        node = users[0]
        steps.append(node)
    moves = any(_averages(step) or step.target in _SQUEEZES for step in steps)
    return steps if moves and node.users else []


def _is_layer_of(user: fx.Node, node: fx.Node) -> bool:
    """Whether `user` is a layer whose input `node` is."""
    return is_layer(user) and user.all_input_nodes[0] is node


def _keeps_affine_maps(node: fx.Node, source: fx.Node) -> bool:
    """Whether a scale and a shift of each channel may as well stand behind `node`."""
    if node.target in _WITHOUT_EFFECT:
        return not read_argument(node, "train", False)
    return _averages(node) or (node.target in _SQUEEZES and _drops_positions(node, source))


def _averages(node: fx.Node) -> bool:
    """Whether every value is an average over positions of one channel."""
    if node.target not in {aten.mean.dim, *_ADAPTIVE}:
        return False
    rank = read_argument(node, "self").meta["val"].ndim
    if node.target in _ADAPTIVE:
        return bool(rank == _ADAPTIVE[node.target])
    if read_argument(node, "dtype") is not None:
        return False
    return all(int(axis) % rank > 1 for axis in read_argument(node, "dim") or [0])


def _drops_positions(node: fx.Node, source: fx.Node) -> bool:
    """Whether only axes of size one behind the channels are dropped."""
    before, after = source.meta["val"].shape, node.meta["val"].shape
    ones = all(isinstance(size, int) and size == 1 for size in before[2:])
    channels = isinstance(after[1], int) and after[1] == before[1] if len(after) > 1 else False
    return ones and channels and all(isinstance(n, int) and n == 1 for n in after[2:])


def _prove(draft: Draft, norm: fx.Node, steps: list[fx.Node]) -> str | None:
    """Why the norm must not be moved, from both ways on random input; None if it may."""
    source = read_argument(norm, "input")
    value, last = source.meta["val"], steps[-1]
    trial = Trial(
        nodes=(norm, *steps),
        source=source,
        result=last,
        shape=tuple(hint(size) for size in value.shape),
        dtype=value.dtype,
        device=value.device,
    )

    def run(x: Tensor, precision: torch.dtype) -> Tensor:
        pooled = evaluate(draft, steps, {norm: x}, dtype=precision, keep=(last,))[last]
        found: Tensor = evaluate(draft, [norm], {source: pooled}, dtype=precision, keep=(norm,))[
            norm
        ]
        return found

    return find_fault(measure_error(draft, trial, run), value.dtype)


def _sink(draft: Draft, norm: fx.Node, steps: list[fx.Node]) -> None:
    """Have the norm read the last of `steps`, and the first of them what the norm read."""
    source, last = read_argument(norm, "input"), steps[-1]
    norm.replace_all_uses_with(source)
    readers = list(last.users)
    last.append(norm)  # moves it there
    norm.replace_input_with(source, last)
    for reader in readers:
        reader.replace_input_with(last, norm)
    norm.meta["val"] = last.meta["val"]
