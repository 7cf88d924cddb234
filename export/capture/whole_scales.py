"""Upsampling by a whole factor as upsampling to a size, while a model is captured."""

from typing import Any

from torch import Tensor
from torch.nn import functional

from export.capture.replaced_calls import Replacement


class WholeScales(Replacement):
    """Has ``interpolate(x, scale_factor=2)`` called with ``size=2 * x.shape`` instead.

    torch.export computes the size as ``trunc(2.0 * float(size))``, of which it does not know that
    it is twice the size; a U-Net that joins the result with what was not halved, or a network for
    super-resolution, then takes no other size than the captured one. Both calls return the same:
    a whole factor is the ratio of the sizes.
    """

    functions = (functional.interpolate,)
    names = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")

    def answer(self, given: dict[str, Any]) -> Any:
        """The image in its new size."""
        return functional.interpolate(**_name_size(given))


def _name_size(given: dict[str, Any]) -> dict[str, Any]:
    """The same call of ``interpolate`` with a size, where its factors are whole."""
    factors, value = given.get("scale_factor"), given.get("input")
    if factors is None or given.get("size") is not None or not isinstance(value, Tensor):
        return given
    sizes = value.shape[2:]
    factors = factors if isinstance(factors, (list, tuple)) else [factors] * len(sizes)
    plain = all(isinstance(factor, (int, float)) for factor in factors)
    if not plain or len(factors) != len(sizes) or any(factor % 1 for factor in factors):
        return given
    whole = [size * int(factor) for size, factor in zip(sizes, factors, strict=True)]
    return {**given, "size": whole, "scale_factor": None, "recompute_scale_factor": None}
