"""By how much held samples stand for all, against errors of the raw values."""

import numpy as np
import pytest

from quantize.calibration.rehearsal import Cost, Reading
from quantize.calibration.seen_errors import scale_to_seen
from quantize.calibration.summaries import summarize
from quantize.observers.statistic import TensorStatistic
from quantize.placement.walk import ActivationUse
from quantize.scheme import PRESETS

SPANS = {"whole": (-40.0, 40.0), "close": (-3.0, 3.0), "skewed": (-1.0, 4.0)}


def _values(samples: int) -> np.ndarray:
    """Normal ones, every tenth sample ten times larger."""
    values = np.random.default_rng(3).normal(0, 1, (samples, 500))
    values[::10] *= 10
    return values.astype(np.float32)


def _round(values: np.ndarray, span: tuple[float, float], unsigned: bool) -> np.ndarray:
    exact = values.astype(np.float64)
    if unsigned:
        scale = np.float32((span[1] - span[0]) / 255)
        zero = np.rint(-span[0] / scale)
        return (np.clip(np.rint(exact / scale) + zero, 0, 255) - zero) * scale
    scale = np.float32(max(-span[0], span[1]) / 127)
    return np.clip(np.rint(exact / scale), -128, 127) * scale


def _rehearsed(
    held: np.ndarray, target: str, *, source: str = "x", spans: dict = SPANS
) -> tuple[Cost, dict[str, float]]:
    """The cost of a reading that was tried on `held`, and its errors by range."""
    scheme = PRESETS[target]
    cost = Cost(Reading("x", source, ActivationUse("x"), scheme, None), spans)
    cost.values = held.size
    errors = {}
    for codes, names in cost.codes.items():
        for name in names:
            rounded = _round(held, spans[name], scheme.unsigned_activations)
            errors[name] = float(np.square(rounded - held).sum())
            cost.rounding[codes] = errors[name]
    return cost, errors


def _seen(values: np.ndarray) -> TensorStatistic:
    seen = TensorStatistic("x")
    for part in np.array_split(values, 4):
        seen.update(summarize(part))
    return seen


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_the_scale_is_the_error_of_all_over_that_of_the_held(target: str) -> None:
    values = _values(200)
    held = values[1::10]  # none of the large ones
    cost, errors = _rehearsed(held, target)
    _, whole = _rehearsed(values, target)
    found = scale_to_seen(cost, _seen(values))
    for name, factor in found.items():
        expected = whole[name] / values.size / (errors[name] / held.size)
        assert factor == pytest.approx(expected, rel=0.03), name
    assert found["close"] > 30
    assert found["whole"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_bins_wider_than_codes_still_tell(target: str) -> None:
    """One value a million times the rest."""
    values = _values(200)
    values[0, 0] = 1e5
    held, spans = values[1::10], {"close": (-3.0, 3.0)}
    cost, errors = _rehearsed(held, target, spans=spans)
    calm = values.copy()
    calm[0, 0] = 0
    _, rest = _rehearsed(calm, target, spans=spans)
    found = scale_to_seen(cost, _seen(values))["close"] * errors["close"] / held.size
    expected = (rest["close"] + (1e5 - 3.0) ** 2) / values.size
    assert found == pytest.approx(expected, rel=0.01)


def test_nothing_is_scaled_where_all_were_held_or_nothing_is_known() -> None:
    values = _values(40)
    plain = dict.fromkeys(SPANS, 1.0)
    assert scale_to_seen(_rehearsed(values, "openvino")[0], _seen(values)) == plain
    held, _ = _rehearsed(values[1:9], "openvino")
    assert scale_to_seen(held, TensorStatistic("x")) == plain
    copied, _ = _rehearsed(values[1:9], "openvino", source="pooled")
    assert scale_to_seen(copied, _seen(values)) == plain
    zeros, _ = _rehearsed(np.zeros((3, 500), np.float32), "openvino")
    assert scale_to_seen(zeros, _seen(values)) == plain
