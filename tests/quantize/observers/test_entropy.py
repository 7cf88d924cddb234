"""The entropy range against Migacz's algorithm written out, bin by bin, with scipy's divergence."""

import itertools

import numpy as np
import pytest

from quantize.calibration.summaries import summarize
from quantize.observers.entropy import measure_divergence, minimize_divergence
from quantize.observers.statistic import TensorStatistic


def _literal(counts: np.ndarray, first: int, last: int, levels: int) -> float:
    """KL of the bins [first, last) as the slides have it."""
    from scipy.stats import entropy as kullback_leibler

    reference = counts[first:last].astype(np.float64)
    inside = reference.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    if not inside.any():
        return np.inf
    candidate = np.zeros_like(inside)
    edges = [step * (last - first) // levels for step in range(levels + 1)]
    for start, end in itertools.pairwise(edges):
        used = reference[start:end] > 0
        if used.any():
            # P must not be where Q is nothing, else it were infinite
            candidate[start:end][used] = max(inside[start:end].sum(), 1e-4) / used.sum()
    return float(kullback_leibler(reference, candidate))


def _observe(values: np.ndarray) -> TensorStatistic:
    seen = TensorStatistic()
    seen.update(summarize(values))
    return seen


def _tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    normal = random.normal(0, 1, 60_000).astype(np.float32)
    outlier = normal.copy()
    outlier[:20] = 40
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "heavy": random.laplace(0, 1, 60_000).astype(np.float32) ** 3,
        "outlier": outlier,
        "negative": -np.abs(normal) - 3,
        "lopsided": random.gumbel(0, 1, 60_000).astype(np.float32),
    }


@pytest.mark.parametrize("levels", [128, 256])
@pytest.mark.parametrize("kind", ["dense", "gaps", "edges"])
def test_divergences_are_those_of_the_algorithm_written_out(levels: int, kind: str) -> None:
    random = np.random.default_rng(levels)
    counts = random.poisson(3 if kind == "dense" else 0.4, 1500)
    if kind == "edges":  # what clipping adds to falls on empty levels
        counts[:40] = counts[-40:] = 0
        counts[0] = counts[-1] = 900
        counts[600:700] = 0
    firsts = np.array([0, 1, 5, 20, 300, 0, 350])
    lasts = np.array([1500, 1499, 1450, 1495, 1000, 256, 650])
    found = measure_divergence(counts, firsts, lasts, levels)
    for first, last, value in zip(firsts, lasts, found, strict=True):
        assert value == pytest.approx(_literal(counts, first, last, levels), rel=1e-6, abs=1e-9)


def test_a_range_without_values_is_infinitely_bad() -> None:
    counts = np.zeros(600, np.int64)
    counts[500] = 9
    found = measure_divergence(counts, np.array([0, 0]), np.array([300, 600]), 128)
    assert (found[0], found[1]) == (np.inf, pytest.approx(0))


@pytest.mark.parametrize("name", _tensors())
def test_symmetric_range_is_the_best_of_all_magnitudes(name: str) -> None:
    """Every size from 128 bins up is tried here; the observer skips some, 0.6% apart."""
    values = _tensors()[name]
    seen = _observe(values)
    histogram = seen.histogram.coarsened(4096)
    magnitudes = np.abs(values[values != 0]).astype(np.float64)
    counts = np.histogram(magnitudes, np.arange(4097) * histogram.width)[0]
    top = int(np.flatnonzero(counts)[-1]) + 1
    assert top > 2048  # really 2,048 bins or more
    sizes = np.arange(128, top + 1)
    literal = [_literal(counts, 0, size, 128) for size in sizes[:: max(1, len(sizes) // 150)]]
    low, high = minimize_divergence(seen, True)
    limit = max(-low, high)
    at = min(int(limit / histogram.width), top)
    assert _literal(counts, 0, at, 128) <= min(literal) * 1.02 + 1e-6


@pytest.mark.parametrize("name", _tensors())
def test_a_free_zero_point_has_256_levels_of_the_value(name: str) -> None:
    values = _tensors()[name]
    seen = _observe(values)
    histogram = seen.histogram.coarsened(4096)
    counts = histogram.counts
    places = np.flatnonzero(counts)
    start, end = min(4096, places[0]), max(4096, places[-1] + 1)
    literal = []
    for size in range(128, max(4096 - start, end - 4096) + 1, 25):
        first, last = max(4096 - size, start), min(4096 + size, end)
        if last - first >= 256:
            literal.append(_literal(counts, first, last, 256))
    low, high = minimize_divergence(seen, False)
    first = max(start, 4096 + int(np.floor(min(low, 0) / histogram.width)))
    last = min(end, 4096 + int(max(high, 0) / histogram.width))
    assert _literal(counts, first, last, 256) <= min(literal) * 1.02 + 1e-6


def test_outliers_are_clipped_and_uniform_values_are_not() -> None:
    assert minimize_divergence(_observe(_tensors()["outlier"]), True)[1] < 15
    uniform = np.random.default_rng(0).uniform(-2, 2, 100_000).astype(np.float32)
    for symmetric in (False, True):
        low, high = minimize_divergence(_observe(uniform), symmetric)
        assert min(-low, high) > 1.95


def test_few_values_are_not_clipped() -> None:
    values = np.repeat(np.linspace(-1, 5, 100), 50).astype(np.float32)
    for symmetric in (False, True):
        assert minimize_divergence(_observe(values), symmetric) == (-1, 5)


def test_zeros_of_a_relu_do_not_count() -> None:
    positive = np.abs(np.random.default_rng(0).normal(0, 1, 20_000)).astype(np.float32)
    padded = np.concatenate([positive, np.zeros(500_000, np.float32)])
    assert minimize_divergence(_observe(padded), False)[1] == pytest.approx(
        minimize_divergence(_observe(positive), False)[1]
    )
