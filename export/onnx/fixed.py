"""Matrices that operators are made of, stored in a program as what nothing trains or rounds."""

import torch
from torch import Tensor, fx, nn

from export.fusion.draft import Draft
from export.onnx.graph import FIXED


def store_fixed(draft: Draft, name: str, matrix: Tensor, like: Tensor) -> fx.Node:
    """A matrix of float64 as a stored tensor that nothing trains, in the type of `like`.

    One that is stored already stands for its equals.
    """
    dtype = like.real.dtype if like.is_complex() else like.dtype
    values = matrix.to(like.device, dtype).contiguous()
    for node in draft.graph.nodes:
        stored = draft.stored(node)
        if stored is None or not draft.target(node).startswith(FIXED + name):
            continue
        if stored.dtype == dtype and torch.equal(stored, values):
            found: fx.Node = node
            return found
    return draft.add(FIXED + name, nn.Parameter(values, requires_grad=False), beside=None)
