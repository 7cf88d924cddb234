"""Padding whose border is overwritten with one value a channel, as a Diverse Branch Block has it.

Its 1x1 branch ends in a batch norm and goes on into a k x k convolution. Zero padding between them
would not be what the merged convolution sees there, so the authors pad with zeros and then assign
to the border what the norm makes of zero. In the graph these are a pad, slices of it, and in-place
copies. They are told apart by running them: the inside must come through untouched, and the border
must hold one value a channel, whatever the input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from export.fusion.constants import Constants
from export.fusion.draft import Draft, read_argument
from export.fusion.evaluation import evaluate, hint
from export.fusion.mutation import Mutations

aten = torch.ops.aten

_PADS = (aten.pad.default, aten.constant_pad_nd.default)
_VIEWS = (aten.slice.Tensor,)
_WHOLE = 2**62
_PROBES = 2


@dataclass(frozen=True)
class Border:
    """What a padding holds outside the value that it pads.

    Attributes:
        value: ``(channels,)``, float64.
        nodes: the slices and copies that write it, and the sizes that only they read.
    """

    value: Tensor
    nodes: tuple[fx.Node, ...]


def find_borders(draft: Draft, constants: Constants, mutations: Mutations) -> dict[fx.Node, Border]:
    """The paddings of the graph whose border is overwritten, and with what."""
    found = {}
    for pad in draft.graph.nodes:
        if pad.target not in _PADS or not mutations.writes(pad):
            continue
        border = _read_border(draft, pad, constants, mutations)
        if border is not None:
            found[pad] = border
    return found


def _read_border(
    draft: Draft, pad: fx.Node, constants: Constants, mutations: Mutations
) -> Border | None:
    writers = mutations.writes(pad)
    aliases = mutations.aliases(pad)
    if aliases[0] is not pad or not _only_fills(pad, aliases, writers, constants, mutations):
        return None
    sizes = tuple(pad.meta["val"].shape)
    source = read_argument(pad, "self")
    inner = tuple(hint(size) for size in source.meta["val"].shape)
    between = [
        node
        for node in mutations.position
        if mutations.position[pad] <= mutations.position[node] <= mutations.position[writers[-1]]
        and (node in aliases or node in _feeds(writers))
    ]
    pads = read_argument(pad, "pad")
    grows = all(isinstance(size, int) and size >= 0 for size in pads)
    if len(sizes) < 3 or len(pads) // 2 > len(sizes) - 2 or not grows:
        return None
    window = _inner_window(len(sizes), list(pads), inner)
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(_PROBES):
        x = torch.randn(inner, dtype=torch.float64, generator=generator)
        try:
            with torch.no_grad():
                known = {source: x, **_known(between, constants)}
                result = evaluate(draft, between, known, dtype=torch.float64, keep=(pad,))[pad]
        except KeyError:  # something in the border is computed from the data
            return None
        if not torch.equal(result[window], x):
            return None
        outside = torch.ones(result.shape, dtype=torch.bool)
        outside[window] = False
        by_channel = result.movedim(1, 0)[:, outside.movedim(1, 0)[0]]
        if by_channel.shape[1] == 0 or not (by_channel == by_channel[:, :1]).all():
            return None
        values.append(by_channel[:, 0].clone())
    if not torch.equal(values[0], values[1]):
        return None
    return Border(values[0], tuple(node for node in between if node is not pad))


def _only_fills(
    pad: fx.Node,
    aliases: list[fx.Node],
    writers: list[fx.Node],
    constants: Constants,
    mutations: Mutations,
) -> bool:
    """Views of the padding are only copied into, and that before anything reads the padding."""
    last = mutations.position[writers[-1]]
    for node in aliases:
        if node is pad or node in writers:
            if any(mutations.position[user] <= last and user not in aliases for user in node.users):
                return False
            if node in writers and (node.target is not aten.copy_.default or node.users):
                return False
            continue
        if node.target not in _VIEWS or any(user not in aliases for user in node.users):
            return False
        if not _is_anchored(pad, node):
            return False
    return True


def _is_anchored(pad: fx.Node, view: fx.Node) -> bool:
    """Whether a slice of the padding lies alike at every size that an axis may have.

    Its ends then count from the rims, within the border. Samples must not be told apart.
    """
    axis, start, end, step = (read_argument(view, n) for n in ("dim", "start", "end", "step"))
    sizes, pads = pad.meta["val"].shape, read_argument(pad, "pad")
    if axis and isinstance(sizes[axis], int):
        return True
    place = 2 * (len(sizes) - 1 - int(axis) % len(sizes))
    before, after = pads[place : place + 2] if axis and place < len(pads) else (0, 0)
    ends = (start, None if isinstance(end, int) and end >= _WHOLE else end)
    return step == 1 and all(
        value is None or (isinstance(value, int) and -after <= value <= before) for value in ends
    )


def _feeds(writers: list[fx.Node]) -> set[fx.Node]:
    """What the copies read, and what makes it, as far as it is made for them alone."""
    found: set[fx.Node] = set()
    queue = [writer.args[1] for writer in writers]
    while queue:
        node = queue.pop()
        if not isinstance(node, fx.Node) or node.op != "call_function" or node in found:
            continue
        if isinstance(node.meta.get("val"), torch.Tensor):
            found.add(node)
            queue += node.all_input_nodes
    return found


def _known(nodes: list[fx.Node], constants: Constants) -> dict[fx.Node, Tensor]:
    cpu = torch.device("cpu")
    read = {source for node in nodes for source in node.all_input_nodes}
    return {node: constants.value(node, cpu) for node in read if node in constants}


def _inner_window(rank: int, pads: list[int], inner: tuple[int, ...]) -> tuple[slice, ...]:
    window = [slice(None)] * rank
    for index in range(len(pads) // 2):
        axis = rank - 1 - index
        window[axis] = slice(pads[2 * index], pads[2 * index] + inner[axis])
    return tuple(window)
