"""Tensors filled with a value out of another, while a model is captured."""

from typing import Any, TypeGuard

import torch
from torch import Tensor

from export.capture.replaced_calls import Replacement

_OPTIONS = frozenset({"dtype", "device"})


class TensorFills(Replacement):
    """Has ``full(size, value)`` stretch `value` where that is a tensor, and not a number.

    torch.export makes a number of it, of which it knows nothing, as of the stride in the anchors of
    a detector; ONNX takes none.
    """

    functions = (torch.full,)
    names = ("size", "fill_value")

    def answer(self, given: dict[str, Any]) -> Any:
        """The filled tensor, of the shape `size`."""
        value = given.get("fill_value")
        if not _is_one(value) or not given.keys() <= {*self.names, *_OPTIONS}:
            return torch.full(**given)
        place = given.get("device") or torch.get_default_device()
        return _fill(given["size"], value.to(place, given.get("dtype") or _infer_kind(value)))


class TensorFillsLike(Replacement):
    """Has ``x.new_full(size, value)`` do the same."""

    functions = (Tensor.new_full,)
    names = ("self", "size", "fill_value")

    def answer(self, given: dict[str, Any]) -> Any:
        """The filled tensor, of the shape `size`, and of the kind of `self` if none is given."""
        value, like = given.get("fill_value"), given["self"]
        if not _is_one(value) or not given.keys() <= {*self.names, *_OPTIONS}:
            return like.new_full(**{name: item for name, item in given.items() if name != "self"})
        place = given.get("device") or like.device
        return _fill(given["size"], value.to(place, given.get("dtype") or like.dtype))


def _fill(size: Any, value: Tensor) -> Tensor:
    return value.reshape(()).expand(size).clone()


def _infer_kind(value: Tensor) -> torch.dtype:
    """Of what kind torch makes the tensor: numbers have no precision of their own."""
    if value.is_floating_point():
        return torch.get_default_dtype()
    if value.is_complex():
        return torch.complex64 if torch.get_default_dtype() == torch.float32 else torch.complex128
    return torch.bool if value.dtype == torch.bool else torch.int64


def _is_one(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor that torch takes for a number."""
    return isinstance(value, Tensor) and value.ndim == 0
