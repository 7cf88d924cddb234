"""``nn.TransformerEncoder`` that is told of padding, as eager runs it, while a model is captured.

In eval mode torch's encoder drops padding where it can, and gives zeros in its place; the way that
a capture takes through its code computes something there, which a mean over all tokens would tell.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def drop_padding() -> Iterator[None]:
    """Have encoders put zeros where eager does: see `_drops_padding` and `_find_dropped`."""
    forward: Callable[..., Tensor] = nn.TransformerEncoder.forward

    def run(
        self: nn.TransformerEncoder,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        padding = src_key_padding_mask
        if padding is None or mask is not None or not _drops_padding(self, src):
            return forward(self, src, mask, padding, is_causal)
        bare = copy.copy(self)  # the norm comes behind the zeros
        bare._modules = {**self._modules, "norm": None}
        output = forward(bare, src, mask, padding, is_causal)
        output = output.masked_fill(_find_dropped(padding).unsqueeze(-1), 0.0)
        return output if self.norm is None else self.norm(output)

    encoder: Any = nn.TransformerEncoder
    encoder.forward = run
    try:
        yield
    finally:
        encoder.forward = forward


def _drops_padding(encoder: nn.TransformerEncoder, src: Tensor) -> bool:
    """Whether eager may drop padding in it, without gradients: torch's own conditions."""
    first = encoder.layers[0]
    return (
        bool(getattr(encoder, "use_nested_tensor", False))
        and not first.training
        and src.dim() == 3
        and not torch.is_autocast_enabled()
    )


def _find_dropped(padding: Tensor) -> Tensor:
    """Which tokens of ``(N, T)`` eager drops: padding, where all of it stands at the ends.

    One sample with padding elsewhere has torch drop none in the whole batch.
    """
    keep = padding.logical_not()
    counts = keep.sum(1, keepdim=True)
    places = torch.arange(padding.shape[1], device=padding.device)
    at_ends = (keep == (places < counts)).all()
    return keep.logical_not() & at_ends
