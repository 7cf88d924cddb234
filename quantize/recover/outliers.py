"""Weight outliers: which layers int8 ruins for them, and scales that cut them off where that pays.

Merging the branches of a RepVGG block leaves single large taps (an identity branch behind a norm of
tiny variance); the scale that holds them leaves nothing for the rest of the channel (Chu et al.,
"Make RepVGG Greater Again", AAAI 2024). A smaller scale cuts the outlier and resolves the rest; the
best one is searched by the error at the layer's output, where a large tap on a quiet input weighs
little.
"""

import numpy as np

from quantize.int8.adjustments import WeightOutliers
from quantize.recover.patches import PatchLayout

_COARSE = tuple(2.0 ** (-step / 2) for step in range(1, 17))
_FINE = tuple(0.93**step for step in (-4, -3, -2, -1, 1, 2, 3, 4))


def measure_outliers(weight: np.ndarray, scales: np.ndarray, layout: PatchLayout) -> WeightOutliers:
    """Measure the stored `weight` with `scales`, one an output channel."""
    rows = layout.to_matrix(weight).reshape(-1, layout.taps).astype(np.float64)
    units = scales.astype(np.float64)[:, None]
    ranges, power = np.abs(rows).max(axis=1), np.square(rows).mean(axis=1)
    live = power > 0
    if not live.any():
        return WeightOutliers(1.0, 1.0, None)
    errors = np.square(np.clip(np.rint(rows / units), -127, 127) * units - rows).mean(axis=1)
    loss = float((errors[live] / power[live]).mean())
    return WeightOutliers(
        float(ranges.max() / np.median(ranges[live])),
        float((ranges[live] / np.sqrt(power[live])).max()),
        float(-10 * np.log10(loss)) if loss > 0 else None,
    )


def clip_scales(
    matrix: np.ndarray,
    scales: np.ndarray,
    importance: np.ndarray,
    levels: int,
    *,
    per_channel: bool = True,
) -> np.ndarray:
    """Scales, at most the given ones, at which rounding to nearest errs least.

    Args:
        matrix: weights [groups, rows, taps].
        scales: those that cut nothing off, [groups, rows].
        importance: power of each tap's input, [groups, taps].
        levels: codes run from ``-levels`` to ``levels``.
        per_channel: search every row by itself; otherwise one ratio for all.
    """
    ratios = np.ones(scales.shape)
    least = _clipping_error(matrix, scales, importance, levels)
    least = least if per_channel else np.full(scales.shape, least.sum())
    for steps in (_COARSE, _FINE):
        start = ratios
        for step in steps:
            tried = np.minimum(start * step, 1.0)
            error = _clipping_error(matrix, scales * tried, importance, levels)
            error = error if per_channel else np.full(scales.shape, error.sum())
            ratios = np.where(error < least, tried, ratios)
            least = np.minimum(error, least)
    return scales * ratios


def _clipping_error(
    matrix: np.ndarray, scales: np.ndarray, importance: np.ndarray, levels: int
) -> np.ndarray:
    """Error power at the output, [groups, rows], as if inputs were independent."""
    units = scales[..., None].astype(np.float32)
    errors = np.clip(np.rint(matrix / units), -levels, levels) * units
    errors -= matrix
    errors *= errors
    result: np.ndarray = np.matmul(errors, importance[..., None].astype(np.float32))[..., 0]
    return result
