"""Numbers that stand for minus infinity: what masked values are filled with.

``masked_fill(mask, -1e9)`` and ``torch.finfo(dtype).min`` say that a value does not count. Taken
for values they would be all that counts: beside 1e9 any error of the others is rounding.
"""

from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]

_ROUNDING = 2.0**-8
"""bfloat16's: a candidate may hold the same number in fewer bits."""
_FORMATS = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


def _list_stand_ins() -> Array:
    """Minus a power of ten from 1e4 up, and the least number, in every format."""
    with np.errstate(over="ignore"):
        powers = -(10.0 ** np.arange(4, 39))
        found = [powers.astype(kind).astype(np.float64) for kind in _FORMATS]
    found += [np.array([float(ml_dtypes.finfo(kind).min)]) for kind in _FORMATS]
    known: Array = np.unique(np.concatenate(found))
    return known[np.isfinite(known)]


_STAND_INS = _list_stand_ins()
_LARGEST = float(_STAND_INS.max())


def open_masks(values: Array, *others: Array) -> tuple[Array, ...]:
    """The arrays with minus infinity where `values` hold a number that stands for it.

    Args:
        values: float64, such as a reference's output; integers have no such numbers.
        others: of the same shape and type, such as a candidate's. Where one is farther from
            `values` than bfloat16 rounds, it keeps what it holds, and differs; infinity becomes NaN
            there, since it is not what was written.

    Returns:
        `values` and `others`; the very arrays where there is nothing to open.
    """
    if values.dtype.kind != "f" or not values.size:
        return (values, *others)
    if not np.fmin.reduce(values, axis=None) <= _LARGEST:  # NaN alone is no warning here
        return (values, *others)
    masked = np.isin(values, _STAND_INS)
    if not masked.any():
        return (values, *others)
    opened = [np.where(masked, -np.inf, values)]
    for other in others:
        with np.errstate(invalid="ignore", over="ignore"):
            same = np.abs(other - values) <= _ROUNDING * np.abs(values)
        differing = np.where(np.isfinite(other), other, np.nan)
        opened.append(np.where(masked, np.where(same, -np.inf, differing), other))
    return tuple(opened)
