"""Answers of a classifier, and the wrong ones that every comparator must tell from them."""

import math
from collections.abc import Callable

import numpy as np

from deploy.engines.base import Array


def logits(rows: int = 64, classes: int = 10, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, classes)).astype(np.float32)


def with_value(array: Array, value: float) -> Array:
    changed = array.copy()
    changed[len(changed) // 2, 3] = value
    return changed


def _swap_columns(array: Array) -> Array:
    changed = array.copy()
    changed[:, [1, 3]] = array[:, [3, 1]]
    return changed


def _swap_samples(array: Array) -> Array:
    changed = array.copy()
    changed[[0, 1]] = array[[1, 0]]
    return changed


WRONG: dict[str, Callable[[Array], Array]] = {
    "scaled by 1.01": lambda array: array * np.float32(1.01),
    "two channels swapped": _swap_columns,
    "one NaN": lambda array: with_value(array, math.nan),
    "one Inf": lambda array: with_value(array, math.inf),
    "two samples swapped": _swap_samples,
    "all zeros": np.zeros_like,
}


def wrong(*but: str) -> list[str]:
    return [name for name in WRONG if name not in but]
