"""Arithmetic of complex values, as that of the parts of pairs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import fx

from export.onnx.complex.pairs import Part, Place, Rule, is_complex
from export.onnx.composed.pairs import find_angle

aten = torch.ops.aten

_CHOICES = {
    (True, True): aten.where.self,
    (True, False): aten.where.ScalarOther,
    (False, True): aten.where.ScalarSelf,
    (False, False): aten.where.Scalar,
}
"""By whether the first and the second value are nodes."""


def _take(at: Place, *, part: int) -> Any:
    """``real``, ``imag``."""
    return at.parts(at.node.args[0])[part]


def _put_together(at: Place) -> Any:
    """``complex``."""
    return at.join(at.read("real"), at.read("imag"))


def _point(at: Place) -> Any:
    """``polar``."""
    return _point_to(at, at.read("abs"), at.read("angle"))


def _point_to(at: Place, length: Any, angle: Any) -> Any:
    cosine, sine = at.call(aten.cos.default, angle), at.call(aten.sin.default, angle)
    return at.join(at.multiply(length, cosine), at.multiply(length, sine))


def _measure(at: Place) -> fx.Node:
    """``abs``."""
    return at.call(aten.linalg_vector_norm.default, at.first(), 2, [-1])


def _direct(at: Place) -> fx.Node:
    """``angle``."""
    real, imaginary = at.parts(at.node.args[0])
    angle: fx.Node = find_angle(at.call, imaginary, real)
    return angle


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
    return _combine(at, at.multiply, *at.node.args[:2])


def _divide(at: Place) -> Any:
    x, y = at.node.args[:2]
    if isinstance(y, complex):
        return _combine(at, at.multiply, x, 1 / y)
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
    return at.call(aten.neg.default, at.first())


def _invert(at: Place) -> Any:
    """``reciprocal``."""
    real, imaginary = at.parts(at.node.args[0])
    size = at.add(at.multiply(real, real), at.multiply(imaginary, imaginary))
    return at.join(*(at.call(aten.div.Tensor, part, size) for part in (real, at.negate(imaginary))))  # type: ignore[arg-type]


def _raise(at: Place) -> Any:
    """``exp``."""
    real, angle = at.parts(at.node.args[0])
    return _point_to(at, at.call(aten.exp.default, real), angle)


def _log(at: Place) -> Any:
    """``log``."""
    return at.join(at.call(aten.log.default, _measure(at)), _direct(at))


def _extract_root(at: Place) -> Any:
    """``sqrt``, the root to the right of 0."""
    return _point_to(at, at.call(aten.sqrt.default, _measure(at)), at.multiply(_direct(at), 0.5))


def _raise_to(at: Place) -> Any:
    """``pow`` with a real exponent."""
    exponent = at.read("exponent")
    if isinstance(exponent, complex):
        return None
    if exponent == 2:
        return _square(at)
    length = at.call(aten.pow.Tensor_Scalar, _measure(at), exponent)
    return _point_to(at, length, at.multiply(_direct(at), exponent))


def _square(at: Place) -> Any:
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
    return at.call(target, at.first(), [at.axis(axis) for axis in axes], keep)


def _combine(at: Place, product: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
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


RULES: dict[Any, Rule] = {
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
    aten.pow.Tensor_Scalar: _raise_to,
    aten.log.default: _log,
    aten.sqrt.default: _extract_root,
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
}
