"""Complex values made, cut, joined and laid out anew, as pairs with an axis more."""

import operator
from functools import partial
from typing import Any

import torch
from torch import fx

from export.onnx.complex.pairs import Place, Rule, is_complex

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten._unsafe_view.default)


def _close(at: Place) -> Any:
    """``view_as_complex``."""
    return at.node.args[0]


def _fill(at: Place) -> Any:
    """``zeros`` and its kin."""
    size = at.node.args[1] if "new" in str(at.node.target) else at.node.args[0]
    made = at.call(aten.full.default, [*size, 2], 0.0)  # type: ignore[misc]
    kind = at.node.meta["val"].dtype.to_real()
    return made if made.meta["val"].dtype == kind else at.call(aten.to.dtype, made, kind)


def _fill_like(at: Place) -> fx.Node:
    return at.call(aten.zeros_like.default, at.first())


def _fill_with(at: Place) -> Any:
    """``fill``, ``full_like``: one value everywhere."""
    like = at.call(aten.select.int, at.first(), -1, 0)
    parts = at.parts(at.node.args[1])
    return at.join(*(at.spread(part, like) for part in parts))


def _with_sizes(at: Place, *, more: int) -> fx.Node:
    """What has a list of sizes for all axes: `more` is the last one's.

    A view becomes a change of shape, since parts do not lie as the values did.
    """
    value, sizes = at.node.args[:2]
    target = aten.reshape.default if at.node.target in _VIEWS else at.node.target
    return at.call(target, at.pair(value), [*sizes, more])  # type: ignore[arg-type,misc]


def _permute(at: Place) -> fx.Node:
    axes = [at.axis(axis) for axis in at.read("dims")]
    return at.call(aten.permute.default, at.first(), [*axes, at.rank])


def _along(at: Place, *names: str, grown: bool = False) -> Any:
    """What has numbers of axes under `names`; where `grown`, of those that it makes."""
    rank = at.rank + grown
    schema = at.node.target._schema.arguments[1:]  # type: ignore[union-attr]
    rest = []
    for argument in schema:
        if argument.kwarg_only:
            continue
        given = at.read(argument.name)
        if argument.name in names:
            axes = given if isinstance(given, list | tuple) else [given]
            axes = [at.axis(axis, rank) for axis in axes]
            given = axes if isinstance(given, list | tuple) else axes[0]
        rest.append(given)
    return at.call(at.node.target, at.first(), *rest)  # type: ignore[arg-type]


def _join_along(at: Place, *, grown: bool) -> Any:
    """``cat``, ``stack``."""
    values = at.node.args[0]
    if not all(is_complex(value) for value in values):  # type: ignore[union-attr]
        return None
    first: Any = values[0]  # type: ignore[index]
    axis = at.axis(at.read("dim", 0), first.meta["val"].ndim + grown)
    return at.call(at.node.target, [at.pair(value) for value in values], axis)  # type: ignore[arg-type,union-attr]


def _put_into(at: Place, *, count: int) -> Any:
    """``slice_scatter``, ``select_scatter``."""
    into, values = at.node.args[:2]
    if not (is_complex(into) and is_complex(values)):
        return None
    axis, *rest = at.node.args[2:]
    rest = [*rest, *[None, None, 1][len(rest) :]] if count == 3 else rest
    return at.call(at.node.target, at.pair(into), at.pair(values), at.axis(axis), *rest)  # type: ignore[arg-type]


def _copy(at: Place) -> Any:
    """``copy``: the second value in the shape of the first."""
    source = at.node.args[1]
    real, imaginary = at.parts(source)
    if isinstance(source, fx.Node) and is_complex(source):
        pair = at.pair(source)
        alike = str(source.meta["val"].shape) == str(at.node.meta["val"].shape)
        return pair if alike else at.call(aten.expand_as.default, pair, at.first())
    return at.join(real, imaginary)


def _pad(at: Place) -> Any:
    """``pad`` with zeros or one real number."""
    if at.read("mode", "constant") != "constant" or is_complex(at.read("value")):
        return None
    value = at.read("value") or 0
    if value:
        return None  # the imaginary parts would get it too
    return at.call(aten.constant_pad_nd.default, at.first(), [0, 0, *at.read("pad")], 0)


def _index(at: Place) -> Any:
    return at.call(aten.index.Tensor, at.first(), at.read("indices"))


def _gather(at: Place) -> fx.Node:
    """``gather``: both parts from the same places."""
    places = at.call(aten.unsqueeze.default, at.read("index"), -1)
    places = at.call(aten.expand.default, places, [*([-1] * at.rank), 2])
    return at.call(aten.gather.default, at.first(), at.axis(at.read("dim")), places)


def _pass_on(at: Place) -> Any:
    """``dropout``, which drops nothing in inference."""
    return None if at.read("train") else at.first()


def _pick(at: Place) -> Any:
    """One of a list."""
    pairs = at.pairs.find(at.node, at.node.args[0])  # type: ignore[arg-type]
    return at.call(operator.getitem, pairs, at.node.args[1])


_SAME = (
    *(aten.view_as_real.default, aten.clone.default, aten.contiguous.default, aten.alias.default),
    *(aten.detach.default, aten.resolve_conj.default, aten.resolve_neg.default),
    aten.lift_fresh_copy.default,
)

RULES: dict[Any, Rule] = {
    **dict.fromkeys(_SAME, Place.first),
    aten.dropout.default: _pass_on,
    aten.view_as_complex.default: _close,
    aten.zeros.default: _fill,
    aten.new_zeros.default: _fill,
    aten.zeros_like.default: _fill_like,
    aten.fill.Scalar: _fill_with,
    aten.fill.Tensor: _fill_with,
    aten.full_like.default: _fill_with,
    aten.view.default: partial(_with_sizes, more=2),
    aten.reshape.default: partial(_with_sizes, more=2),
    aten._unsafe_view.default: partial(_with_sizes, more=2),
    aten.expand.default: partial(_with_sizes, more=-1),
    aten.repeat.default: partial(_with_sizes, more=1),
    aten.permute.default: _permute,
    aten.transpose.int: lambda at: _along(at, "dim0", "dim1"),
    aten.unsqueeze.default: lambda at: _along(at, "dim", grown=True),
    aten.squeeze.dim: lambda at: _along(at, "dim"),
    aten.squeeze.dims: lambda at: _along(at, "dim"),
    aten.slice.Tensor: lambda at: _along(at, "dim"),
    aten.select.int: lambda at: _along(at, "dim"),
    aten.index_select.default: lambda at: _along(at, "dim"),
    aten.cumsum.default: lambda at: None if at.read("dtype") else _along(at, "dim"),
    aten.flatten.using_ints: lambda at: _along(at, "start_dim", "end_dim"),
    aten.unflatten.int: lambda at: _along(at, "dim"),
    aten.flip.default: lambda at: _along(at, "dims"),
    aten.roll.default: lambda at: _along(at, "dims") if at.read("dims") else None,
    aten.split.Tensor: lambda at: _along(at, "dim"),
    aten.split_with_sizes.default: lambda at: _along(at, "dim"),
    aten.chunk.default: lambda at: _along(at, "dim"),
    aten.unbind.int: lambda at: _along(at, "dim"),
    operator.getitem: _pick,
    aten.cat.default: partial(_join_along, grown=False),
    aten.stack.default: partial(_join_along, grown=True),
    aten.slice_scatter.default: partial(_put_into, count=3),
    aten.select_scatter.default: partial(_put_into, count=1),
    aten.copy.default: _copy,
    aten.constant_pad_nd.default: _pad,
    aten.pad.default: _pad,
    aten.index.Tensor: _index,
    aten.gather.default: _gather,
}
