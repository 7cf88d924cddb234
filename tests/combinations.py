"""Combinations of parameters, of which the quick suite runs as many as tell something."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def combine(*factors: Sequence[Any], together: int = 2) -> list[Any]:
    """Every combination of a value of each factor; the others are slow tests.

    In the quick suite each value of any `together` factors occurs with each of the rest of these:
    with 1 every value occurs, with 2 every pair of values of two factors.

    Returns:
        Parameters for ``pytest.mark.parametrize``, one of each combination.
    """
    missing = {
        choice
        for places in itertools.combinations(range(len(factors)), together)
        for choice in itertools.product(*([(k, n) for n in range(len(factors[k]))] for k in places))
    }
    left = [tuple(enumerate(one)) for one in itertools.product(*(range(len(f)) for f in factors))]
    found = []
    while left:
        best = max(
            left, key=lambda one: len(missing & _choices(one, together))
        )  # the first of them
        marks = () if missing & _choices(best, together) else pytest.mark.slow
        missing -= _choices(best, together)
        left.remove(best)
        values = [factor[number] for factor, (_, number) in zip(factors, best, strict=True)]
        found.append(pytest.param(*values, marks=marks))
    return found


def _choices(one: tuple[tuple[int, int], ...], together: int) -> set[tuple[tuple[int, int], ...]]:
    return set(itertools.combinations(one, together))


def sometimes(*values: Any) -> Any:
    """Parameters of a case for the slow suite, since others are much as it is."""
    return pytest.param(*values, marks=pytest.mark.slow)
