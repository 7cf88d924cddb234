"""Options of operators that the ONNX exporter refuses or overlooks, said in another way."""

import math
from typing import Any

import torch
from torch import fx

from export.fusion.calls import add_call
from export.fusion.draft import Draft, read_argument

aten = torch.ops.aten

_AVERAGES = {aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
"""With a divisor of their own, and over how many axes."""
_FIXED_SLOPES: dict[Any, Any] = {
    aten.rrelu.default: aten.leaky_relu.default,
    aten.rrelu_.default: aten.leaky_relu_.default,
}
_CLAMPS = frozenset(
    {aten.clamp.default, aten.clamp_.default, aten.clip.default, aten.clip_.default}
)


def settle_options(draft: Draft) -> bool:
    """Whether there was a clamp, a random slope or an average pool to be said in another way."""
    done = [_make_bounds_alike(draft), _fix_slopes(draft), _divide_by_override(draft)]
    return any(done)


def _fix_slopes(draft: Draft) -> bool:
    """Whether there was a leaky ReLU of a random slope, which in inference has the mean slope."""
    random = [
        node
        for node in draft.graph.nodes
        if node.target in _FIXED_SLOPES and not read_argument(node, "training")
    ]
    for node in random:
        slope = (read_argument(node, "lower") + read_argument(node, "upper")) / 2
        with draft.graph.inserting_before(node):
            leaky = add_call(node, _FIXED_SLOPES[node.target], read_argument(node, "self"), slope)
        draft.erase(node, leaky)
    return bool(random)


def _make_bounds_alike(draft: Draft) -> bool:
    """Whether a clamp had an integer for one bound and a float for the other: both become floats.

    The exporter finds no form of the operator for two kinds of numbers.
    """
    mixed = [node for node in draft.graph.nodes if _has_mixed_bounds(node)]
    for node in mixed:
        value, *bounds = (read_argument(node, name) for name in ("self", "min", "max"))
        node.args, node.kwargs = (value, *(float(bound) for bound in bounds)), {}
    return bool(mixed)


def _has_mixed_bounds(node: fx.Node) -> bool:
    if node.target not in _CLAMPS:
        return False
    return {type(read_argument(node, name)) for name in ("min", "max")} == {int, float}


def _divide_by_override(draft: Draft) -> bool:
    """Whether there was an average pool with a divisor of its own, which the exporter leaves out.

    One that counts its padding divides by the whole window; a factor behind it does the rest. Where
    a pool rounds up, zeros stand behind the values that its last windows reach beyond; one of open
    sizes stays.
    """
    pools = [node for node in draft.graph.nodes if _divides_otherwise(node)]
    for node in pools:
        axes = _AVERAGES[node.target]
        kernel, stride, padding = (
            _for_each_axis(read_argument(node, name), axes)
            for name in ("kernel_size", "stride", "padding")
        )
        value = read_argument(node, "self")
        with draft.graph.inserting_before(node):
            if read_argument(node, "ceil_mode"):
                value = _reach_beyond(node, value, kernel, stride or kernel, padding)
                padding = [0] * axes
            pool = add_call(node, node.target, value, kernel, stride, padding, False, True)
            if read_argument(node, "ceil_mode"):
                pool = _cut_to(node, pool, axes)
            factor = math.prod(kernel) / read_argument(node, "divisor_override")
            scaled = add_call(node, aten.mul.Tensor, pool, factor)
        draft.erase(node, scaled)
    return bool(pools)


def _divides_otherwise(node: fx.Node) -> bool:
    if node.target not in _AVERAGES or not read_argument(node, "divisor_override"):
        return False
    known = all(isinstance(size, int) for size in node.meta["val"].shape[-_AVERAGES[node.target] :])
    return known or not read_argument(node, "ceil_mode")


def _for_each_axis(numbers: list[int], axes: int) -> list[int]:
    return [*numbers] * axes if len(numbers) == 1 else [*numbers]


def _reach_beyond(
    node: fx.Node, value: fx.Node, kernel: list[int], stride: list[int], padding: list[int]
) -> fx.Node:
    """`value` with the zeros of its padding around it, and those that the last windows reach."""
    sides: list[int] = []
    for ahead, step in zip(reversed(padding), reversed(stride), strict=True):
        sides += [ahead, ahead + step - 1]
    return add_call(node, aten.constant_pad_nd.default, value, sides)


def _cut_to(node: fx.Node, pool: fx.Node, axes: int) -> fx.Node:
    """`pool` without windows that begin beyond the values, which `node` has not."""
    for axis in range(-axes, 0):
        pool = add_call(node, aten.slice.Tensor, pool, axis, 0, node.meta["val"].shape[axis])
    return pool
