"""Bags of equal size as embeddings and a reduction, while a model is captured."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from export.capture.replaced_calls import Replacement


class EqualBags(Replacement):
    """Has ``embedding_bag(ids, weight)`` of ids ``[bags, size]`` looked up and reduced in the open.

    torch makes one long row of the ids and where each bag begins. The exporter writes that as a
    loop over sequences, with a fixed number of bags: of a dynamic batch there is none, and OpenVINO
    and TensorRT take no such loop. Where all bags are of one size nothing needs to be said of where
    they begin.

    What is said of where bags begin, and weights that are renormalized in place, stay as they are.
    """

    functions = (functional.embedding_bag,)
    names = (
        *("input", "weight", "offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode"),
        *("sparse", "per_sample_weights", "include_last_offset", "padding_idx"),
    )

    def answer(self, given: dict[str, Any]) -> Any:
        """The bags, each reduced to one vector."""
        return _reduce(given) if _is_equal(given) else functional.embedding_bag(**given)


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
