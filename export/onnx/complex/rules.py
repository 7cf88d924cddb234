"""What operators on complex values are for pairs: one rule each.

A rule takes the `Place` of a node and returns what stands for it: a pair where the node is complex,
else a real value; None: it has no form for these arguments.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx

from export.onnx.complex.pairs import Part, Parts, Place, is_complex

aten = torch.ops.aten

Rule = Callable[[Place], Any]

_VIEWS = (aten.view.default, aten._unsafe_view.default)
_CHOICES = {
    (True, True): aten.where.self,
    (True, False): aten.where.ScalarOther,
    (False, True): aten.where.ScalarSelf,
    (False, False): aten.where.Scalar,
}
"""By whether the first and the second value are nodes."""


def _open(at: Place) -> fx.Node:
    """``view_as_real``, and what leaves a value as it is."""
    return at.pair(at.node.args[0])  # type: ignore[arg-type]


def _close(at: Place) -> Any:
    """``view_as_complex``."""
    return at.node.args[0]


def _take(at: Place, *, part: int) -> Any:
    """``real``, ``imag``."""
    return at.parts(at.node.args[0])[part]


def _put_together(at: Place) -> Any:
    """``complex``."""
    return at.join(at.read("real"), at.read("imag"))


def _point(at: Place) -> Any:
    """``polar``."""
    length, angle = at.read("abs"), at.read("angle")
    cosine, sine = at.call(aten.cos.default, angle), at.call(aten.sin.default, angle)
    return at.join(at.multiply(length, cosine), at.multiply(length, sine))


def _measure(at: Place) -> fx.Node:
    """``abs``."""
    return at.call(aten.linalg_vector_norm.default, _open(at), 2, [-1])


def _direct(at: Place) -> fx.Node:
    """``angle``."""
    real, imaginary = at.parts(at.node.args[0])
    return at.call(aten.atan2.default, imaginary, real)


def _mirror(at: Place) -> Any:
    """``conj``."""
    real, imaginary = at.parts(at.node.args[0])
    return at.join(real, imaginary if imaginary is None else at.negate(imaginary))


def _add(at: Place, *, minus: bool) -> Any:
    first, second = at.node.args[:2]
    alpha = at.read("alpha", 1)
    (real, imaginary), others = at.parts(first), at.parts(second)
    if alpha != 1:
        others = (at.multiply(others[0], alpha), at.multiply(others[1], alpha))  # type: ignore[assignment]
    return at.join(
        at.add(real, others[0], minus=minus),
        at.add(imaginary, others[1], minus=minus),
    )


def _take_from(at: Place) -> Any:
    """``rsub``: the second value without the first."""
    if at.read("alpha", 1) != 1:
        return None
    (a, b), (c, d) = at.parts(at.node.args[0]), at.parts(at.node.args[1])
    return at.join(at.add(c, a, minus=True), at.add(d, b, minus=True))


def _multiply(at: Place) -> Any:
    return _join_products(at, *map(at.parts, at.node.args[:2]))


def _join_products(at: Place, x: Parts, y: Parts) -> Any:
    (a, b), (c, d) = x, y
    real = at.add(at.multiply(a, c), at.multiply(b, d), minus=True)
    return at.join(real, at.add(at.multiply(a, d), at.multiply(b, c)))


def _divide(at: Place) -> Any:
    x, y = at.node.args[:2]
    if isinstance(y, complex):
        return _join_products(at, at.parts(x), at.parts(1 / y))
    (a, b), (c, d) = at.parts(x), at.parts(y)
    if d is None:
        kind = aten.div.Tensor if isinstance(c, fx.Node) else aten.div.Scalar
        parts = [part if part is None else at.call(kind, part, c) for part in (a, b)]
        return at.join(*parts)
    if not (isinstance(a, fx.Node) and isinstance(c, fx.Node)):
        return None
    size = at.add(at.multiply(c, c), at.multiply(d, d))
    real = at.add(at.multiply(a, c), at.multiply(b, d))
    imaginary = at.add(at.multiply(b, c), at.multiply(a, d), minus=True)
    return at.join(*(at.call(aten.div.Tensor, part, size) for part in (real, imaginary)))


def _negate(at: Place) -> fx.Node:
    return at.call(aten.neg.default, _open(at))


def _invert(at: Place) -> Any:
    """``reciprocal``."""
    real, imaginary = at.parts(at.node.args[0])
    size = at.add(at.multiply(real, real), at.multiply(imaginary, imaginary))
    return at.join(*(at.call(aten.div.Tensor, part, size) for part in (real, at.negate(imaginary))))  # type: ignore[arg-type]


def _raise(at: Place) -> Any:
    """``exp``."""
    real, angle = at.parts(at.node.args[0])
    length = at.call(aten.exp.default, real)
    cosine, sine = at.call(aten.cos.default, angle), at.call(aten.sin.default, angle)
    return at.join(at.multiply(length, cosine), at.multiply(length, sine))


def _square(at: Place) -> Any:
    if at.read("exponent", 2) != 2:
        return None
    real, imaginary = at.parts(at.node.args[0])
    squares = at.add(at.multiply(real, real), at.multiply(imaginary, imaginary), minus=True)
    product = at.multiply(at.multiply(real, imaginary), 2)
    return at.join(squares, product)


def _reduce(at: Place) -> Any:
    """Sums and means over axes that are named, or over all."""
    axes = at.read("dim")
    if at.read("dtype") is not None:
        return None
    axes = range(at.rank) if axes is None or axes == [] else axes
    keep = at.read("keepdim", default=False)
    target = aten.mean.dim if "mean" in str(at.node.target) else aten.sum.dim_IntList
    return at.call(target, _open(at), [at.axis(axis) for axis in axes], keep)


def _combine(at: Place, product: Callable[[Part, Part], fx.Node], x: Any, y: Any) -> Any:
    """A product that is linear in each of two values."""

    def multiply(p: Part | None, q: Part | None) -> Part | None:
        return None if p is None or q is None else product(p, q)

    (a, b), (c, d) = at.parts(x), at.parts(y)
    real = at.add(multiply(a, c), multiply(b, d), minus=True)
    return at.join(real, at.add(multiply(a, d), multiply(b, c)))


def _multiply_matrices(at: Place) -> Any:
    """``matmul`` and its kin."""
    x, y = at.node.args[:2]
    return _combine(at, partial(at.call, at.node.target), x, y)  # type: ignore[arg-type]


def _sum_products(at: Place) -> Any:
    """``einsum`` of two."""
    equation, values = at.node.args[:2]
    if len(values) != 2:  # type: ignore[arg-type]
        return None
    return _combine(at, lambda p, q: at.call(aten.einsum.default, equation, [p, q]), *values)  # type: ignore[misc]


def _apply_layer(at: Place) -> Any:
    """``linear``."""
    x, weight = at.node.args[:2]
    products = _combine(at, partial(at.call, aten.linear.default), x, weight)
    bias = at.read("bias")
    return products if bias is None else at.call(aten.add.Tensor, products, at.pair(bias))


def _choose(at: Place) -> Any:
    """``where``."""
    condition, *values = at.node.args[:3]
    if not all(isinstance(value, fx.Node) and is_complex(value) for value in values):
        return _choose_parts(at, condition, *values)
    condition = at.call(aten.unsqueeze.default, condition, -1)
    return at.call(aten.where.self, condition, *map(at.pair, values))  # type: ignore[arg-type]


def _choose_parts(at: Place, condition: Any, x: Any, y: Any) -> Any:
    """`x` where the condition holds, else `y`, one of which is real or a number."""
    parts = []
    for pair in zip(at.parts(x), at.parts(y), strict=True):
        p, q = (0.0 if part is None else part for part in pair)
        kind = _CHOICES[isinstance(p, fx.Node), isinstance(q, fx.Node)]
        parts.append(at.call(kind, condition, p, q))
    return at.join(*parts)


def _hide(at: Place) -> Any:
    """``masked_fill``."""
    value, mask, filling = at.node.args[:3]
    return _choose_parts(at, mask, filling, value)


def _fill(at: Place) -> Any:
    """``zeros`` and its kin."""
    size = at.node.args[1] if "new" in str(at.node.target) else at.node.args[0]
    made = at.call(aten.full.default, [*size, 2], 0.0)  # type: ignore[misc]
    kind = at.node.meta["val"].dtype.to_real()
    return made if made.meta["val"].dtype == kind else at.call(aten.to.dtype, made, kind)


def _fill_like(at: Place) -> fx.Node:
    return at.call(aten.zeros_like.default, _open(at))


def _fill_with(at: Place) -> Any:
    """``fill``, ``full_like``: one value everywhere."""
    like = at.call(aten.select.int, _open(at), -1, 0)
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
    return at.call(aten.permute.default, _open(at), [*axes, at.rank])


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
    return at.call(at.node.target, _open(at), *rest)  # type: ignore[arg-type]


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
        return pair if alike else at.call(aten.expand_as.default, pair, _open(at))
    return at.join(real, imaginary)


def _pad(at: Place) -> Any:
    """``pad`` with zeros or one real number."""
    if at.read("mode", "constant") != "constant" or is_complex(at.read("value")):
        return None
    value = at.read("value") or 0
    if value:
        return None  # the imaginary parts would get it too
    return at.call(aten.constant_pad_nd.default, _open(at), [0, 0, *at.read("pad")], 0)


def _index(at: Place) -> Any:
    return at.call(aten.index.Tensor, _open(at), at.read("indices"))


def _pass_on(at: Place) -> Any:
    """``dropout``, which drops nothing in inference."""
    return None if at.read("train") else _open(at)


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
    **dict.fromkeys(_SAME, _open),
    aten.dropout.default: _pass_on,
    aten.view_as_complex.default: _close,
    aten.real.default: partial(_take, part=0),
    aten.imag.default: partial(_take, part=1),
    aten.complex.default: _put_together,
    aten.polar.default: _point,
    aten.abs.default: _measure,
    aten.angle.default: _direct,
    aten._conj.default: _mirror,
    aten.conj.default: _mirror,
    aten.conj_physical.default: _mirror,
    aten._conj_physical.default: _mirror,
    aten.add.Tensor: partial(_add, minus=False),
    aten.add.Scalar: partial(_add, minus=False),
    aten.sub.Tensor: partial(_add, minus=True),
    aten.sub.Scalar: partial(_add, minus=True),
    aten.rsub.Scalar: _take_from,
    aten.rsub.Tensor: _take_from,
    aten.mul.Tensor: _multiply,
    aten.mul.Scalar: _multiply,
    aten.div.Tensor: _divide,
    aten.div.Scalar: _divide,
    aten.neg.default: _negate,
    aten.exp.default: _raise,
    aten.square.default: _square,
    aten.pow.Tensor_Scalar: _square,
    aten.sum.default: _reduce,
    aten.sum.dim_IntList: _reduce,
    aten.mean.default: _reduce,
    aten.mean.dim: _reduce,
    aten.matmul.default: _multiply_matrices,
    aten.mm.default: _multiply_matrices,
    aten.bmm.default: _multiply_matrices,
    aten.einsum.default: _sum_products,
    aten.where.self: _choose,
    aten.where.ScalarOther: _choose,
    aten.where.ScalarSelf: _choose,
    aten.masked_fill.Scalar: _hide,
    aten.masked_fill.Tensor: _hide,
    aten.linear.default: _apply_layer,
    aten.reciprocal.default: _invert,
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
}
"""By operator; those that are not here are left to the exporter."""
