"""``take_along_dim`` of rows as a gather, while a model is captured."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from export.capture.replaced_calls import ReplacedCalls


class TakenRows(ReplacedCalls):
    """Has ``take_along_dim(x, order[..., None], 1)`` stretch the indices in the open.

    Where torch stretches one for the other, it makes constants of all their sizes, of the batch
    too. Without an axis, or of another rank, the call stays as it is.
    """

    function: ClassVar[Callable[..., Any]] = torch.take_along_dim
    names = ("input", "indices", "dim")

    def answer(self, given: dict[str, Any]) -> Any:
        """The values at `indices` along the axis `dim`."""
        x, indices, axis = given.get(self.names[0]), given.get("indices"), given.get("dim")
        if not isinstance(x, Tensor) or not isinstance(indices, Tensor):
            return self._call(given)
        if axis is None or x.ndim != indices.ndim or "out" in given:
            return self._call(given)
        axis %= x.ndim
        return x.expand(_stretch(x, indices, axis)).gather(
            axis, indices.expand(_stretch(indices, x, axis))
        )

    def _call(self, given: dict[str, Any]) -> Any:
        x = given.pop(self.names[0])
        return type(self).function(x, **given)


class TakenRowsOfTensor(TakenRows):
    """The same of the method of a tensor."""

    function: ClassVar[Callable[..., Any]] = Tensor.take_along_dim
    names = ("self", "indices", "dim")


def _stretch(one: Tensor, other: Tensor, axis: int) -> list[Any]:
    """The sizes of `one`, where it has 1 those of `other`, but for `axis`."""
    return [
        there if index != axis and isinstance(here, int) and here == 1 else here
        for index, (here, there) in enumerate(zip(one.shape, other.shape, strict=True))
    ]
