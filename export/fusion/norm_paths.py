"""From a norm back to the layer that it can be folded into, past what changes no value."""

import torch
from torch import fx

from export.fusion.draft import read_argument
from export.fusion.mutation import DROPOUTS

aten = torch.ops.aten

LAYERS = frozenset(
    {
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv3d.default,
        aten.conv3d.padding,
        aten.conv_transpose1d.default,
        aten.conv_transpose2d.input,
        aten.conv_transpose3d.input,
        aten.convolution.default,
        aten.linear.default,
    }
)
FLATTENINGS = frozenset(
    {aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten._unsafe_view.default}
)
_TAKE_SHAPES = frozenset({aten.reshape_as.default, aten.view_as.default, aten.expand_as.default})
_UNBOUNDED = 2**62


def find_layer(norm: fx.Node) -> fx.Node | str | None:
    """The layer whose result only `norm` reads; a reason; or None where there is no layer."""
    return trace_layer(read_argument(norm, "input"))


def trace_layer(source: fx.Node) -> fx.Node | str | None:
    """The same of the value that a norm reads, or that it would read."""
    shared = _is_shared(source)
    while _passes_channels_on(source) or _joins_rows(source):
        source = source.all_input_nodes[0]
        shared = shared or _is_shared(source)
    if source.target not in LAYERS:
        return None
    if shared:
        return "the convolution's output is used elsewhere as well"
    return source


def _is_shared(node: fx.Node) -> bool:
    """Whether several operators read the values of `node`, and not its shape alone."""
    return sum(not _reads_shape(user, node) for user in node.users) > 1


def _reads_shape(user: fx.Node, node: fx.Node) -> bool:
    return user.target is aten.sym_size.int or (
        user.target in _TAKE_SHAPES and user.args[0] is not node
    )


def _passes_channels_on(node: fx.Node) -> bool:
    """Whether the norm is the same before this as behind it: nothing is done to any value."""
    if node.target in DROPOUTS:
        return not read_argument(node, "train")
    return node.target is aten.slice.Tensor and list_cut(node) is not None


def _joins_rows(node: fx.Node) -> bool:
    """Whether rows of a linear layer's features are put into one batch, and nothing else."""
    if node.target not in FLATTENINGS:
        return False
    before, after = (n.meta["val"].shape for n in (node.all_input_nodes[0], node))
    if len(after) != 2 or not all(isinstance(shape[-1], int) for shape in (before, after)):
        return False
    sizes = read_argument(node, "size") or read_argument(node, "shape") or [None]
    rows = node.target is aten.flatten.using_ints or sizes[0] == -1
    return bool(rows and before[-1] == after[-1])


def list_cut(node: fx.Node) -> tuple[int, int] | None:
    """The spatial axis of a slice, from 0, and how many positions it cuts off at both ends."""
    dim, start, end, step = (read_argument(node, name) for name in ("dim", "start", "end", "step"))
    if not all(isinstance(value, (int, type(None))) for value in (start, end, step)):
        return None
    axis = int(dim) % node.meta["val"].ndim - 2
    first, last = start or 0, 0 if end is None else end
    if first == 0 and step in (None, 1) and (end is None or end >= _UNBOUNDED):
        return 0, 0  # y[:, :, 1:] has one for each of its axes
    if axis < 0 or 0 in [size for size in node.meta["val"].shape if isinstance(size, int)]:
        return None
    return axis, max(first, 0) + max(-last, 0)
