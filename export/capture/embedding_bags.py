"""Bags of equal size as embeddings and a reduction, while a model is captured."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_NAMES = (
    *("input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode"),
    *("sparse", "per_sample_weights", "include_last_offset", "padding_idx"),
)


class EqualBags(TorchFunctionMode):
    """Has ``embedding_bag(ids, weight)`` of ids ``[bags, size]`` looked up and reduced in the open.

    torch makes one long row of the ids and where each bag begins. The exporter writes that as a
    loop over sequences, with a fixed number of bags: of a dynamic batch there is none, and OpenVINO
    and TensorRT take no such loop. Where all bags are of one size nothing needs to be said of where
    they begin.

    What is said of where bags begin, and weights that are renormalized in place, stay as they are.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls in place of every function of its own."""
        given = dict(kwargs or {})
        if func is functional.embedding_bag and len(args) <= len(_NAMES):
            named = {**dict(zip(_NAMES, args, strict=False)), **given}
            if _is_equal(named):
                return _reduce(named)
        return func(*args, **given)


def _is_equal(given: Mapping[str, Any]) -> bool:
    """Whether it is a matrix of ids, to be summed, averaged or reduced to the largest."""
    ids = given.get("input")
    plain = given.get("offsets") is None and given.get("max_norm") is None
    return plain and isinstance(ids, Tensor) and ids.ndim == 2


def _reduce(given: Mapping[str, Any]) -> Tensor:
    """The vectors of each bag reduced to one, ``[bags, width]``.

    Entries at `padding_idx` count for nothing; a bag of them alone is 0.
    """
    ids, weight, mode = given["input"], given["weight"], given.get("mode", "mean")
    padding, shares = given.get("padding_idx"), given.get("per_sample_weights")
    vectors: Tensor = functional.embedding(ids, weight)
    kept: Tensor | None = None
    if padding is not None:
        row = padding if padding >= 0 else weight.shape[0] + padding
        kept = (ids != row).unsqueeze(-1)
    if mode == "max":
        if kept is None:
            return vectors.amax(1)
        largest = vectors.masked_fill(~kept, -math.inf).amax(1)
        return largest.masked_fill(~kept.any(1), 0.0)
    if shares is not None:
        vectors = vectors * shares.unsqueeze(-1)
    if kept is None:
        return vectors.sum(1) if mode == "sum" else vectors.mean(1)
    total = vectors.masked_fill(~kept, 0.0).sum(1)
    if mode != "sum":
        total = total / kept.sum(1).clamp(min=1).to(total.dtype)
    return total
