"""Values at places along an axis, while a model is captured."""

from typing import Any

import torch
from torch import Tensor

from export.capture.replaced_calls import Replacement


class PlacesAlong(Replacement):
    """Has ``take_along_dim(x, places, dim)`` gathered from what both are stretched to.

    torch.export makes numbers of the sizes, the batch among them, where torch stretches the two
    itself.
    """

    functions = (torch.take_along_dim, Tensor.take_along_dim)
    names = ("input", "indices", "dim")

    def answer(self, given: dict[str, Any]) -> Any:
        """The values, of the shape of the places."""
        value, places, axis = (given.get(name) for name in self.names)
        if not isinstance(value, Tensor) or not isinstance(places, Tensor) or "out" in given:
            return torch.take_along_dim(**given)
        if axis is None or value.ndim != places.ndim:
            return torch.take_along_dim(**given)
        axis = axis % value.ndim
        return _stretch(value, places, axis).gather(axis, _stretch(places, value, axis))


def _stretch(value: Tensor, other: Tensor, axis: int) -> Tensor:
    """`value` as large as `other` along all axes but `axis` along which it has one value."""
    sizes = [
        theirs if number != axis and isinstance(own, int) and own == 1 else own
        for number, (own, theirs) in enumerate(zip(value.shape, other.shape, strict=True))
    ]
    return value.expand(sizes)
