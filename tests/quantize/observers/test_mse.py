"""The MSE range against brute force over the raw values."""

import numpy as np
import pytest

from quantize.calibration.summaries import summarize
from quantize.observers.mse import minimize_squared_error
from quantize.observers.statistic import TensorStatistic


def _tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    normal = random.normal(0, 1, 20_000).astype(np.float32)
    outlier = normal.copy()
    outlier[:3] = 60
    both = normal.copy()
    both[:4], both[4:6] = 30, -50
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "heavy": random.laplace(0, 1, 20_000).astype(np.float32) ** 3,
        "outlier": outlier,
        "both": both,
        "negative": -np.abs(normal),
        "offset": np.abs(normal) + 9,
        "lopsided": random.gumbel(0, 1, 20_000).astype(np.float32),
    }


def _error(values: np.ndarray, low: float, high: float, symmetric: bool) -> float:
    """Mean squared error of uint8 or int8 codes, as ONNX defines them, in float64."""
    values = values.astype(np.float64)
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        scale, zero, bottom, top = max(-low, high) / 127, 0.0, -127, 127
    else:
        scale = (high - low) / 255
        zero, bottom, top = float(np.round(-low / scale)), 0, 255
    codes = np.clip(np.round(values / scale) + zero, bottom, top)
    return float(np.mean((values - (codes - zero) * scale) ** 2))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", _tensors())
def test_error_is_that_of_brute_force(name: str, symmetric: bool) -> None:
    values = _tensors()[name]
    seen = TensorStatistic()
    for part in np.split(values, 4):
        seen.update(summarize(part))
    found = _error(values, *minimize_squared_error(seen, symmetric), symmetric)
    ratios = np.geomspace(0.02, 1, 60)
    low, high = min(values.min(), 0), max(values.max(), 0)
    if symmetric:
        fine = np.geomspace(0.02, 1, 600)
        errors = [_error(values, low * ratio, high * ratio, True) for ratio in fine]
    else:
        lows = [0.0] if low == 0 else low * ratios
        highs = [0.0] if high == 0 else high * ratios
        errors = [_error(values, a, b, False) for a in lows for b in highs]
    assert found <= min(errors) * 1.03
    assert found <= _error(values, low, high, symmetric) * 1.001  # never worse than min-max


def test_both_ends_are_clipped_where_both_have_outliers() -> None:
    seen = TensorStatistic()
    seen.update(summarize(_tensors()["both"]))
    low, high = minimize_squared_error(seen, False)
    assert -50 < low < -3
    assert 3 < high < 30


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("symmetric", [False, True])
def test_one_outlier_of_millions_costs_less_than_the_step_that_it_would_take(
    symmetric: bool, sign: int
) -> None:
    """Keeping it, the codes err by 60 / 255 / sqrt(12); without it at the best end by a tenth."""
    bulk, outlier, copies = sign * _tensors()["normal"], np.float32([60 * sign]), 200
    seen = TensorStatistic()
    for part in (*[summarize(bulk)] * copies, summarize(outlier)):
        seen.update(part)

    def error(low: float, high: float) -> float:
        total = copies * len(bulk) * _error(bulk, low, high, symmetric)
        return total + _error(outlier, low, high, symmetric)

    found = minimize_squared_error(seen, symmetric)
    ends = [(sign * float(np.abs(bulk).max()) * ratio) for ratio in np.geomspace(0.5, 4, 60)]
    others = (min(bulk) if sign > 0 else max(bulk)) * np.geomspace(0.7, 1, 12)
    best = min(error(*sorted((end, float(other)))) for end in ends for other in others)
    assert error(*found) <= 1.03 * best < 0.5 * error(*seen.extent)
