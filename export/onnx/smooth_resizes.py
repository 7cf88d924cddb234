"""Resizes that smooth (``antialias=True``) between known sizes, as two products with matrices.

Such a resize is linear and works along one axis at a time: ``y = A x B'``, where ``A`` and ``B``
are what it makes of the identity. OpenVINO 2026.4 smooths in another way than torch, and TensorRT
has no such resize. Those of uint8, which round, stay.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from export.fusion.calls import add_call
from export.fusion.draft import Draft, read_argument
from export.onnx.graph import FIXED

aten = torch.ops.aten

_RESIZES = frozenset({aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec})


def write_out_smooth_resizes(draft: Draft) -> bool:
    """Whether there was a resize that smooths floats, between sizes that are known."""
    resizes = [node for node in draft.graph.nodes if node.target in _RESIZES]
    written = [_write_out(draft, node) for node in resizes]
    return any(written)


def _write_out(draft: Draft, node: fx.Node) -> bool:
    source = read_argument(node, "input")
    example: Tensor = node.meta["val"]
    before, after = source.meta["val"].shape[2:], example.shape[2:]
    if not example.is_floating_point() or not all(type(s) is int for s in (*before, *after)):
        return False
    factors = read_argument(node, "scale_factors")
    matrices = [
        _resize_identity(node, *sizes, factors and factors[axis])
        for axis, sizes in enumerate(zip(before, after, strict=True))
    ]
    rows, columns = (
        draft.add(f"{FIXED}resized_{axis}", _store(matrix, example), beside=None)
        for axis, matrix in zip(("rows", "columns"), (matrices[0], matrices[1].T), strict=True)
    )
    with draft.graph.inserting_before(node):
        narrow = add_call(node, aten.matmul.default, source, columns)
        resized = add_call(node, aten.matmul.default, rows, narrow)
    draft.erase(node, resized)
    return True


def _resize_identity(node: fx.Node, before: int, after: int, factor: float | None) -> Tensor:
    """The matrix ``(after, before)`` of the resize of one axis, float64."""
    identity = torch.eye(before, dtype=torch.float64).reshape(1, 1, before, before)
    sizes = [after, before] if factor is None else None
    factors = None if factor is None else [factor, 1.0]
    resize: Any = node.target
    resized: Tensor = resize(identity, sizes, read_argument(node, "align_corners"), factors)
    return resized.reshape(after, before)


def _store(matrix: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(matrix.to(like.device, like.dtype).contiguous(), requires_grad=False)
