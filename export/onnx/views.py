"""Views as changes of shape, which copy where values lie in another order than they did.

What stands for an operator has its shape and not its strides: ``irfft2`` over two axes in the
middle answers in the order of its axes, a product behind a transpose does not.
"""

import torch

from export.fusion.draft import Draft

aten = torch.ops.aten


def reshape_views(draft: Draft) -> None:
    """Let nothing in `draft` ask how values lie; a file of ONNX does not say it."""
    for node in draft.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
