"""The layers of a captured program: shapes, parameters, MACs and receptive fields.

The receptive field of an output is how far apart the input positions are that it can depend on: it
grows by ``(kernel - 1) * dilation * jump`` with each layer, and the jump, the distance between
neighbouring positions, by the stride. What makes a map larger makes the jump smaller, and grows the
field by the positions, but for one, that one of its outputs is computed from. Where branches meet,
the largest counts. What mixes all positions (attention, a global pool, a flattened map) sees
everything.

Source: Araujo et al., "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from export.fusion.constants import Constants
from export.fusion.cost import (
    count_macs,
    count_parameters,
    is_layer,
    is_recurrent,
    read_sample_shape,
)
from export.fusion.draft import Draft, read_argument
from export.fusion.evaluation import hint
from export.fusion.mutation import Mutations
from export.fusion.norms import NORMS
from export.fusion.operators import describe_layer
from export.fusion.paths import find_path

aten = torch.ops.aten

_POOLS = {
    target: rank
    for rank, targets in {
        1: (aten.max_pool1d.default, aten.avg_pool1d.default),
        2: (aten.max_pool2d.default, aten.avg_pool2d.default),
        3: (aten.max_pool3d.default, aten.avg_pool3d.default),
    }.items()
    for target in targets
}
_TAPS = {
    **{f"upsample_nearest{rank}d": 1 for rank in (1, 2, 3)},
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), 2),
    "upsample_bicubic2d": 4,
    "pixel_shuffle": 1,
}
"""Positions along an axis that one output of a resize is computed from."""
_EVERYTHING = frozenset(
    {
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "flatten"),
        *("scaled_dot_product_attention", "matmul", "bmm", "group_norm", "instance_norm", "mean"),
        *("sum", "amax", "view", "reshape", "layer_norm", "lstm", "gru"),
    }
)


_STEPS = ("stride", "dilation")


@dataclass(frozen=True)
class LayerRow:
    """One layer or norm; a recurrent network of several layers is one.

    Attributes:
        path: the user's module.
        operator: in a word, such as ``conv3x3 depthwise``.
        output: shape for one sample.
        parameters: stored numbers that it reads, or that what it reads is computed from, as with
            weight norm.
        macs: for one sample.
        receptive_field: positions an axis, empty without axes; None where it sees everything.
    """

    path: str
    operator: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: tuple[int, ...] | None


@dataclass(frozen=True)
class _Field:
    """Extent and jump on each spatial axis; `extent` None: everything."""

    extent: tuple[Fraction, ...] | None
    jump: tuple[Fraction, ...]

    def count(self) -> tuple[int, ...] | None:
        """Whole positions on each axis."""
        return None if self.extent is None else tuple(map(math.ceil, self.extent))


def list_layers(program: ExportedProgram) -> tuple[LayerRow, ...]:
    """Every layer and norm of `program`, in the order of the graph."""
    draft = Draft(program)
    fields = _trace_fields(draft)
    constants = Constants(draft, Mutations(draft.graph))
    rows = []
    for node in draft.graph.nodes:
        if not is_layer(node) and not is_recurrent(node) and node.target not in NORMS:
            continue
        computed = {
            step
            for source in node.all_input_nodes
            if source in constants
            for step in constants.computed(source)
        }
        parts = _count_parts(constants, node)
        rows.append(
            LayerRow(
                path=find_path(draft, node),
                operator=_describe(node),
                output=read_sample_shape(node),
                parameters=count_parameters(draft, {node, *computed}) + parts,
                macs=count_macs(node),
                receptive_field=fields[node].count() if node in fields else None,
            )
        )
    return tuple(rows)


def _count_parts(constants: Constants, node: fx.Node) -> int:
    """Elements of the parts of stored tensors that `node` reads.

    So attention to a memory has the weights of its queries and of its keys and values.
    """
    parts = [source for source in node.all_input_nodes if source.target is operator.getitem]
    stored = [part for part in parts if _cuts(constants, part.args[0])]
    return sum(int(part.meta["val"].numel()) for part in stored)


def _cuts(constants: Constants, node: object) -> bool:
    """Whether `node` makes several tensors of stored ones alone."""
    return isinstance(node, fx.Node) and all(s in constants for s in node.all_input_nodes)


def _describe(node: fx.Node) -> str:
    if node.target in NORMS:
        return "batch norm"
    schema: Any = node.target
    name = str(schema._schema.name).rpartition("::")[2]
    return describe_layer(node) if "conv" in name or name == "linear" else name


def _trace_fields(draft: Draft) -> dict[fx.Node, _Field]:
    """The receptive field of every value that depends on an input with spatial axes."""
    fields: dict[fx.Node, _Field] = {}
    for node in draft.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and draft.stored(node) is None and isinstance(value, Tensor):
            rank = max(0, value.ndim - 2)
            fields[node] = _Field((Fraction(1),) * rank, (Fraction(1),) * rank)
        known = [fields[source] for source in node.all_input_nodes if source in fields]
        if node.op == "call_function" and known:
            fields[node] = _grow(node, _join(known))
    return fields


def _join(fields: list[_Field]) -> _Field:
    extents = [field.extent for field in fields]
    widest = max(fields, key=lambda field: len(field.jump))
    if any(extent is None or len(extent) != len(widest.jump) for extent in extents):
        return _Field(None, widest.jump)
    together = zip(*(extent for extent in extents if extent is not None), strict=True)
    jumps = zip(*(field.jump for field in fields), strict=True)
    return _Field(tuple(map(max, together)), tuple(map(max, jumps)))


def _grow(node: fx.Node, field: _Field) -> _Field:
    target: Any = node.target
    name = str(target._schema.name).rpartition("::")[2] if hasattr(target, "_schema") else ""
    if field.extent is None:
        return field
    rank = len(field.extent)
    if is_layer(node) and "conv" in name:
        kernel = list(read_argument(node, "weight").meta["val"].shape[2:])
        stride, dilation = (_spread(read_argument(node, key), rank) for key in _STEPS)
        if "transpose" in str(target) or read_argument(node, "transposed", False):
            spans = zip(kernel, stride, dilation, strict=True)
            taps = [-(-((k - 1) * d + 1) // s) for k, s, d in spans]
            return _enlarge(field, [Fraction(s) for s in stride], taps)
        return _slide(field, kernel, stride, dilation)
    if name in _TAPS:
        sizes = [s.meta["val"].shape[2:] for s in (node.all_input_nodes[0], node)]
        before, after = ([hint(size) for size in shape] for shape in sizes)
        factors = [Fraction(new, old) for old, new in zip(before, after, strict=True)]
        return _enlarge(field, factors, [_TAPS[name]] * rank)
    if target in _POOLS and rank == _POOLS[target]:
        kernel = _spread(read_argument(node, "kernel_size"), rank)
        stride = _spread(read_argument(node, "stride") or kernel, rank)
        dilation = _spread(read_argument(node, "dilation", 1), rank)
        return _slide(field, kernel, stride, dilation)
    if rank and (name.rstrip("_") in _EVERYTHING or name == "linear"):
        return _Field(None, field.jump)
    return field


def _slide(field: _Field, kernel: list[int], stride: list[int], dilation: list[int]) -> _Field:
    extent = field.extent or ()
    if not len(extent) == len(kernel) == len(stride) == len(dilation):
        return _Field(None, field.jump)
    return _Field(
        tuple(
            e + (k - 1) * d * j
            for e, k, d, j in zip(extent, kernel, dilation, field.jump, strict=True)
        ),
        tuple(j * s for j, s in zip(field.jump, stride, strict=True)),
    )


def _enlarge(field: _Field, factors: Sequence[Fraction], taps: Sequence[int]) -> _Field:
    """Of a map `factors` times as large, each position computed from `taps` neighbours."""
    extent = field.extent or ()
    if not len(extent) == len(factors) == len(taps):
        return _Field(None, field.jump)
    return _Field(
        tuple(e + (n - 1) * j for e, n, j in zip(extent, taps, field.jump, strict=True)),
        tuple(j / factor for j, factor in zip(field.jump, factors, strict=True)),
    )


def _spread(value: Any, rank: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * rank if len(values) == 1 else values
