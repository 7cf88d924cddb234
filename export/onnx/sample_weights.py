"""Convolutions with weights of each sample's own as products of matrices.

A network that makes weights from its input lays the samples side by side as channels and convolves
them in as many groups, ``conv2d(x.view(1, n * c, h, w), weights, groups=n)``. In an ONNX file the
number of groups is a constant, and with it the batch.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, fx, ops

from export.fusion.calls import add_call
from export.fusion.draft import Draft, read_argument

aten = ops.aten

_AXES: dict[Any, int] = {
    aten.conv1d.default: 1,
    aten.conv1d.padding: 1,
    aten.conv2d.default: 2,
    aten.conv2d.padding: 2,
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
}
_TRANSPOSED = frozenset({aten.conv_transpose1d.default, aten.conv_transpose2d.input})

_Call = Callable[..., fx.Node]


def write_out_sample_weights(draft: Draft) -> bool:
    """Whether there was a convolution in an open number of groups."""
    found = [node for node in draft.graph.nodes if _has_open_groups(node)]
    for node in found:
        with draft.graph.inserting_before(node):
            draft.erase(node, _write_out(node))
    return bool(found)


def _has_open_groups(node: fx.Node) -> bool:
    if node.target not in _AXES or not isinstance(read_argument(node, "groups"), fx.Node):
        return False
    value, weight = _value(node, "input"), _value(node, "weight")
    sizes = (*value.shape[2:], *node.meta["val"].shape[2:], *weight.shape[1:], _count_rows(node))
    alone = value.ndim == _AXES[node.target] + 2 and value.shape[0] == 1
    return alone and all(isinstance(size, int) for size in sizes)


def _write_out(node: fx.Node) -> fx.Node:
    """Of ``[1, groups channels, ...]`` what each group's weights make of it."""
    call: _Call = partial(add_call, node)
    value = call(aten.squeeze.dim, read_argument(node, "input"), 0)
    value = (_spread if node.target in _TRANSPOSED else _convolve)(node, call, value)
    value = call(aten.flatten.using_ints, value, 0, 1)
    value = call(aten.unflatten.int, value, -1, list(node.meta["val"].shape[2:]))
    bias = read_argument(node, "bias")
    if bias is not None:
        for _ in range(_AXES[node.target]):
            bias = call(aten.unsqueeze.default, bias, -1)
        value = call(aten.add.Tensor, value, bias)
    return call(aten.unsqueeze.default, value, 0)


def _convolve(node: fx.Node, call: _Call, value: fx.Node) -> fx.Node:
    """The matrix of each group, ``[rows, inputs kernel]``, times the columns of its values."""
    inputs, *kernel = _value(node, "weight").shape[1:]
    value = call(aten.unflatten.int, value, 0, [-1, inputs])
    weight = call(aten.unflatten.int, read_argument(node, "weight"), 0, [-1, _count_rows(node)])
    windows = [call(aten.flatten.using_ints, part, 2) for part in _shift(node, call, value, kernel)]
    if inputs == _count_rows(node) == 1:
        return _weigh(call, call(aten.flatten.using_ints, weight, 2), windows)
    columns = windows[0]
    if len(windows) > 1:
        columns = call(aten.cat.default, windows, 1)  # by place in the kernel, then by channel
        axes = [0, 1, *range(3, 3 + len(kernel)), 2]
        weight = call(aten.permute.default, weight, axes)
    return call(aten.bmm.default, call(aten.flatten.using_ints, weight, 2), columns)


def _weigh(call: _Call, weight: fx.Node, windows: list[fx.Node]) -> fx.Node:
    """The sum of `windows`, each times its share of ``[groups, 1, kernel]``."""
    total: fx.Node | None = None
    for place, window in enumerate(windows):
        share = call(aten.slice.Tensor, weight, 2, place, place + 1)
        part = call(aten.mul.Tensor, window, share)
        total = call(aten.add.Tensor, total, part) if total else part
    assert total is not None  # a kernel has a value at least
    return total


def _shift(node: fx.Node, call: _Call, value: fx.Node, kernel: list[int]) -> list[fx.Node]:
    """For each place in the kernel the values that it meets, ``[groups, inputs, ...]``."""
    dilation, stride = _list_steps(node, "dilation"), _list_steps(node, "stride")
    sides = _list_sides(node, kernel, dilation)
    if any(map(any, sides)):
        widths = [width for side in reversed(sides) for width in side]
        value = call(aten.constant_pad_nd.default, value, widths)
    met = []
    for place in itertools.product(*map(range, kernel)):
        part = value
        for axis, (offset, spread, step, size) in enumerate(
            zip(place, dilation, stride, node.meta["val"].shape[2:], strict=True), 2
        ):
            start, end = offset * spread, offset * spread + (size - 1) * step + 1
            if (start, end, step) != (0, part.meta["val"].shape[axis], 1):
                part = call(aten.slice.Tensor, part, axis, start, end, step)
        met.append(part)
    return met


def _spread(node: fx.Node, call: _Call, value: fx.Node) -> fx.Node:
    """The way back: columns from the matrix of each group, summed where they lie."""
    axes, rows = _AXES[node.target], _count_rows(node)
    kernel = _value(node, "weight").shape[2:]
    weight = call(aten.flatten.using_ints, read_argument(node, "weight"), 1)
    weight = call(aten.unflatten.int, weight, 0, [-1, rows])
    value = call(aten.flatten.using_ints, value, 1)
    value = call(aten.unflatten.int, value, 0, [-1, rows])
    columns = call(aten.bmm.default, call(aten.transpose.int, weight, 1, 2), value)
    names = ("dilation", "padding", "stride", "output_padding")
    dilation, padding, stride, more = (_list_steps(node, name) for name in names)
    size = [*node.meta["val"].shape[2:]]
    # of values behind the last column there may be fewer than a step; a dilation allows for more
    behind = [added // step * step for added, step in zip(more, stride, strict=True)]
    cuts = padding if any(behind) else [0] * axes  # some of what is cut off may lie there
    padding = [n - cut for n, cut in zip(padding, cuts, strict=True)]
    whole = [n + 2 * cut - end for n, cut, end in zip(size, cuts, behind, strict=True)]
    one, none = [1] * (2 - axes), [0] * (2 - axes)
    sizes = [*one, *whole], [*one, *kernel]
    steps = [*one, *dilation], [*none, *padding], [*one, *stride]
    made = call(aten.col2im.default, columns, *sizes, *steps)
    if any(behind):
        widths = [width for end in reversed(behind) for width in (0, end)]
        made = call(aten.constant_pad_nd.default, made, widths)
        for axis, (cut, n) in enumerate(zip(cuts, size, strict=True), -axes):
            made = call(aten.slice.Tensor, made, axis, cut, cut + n)
    return call(aten.flatten.using_ints, made, 2)


def _list_steps(node: fx.Node, name: str) -> list[int]:
    """Of each axis what the argument `name` says: dilation, stride or another."""
    numbers = read_argument(node, name)
    return [*numbers] * _AXES[node.target] if len(numbers) == 1 else [*numbers]


def _list_sides(node: fx.Node, kernel: list[int], dilation: list[int]) -> list[tuple[int, int]]:
    """Zeros before and behind each axis; of an odd number for a size that stays, more behind."""
    padding = read_argument(node, "padding")
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        widths = [(n - 1) * spread for n, spread in zip(kernel, dilation, strict=True)]
        return [(width // 2, width - width // 2) for width in widths]
    return [(width, width) for width in _list_steps(node, "padding")]


def _count_rows(node: fx.Node) -> int | None:
    """Rows of the weight for a group: channels that it makes, or, transposed, that it takes."""
    rows = _value(node, "weight").shape[0] // read_argument(node, "groups").meta["val"]
    return rows if isinstance(rows, int) else rows.node.maybe_as_int()


def _value(node: fx.Node, name: str) -> Tensor:
    value: Tensor = read_argument(node, name).meta["val"]
    return value
