"""Figures beside the limit that they miss, in as many digits as it takes to tell the two apart."""

import math
from collections.abc import Callable

_MORE = 6
"""Digits beyond the usual ones, at most."""


def tell_apart(value: float, limit: float, form: Callable[[float, int], str], digits: int) -> str:
    """`value` in `digits` digits, or in more where `limit` would read the same: 97.96% beside 98%.

    Args:
        value: what was found.
        limit: what it is held against.
        form: writes a number with so many digits.
        digits: that are enough otherwise.
    """
    for more in range(_MORE):
        shown = form(value, digits + more)
        if shown != form(limit, digits + more):
            return shown
    return form(value, digits)


def as_fixed(value: float, digits: int) -> str:
    """With so many places: 19.97."""
    return f"{value:.{digits}f}"


def as_percent(value: float, digits: int) -> str:
    """A fraction with so many places: 97.96%."""
    return f"{value:.{digits}%}"


def as_significant(value: float, digits: int) -> str:
    """With so many digits, and an exponent where it is far from 1: 1.2e-06."""
    return f"{value:.{digits}g}"


def show_share(value: float) -> str:
    """A fraction that somebody chose, as it was chosen: 0.985 as ``98.5%``."""
    return f"{100 * value:.10g}%"


def show_drop(limit: float) -> str:
    """What may be lost, as ``1.00%``; with all its digits where two places are not all: 0.003%."""
    shown = as_percent(limit, 2)
    return shown if math.isclose(float(shown[:-1]) / 100, limit) else show_share(limit)


def show_decibels(value: float) -> str:
    """An SQNR that may be infinite."""
    if math.isfinite(value):
        return f"{value:.1f} dB"
    return "infinite: all is identical" if value > 0 else "minus infinity: nothing is right"
