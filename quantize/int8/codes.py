"""Ranges and weights → the scales and zero points of their codes.

``real = scale * (code - zero_point)``: Jacob et al., "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, equation 1.
"""

from collections.abc import Mapping

import numpy as np

from quantize.calibration.ranges import Ranges
from quantize.placement.pixels import SCALE, ZERO_POINT
from quantize.placement.walk import ActivationUse
from quantize.scheme import QuantScheme

SMALLEST_SCALE = 2.0**-60
"""Below it a range counts as 0; the product of two scales is still a normal float32."""

_BIAS_LIMIT = 2.0**31 - 2.0**8
_DEAD_CHANNEL_BIAS_CODE = 2.0**23


def ranges_by_tensor(
    ranges: Ranges, twins: Mapping[str, str], scheme: QuantScheme
) -> Mapping[str, tuple[float, float]]:
    """The ranges that the int8 graph is made with, by the names of its tensors.

    Args:
        ranges: of the float model.
        twins: what `use_global_pooling` returned: new tensors and the old ones like them.
        scheme: whose codes they are for.
    """
    known = dict(ranges.for_scheme(scheme))
    return known | {new: known[old] for new, old in twins.items() if old in known}


def activation_parameters(
    low: float, high: float, scheme: QuantScheme, use: ActivationUse | None = None
) -> tuple[np.float32, int]:
    """(scale, zero point) of an activation whose values span `low` to `high`.

    Zero is always representable. A tensor that is 0 throughout gets the scale of the range 0 to 1.
    Pixels are their own codes, whatever they were seen to span.
    """
    if use is not None and use.pixels:
        return SCALE, ZERO_POINT
    low, high = min(low, 0.0), max(high, 0.0)
    if use is not None and use.from_zero:
        low = 0.0
    if use is not None and use.ceiling is not None:
        high = min(high, use.ceiling)
    if has_unsigned_codes(low, scheme, use):
        scale = (high - low) / 255
        if scale < SMALLEST_SCALE:
            return np.float32(1 / 255), 0
        rounded = np.float32(scale)
        if use is not None and use.ceiling is not None and float(rounded) * 255 > use.ceiling:
            rounded = np.nextafter(rounded, np.float32(0))  # the code 255 must not pass Clip's end
        return rounded, int(np.clip(np.rint(-low / scale), 0, 255))
    levels = scheme.weight_levels if use is not None and use.narrow else 127
    scale = max(-low, high) / levels
    return np.float32(scale if scale >= SMALLEST_SCALE else 1 / levels), 0


def has_unsigned_codes(low: float, scheme: QuantScheme, use: ActivationUse | None) -> bool:
    """Whether an activation whose values start at `low` gets uint8 codes, not int8."""
    if use is not None and use.narrow:
        return False
    return scheme.unsigned_activations and not (
        use is not None and use.symmetric and not use.from_zero and low < 0
    )


def weight_scales(
    weight: np.ndarray,
    axis: int,
    bias: np.ndarray | None,
    activation_scale: float,
    *,
    per_channel: bool = True,
    levels: int = 127,
) -> np.ndarray:
    """Symmetric int8 scales of the channels of `weight` along `axis`, float32, never 0.

    With `bias` (one value a channel) the scales are raised where the int32 code of the bias, in
    units of ``activation_scale * scale``, would overflow; a channel of zeros takes its scale from
    its bias. Without `per_channel` the live channels share the largest of their scales.
    Codes run from ``-levels`` to ``levels``.
    """
    others = tuple(number for number in range(weight.ndim) if number != axis)
    scales = np.abs(weight).max(axis=others).astype(np.float64) / levels
    dead = scales < SMALLEST_SCALE
    if not per_channel:
        scales[~dead] = scales.max()
    scales[dead] = 1 / levels
    if bias is not None:
        magnitude = np.abs(bias.astype(np.float64)) / activation_scale
        from_bias = dead & (magnitude > 0)
        scales[from_bias] = magnitude[from_bias] / _DEAD_CHANNEL_BIAS_CODE
        scales = np.maximum(scales, smallest_scales(bias, activation_scale))
    result: np.ndarray = np.maximum(scales, SMALLEST_SCALE).astype(np.float32)
    return result


def smallest_scales(bias: np.ndarray, activation_scale: float) -> np.ndarray:
    """The scales below which the int32 codes of `bias` would overflow; float64, one a channel."""
    limits: np.ndarray = np.abs(bias.astype(np.float64)) / activation_scale / _BIAS_LIMIT
    return limits
