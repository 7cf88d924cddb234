"""A module around the user's that takes uint8 images; its parts keep the user's names."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from export.images import ImageCall

_ARITHMETIC = {"float16": "float32"}
"""In which type images are prepared, where that is not the one that the model takes."""
MEMBER = "model"
"""What the user's module is called in an `ImageModel`."""


class ImageModel(nn.Module):
    """`model`, given images as they are decoded in place of normalized floats.

    A pixel becomes ``(pixel - shift) / factor``: the shift comes first, so that what is left before
    a convolution that pads is a scale, which is the same on both sides of the padding and goes into
    its weights. The user's module sees a contiguous [N, C, H, W], as it would from a caller, in the
    type that it takes; what comes before float16 is float32. In float64 (``double()``) shift and
    factor are the declared numbers, not their float32 roundings.

    Args:
        model: the user's.
        call: which inputs take images, and how `model` is called; the other inputs are passed on.
        names: of all inputs, in the order of the call.
    """

    def __init__(self, model: nn.Module, call: ImageCall, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._keyword = call.keyword
        self._names = tuple(names)
        self._images = {image.name: image for image in call.inputs}
        for index, image in enumerate(call.inputs):
            for what in ("shift", "factor"):
                value = torch.zeros(
                    1, dtype=getattr(torch, _ARITHMETIC.get(image.dtype, image.dtype))
                )
                self.register_buffer(f"uint8_image_{what}_{index}", value, persistent=False)
        self._taken = {image.name: getattr(torch, image.dtype) for image in call.inputs}
        self._fill()
        self.training = model.training

    def forward(self, *values: Tensor) -> object:
        """What the user's module returns."""
        pairs = zip(self._names, values, strict=True)
        prepared = {name: self._prepare(name, value) for name, value in pairs}
        return self.model(**prepared) if self._keyword else self.model(*prepared.values())

    def _prepare(self, name: str, value: Tensor) -> Tensor:
        if name not in self._images:
            return value
        index, image = list(self._images).index(name), self._images[name]
        shift, factor = (
            getattr(self, f"uint8_image_{what}_{index}") for what in ("shift", "factor")
        )
        # The cast comes before the permutation, since TensorRT moves no uint8.
        pixels = value.to(factor.dtype).permute(0, 3, 1, 2).contiguous()
        if any(image.shift):
            pixels = pixels - shift
        prepared = pixels if set(image.factor) == {1.0} else pixels / factor
        taken = self._taken[name]  # a cast to the same type would stay, and keep the scale apart
        return prepared if prepared.dtype == taken else prepared.to(taken)

    def _fill(self) -> None:
        """The declared numbers in the precision that the buffers have now."""
        for index, image in enumerate(self._images.values()):
            for what in ("shift", "factor"):
                held = getattr(self, f"uint8_image_{what}_{index}")
                values = torch.tensor(getattr(image, what), dtype=torch.float64)
                setattr(self, f"uint8_image_{what}_{index}", values.reshape(-1, 1, 1).to(held))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._taken = {
            name: fn(torch.zeros(0, dtype=dtype)).dtype for name, dtype in self._taken.items()
        }
        self._fill()
        return self


def find_user_module(module: nn.Module) -> nn.Module:
    """The user's module: that of an `ImageModel`, or `module` itself."""
    return module.model if isinstance(module, ImageModel) else module
