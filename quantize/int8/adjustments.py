"""What recovery chose for single layers, for `quantize_int8` to use in place of plain rounding."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from export.artifacts import Skip


@dataclass(frozen=True)
class WeightOutliers:
    """What int8 does to the weights of one layer by their outliers.

    Attributes:
        range_ratio: largest over median range of the output channels.
        peak_ratio: of the worst output channel, largest over root mean square weight.
        sqnr_db: signal over error of the weights, averaged over the output channels, rounded to
            nearest; None: no error, or nothing but zeros.
    """

    range_ratio: float
    peak_ratio: float
    sqnr_db: float | None


@dataclass(frozen=True, eq=False)
class LayerAdjustment:
    """One layer.

    Attributes:
        where: its label, with the user's module path.
        codes: int8, in the shape of the stored weights; None: round to nearest.
        scales: float32, one an output channel, of `codes`; None where `codes` is.
        bias: float32, one an output channel, to add in place of the model's own; None: that stays.
        nearest_db: signal over error of the layer's output on the calibration data, where its
            weights alone are rounded to nearest; None: not measured, or no error.
        adjusted_db: the same for what was chosen.
        outliers: what the plain scales do to its weights; None: not measured.
    """

    where: str
    codes: np.ndarray | None = None
    scales: np.ndarray | None = None
    bias: np.ndarray | None = None
    nearest_db: float | None = None
    adjusted_db: float | None = None
    outliers: WeightOutliers | None = None


@dataclass(frozen=True)
class Adjustments:
    """What was chosen for the layers of one model, by the names of their nodes.

    They hold for the model, the ranges and the scheme that they were made from, and for that scheme
    with another `keep_float`.

    Attributes:
        layers: node name → what was chosen; layers not in it are rounded to nearest.
        skipped: layers in int8 that recovery left alone, with the reason.
    """

    layers: Mapping[str, LayerAdjustment] = field(default_factory=dict)
    skipped: tuple[Skip, ...] = ()
