"""Sums, scales and signs as linear maps, and what leaves a value as it is."""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import fx

from export.fusion.algebra import LinearMap, add_maps, scale_outputs
from export.fusion.draft import read_argument
from export.fusion.mutation import DROPOUTS
from export.fusion.operators.base import (
    Frame,
    Operator,
    Reader,
    Survey,
    is_constant,
    is_value,
    name_operator,
    need_same_shape,
    pass_on,
    read_channelwise,
    tabulate,
)

aten = torch.ops.aten

_SUMS = (
    *(aten.add.Tensor, aten.add_.Tensor, aten.add.Scalar, aten.add_.Scalar),
    *(aten.sub.Tensor, aten.sub_.Tensor, aten.sub.Scalar, aten.sub_.Scalar),
    *(aten.rsub.Tensor, aten.rsub.Scalar),
)
_PRODUCTS = (
    *(aten.mul.Tensor, aten.mul_.Tensor, aten.mul.Scalar, aten.mul_.Scalar),
    *(aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar, aten.div_.Scalar),
)
REDUCTIONS = (aten.sum.dim_IntList, aten.mean.dim)
_WITHOUT_EFFECT = (
    *DROPOUTS,
    *(aten.contiguous.default, aten.clone.default, aten.alias.default),
    *(aten.to.dtype, aten._to_copy.default),
)


def read_sum(survey: Survey, node: fx.Node) -> Operator | str:
    """``add``, ``sub`` and ``rsub`` of two values, or of a value and a constant."""
    left, right = (read_argument(node, name) for name in ("self", "other"))
    alpha = read_argument(node, "alpha", 1)
    if isinstance(alpha, fx.Node):
        return "a part of a sum is scaled by a size"
    alpha = float(alpha)
    sign = -alpha if "sub" in name_operator(node) else alpha
    if node.target in (aten.rsub.Tensor, aten.rsub.Scalar):
        left, right = right, left
    operator = "-" if sign < 0 else "+"
    if is_value(survey, left) and is_value(survey, right):
        if (reason := need_same_shape(node, left, right)) is not None:
            return reason
        return Operator(
            (left, right),
            lambda maps, _: add_maps(maps[0], maps[1], sign),
            f"{{}} {operator} {{}}",
        )
    value, constant = (left, right) if is_value(survey, left) else (right, left)
    if not is_constant(survey, constant):
        return "a size is added"
    if (reason := need_same_shape(node, value)) is not None:
        return reason

    def apply(maps: Sequence[LinearMap], frame: Frame) -> LinearMap:
        shift = read_channelwise(survey, constant, value, frame)
        if value is left:
            return scale_outputs(maps[0], 1.0, shift * sign)
        return scale_outputs(maps[0], sign, shift)

    return Operator((value,), apply, f"{{}} {operator} bias")


def read_product(survey: Survey, node: fx.Node) -> Operator | str:
    """``mul`` and ``div`` by a constant."""
    left, right = (read_argument(node, name) for name in ("self", "other"))
    divides = name_operator(node) == "div"
    if is_value(survey, left) and is_value(survey, right):
        return "a scale is computed from the data"
    value, constant = (left, right) if is_value(survey, left) else (right, left)
    if not is_constant(survey, constant):
        return "a scale is computed from a size"
    if divides and (value is right or read_argument(node, "rounding_mode", None) is not None):
        return f"a non-linearity ({name_operator(node)}) stands between"
    if (reason := need_same_shape(node, value)) is not None:
        return reason

    def apply(maps: Sequence[LinearMap], frame: Frame) -> LinearMap:
        scale = read_channelwise(survey, constant, value, frame)
        return scale_outputs(maps[0], 1 / scale if divides else scale, None)

    return Operator((value,), apply, "scale({})")


def is_stacked_sum(node: fx.Node) -> bool:
    """Whether it is a sum or mean of values that were stacked for it, and of nothing else."""
    if node.target not in REDUCTIONS:
        return False
    stack: fx.Node = read_argument(node, "self")
    if stack.target is not aten.stack.default or read_argument(node, "keepdim", default=False):
        return False
    rank = stack.meta["val"].ndim
    over = {axis % rank for axis in read_argument(node, "dim") or range(rank)}
    return over == {read_argument(stack, "dim", 0) % rank}


def read_stacked_sum(survey: Survey, node: fx.Node) -> Operator | str:
    """``sum`` and ``mean`` over the axis on which values were stacked."""
    if not is_stacked_sum(node):
        return f"a sum over positions ({name_operator(node)}) stands between"
    stack = read_argument(node, "self")
    parts = read_argument(stack, "tensors")
    if not all(is_value(survey, part) for part in parts):
        return "a constant is stacked"
    if {part.meta["val"].dtype for part in parts} != {node.meta["val"].dtype}:
        return "the number format changes between"
    if survey.mutations.is_stale(stack):
        return "a value is changed in place while something still reads it"
    share = 1 / len(parts) if name_operator(node) == "mean" else 1.0

    def apply(maps: Sequence[LinearMap], frame: Frame) -> LinearMap:
        total = reduce(lambda one, other: add_maps(one, other, 1.0), maps)
        return scale_outputs(total, share, None)

    label = f"{name_operator(node)}({', '.join(['{}'] * len(parts))})"
    return Operator(tuple(parts), apply, label, companions=(stack,))


def read_negation(survey: Survey, node: fx.Node) -> Operator | str:
    """``neg``."""
    source = read_argument(node, "self")
    return Operator((source,), lambda maps, _: scale_outputs(maps[0], -1.0, None), "-{}")


def read_identity(survey: Survey, node: fx.Node) -> Operator | str:
    """Dropout in inference, copies, and casts to the format that the value has."""
    if read_argument(node, "train", False):
        return f"{name_operator(node)} is in training mode"
    return pass_on(read_argument(node, "input") or read_argument(node, "self"))


READERS: dict[object, Reader] = {
    **tabulate(read_sum, *_SUMS),
    **tabulate(read_product, *_PRODUCTS),
    **tabulate(read_stacked_sum, *REDUCTIONS),
    **tabulate(read_negation, aten.neg.default, aten.neg_.default),
    **tabulate(read_identity, *_WITHOUT_EFFECT),
}
