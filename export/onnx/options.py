"""Options of operators that the ONNX exporter refuses or overlooks, said in another way."""

import math
from typing import Any

import torch
from torch import fx

from export.fusion.calls import add_call
from export.fusion.draft import Draft, read_argument

aten = torch.ops.aten

_AVERAGES = frozenset({aten.avg_pool2d.default, aten.avg_pool3d.default})
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

    One that counts its padding divides by the whole window; a factor behind it does the rest. A
    pool that rounds up divides by less at its end, and stays.
    """
    pools = [
        node
        for node in draft.graph.nodes
        if node.target in _AVERAGES
        and read_argument(node, "divisor_override")
        and not read_argument(node, "ceil_mode")
    ]
    for node in pools:
        names = ("self", "kernel_size", "stride", "padding", "ceil_mode")
        axes = node.meta["val"].ndim - 2
        kernel = read_argument(node, "kernel_size")
        whole = math.prod(kernel if len(kernel) > 1 else [*kernel] * axes)
        with draft.graph.inserting_before(node):
            pool = add_call(node, node.target, *(read_argument(node, name) for name in names), True)
            factor = whole / read_argument(node, "divisor_override")
            scaled = add_call(node, aten.mul.Tensor, pool, factor)
        draft.erase(node, scaled)
    return bool(pools)
