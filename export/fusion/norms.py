"""Batch normalization as aten has it, in all its operators."""

from collections.abc import Callable

import torch
from torch import Tensor, fx

from export.fusion.batch_norm import BatchNorm
from export.fusion.draft import read_argument

aten = torch.ops.aten

NORMS = frozenset(
    {
        aten.batch_norm.default,
        aten.native_batch_norm.default,
        aten.cudnn_batch_norm.default,
        aten._native_batch_norm_legit.default,
        aten._native_batch_norm_legit.no_stats,
        aten._native_batch_norm_legit_no_training.default,
        aten._batch_norm_no_update.default,
    }
)


def read_norm(norm: fx.Node, lookup: Callable[[object], Tensor | None]) -> BatchNorm | str:
    """The constants of a batch norm in inference, or why it has none.

    Args:
        norm: a call of one of `NORMS`.
        lookup: the tensor behind a node, or None where it is not known before run time.
    """
    mean_node, variance_node = (
        read_argument(norm, name) for name in ("running_mean", "running_var")
    )
    if mean_node is None or variance_node is None:
        return "batch norm has no running statistics"
    if read_argument(norm, "training", False):
        return "batch norm is in training mode"
    mean, variance = lookup(mean_node), lookup(variance_node)
    if mean is None or variance is None:
        return "the running statistics are computed, not stored"
    affine = [read_argument(norm, name) for name in ("weight", "bias")]
    gamma, beta = (None if node is None else lookup(node) for node in affine)
    if any(node is not None and lookup(node) is None for node in affine):
        return "scale or shift of the batch norm is computed, not stored"
    eps = read_argument(norm, "eps", read_argument(norm, "epsilon"))
    return BatchNorm(mean, variance, gamma, beta, float(eps))
