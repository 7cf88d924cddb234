"""NaN and infinity never leave unannounced; what calibration has not seen is counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from servers import serving

from deploy.bundle.folder import read_bundle
from deploy.bundle.packing import find_ranges
from deploy.engines.base import Array
from deploy.inputs.dataset import Dataset
from deploy.serving.errors import NonFiniteError
from deploy.serving.models.guards import Guard, GuardPlan, find_nonfinite


def outputs(*values: float, dtype: str = "float32") -> dict[str, Array]:
    return {"y": np.array(values, dtype)}


@pytest.mark.parametrize("size", [2, 1000])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_counted(value: float, size: int) -> None:
    guard = Guard(GuardPlan({}))
    assert guard({}, outputs(*[3e38] * size)) is None  # though their sum is infinite
    refusal = guard({}, outputs(*[3e38] * (size - 1), value))
    assert isinstance(refusal, NonFiniteError)
    assert refusal.status == 500
    assert guard.nonfinite == 1


def test_it_may_only_be_counted_and_recorded_ones_are_exempt() -> None:
    guard = Guard(GuardPlan({}, nonfinite="report"))
    assert guard({}, outputs(np.nan)) is None
    assert guard.nonfinite == 1
    masked = {"mask": np.array([0, -np.inf], np.float32), "y": np.ones(2, np.float32)}
    assert find_nonfinite(masked) == {"mask"}
    guard = Guard(GuardPlan({}, exempt=find_nonfinite(masked)))
    assert guard({}, masked) is None
    assert guard.nonfinite == 0


@pytest.mark.parametrize("size", [2, 1000])
def test_inputs_beyond_calibration_by_more_than_a_tenth_are_counted(size: int) -> None:
    guard = Guard(GuardPlan({"x": (2.0, 12.0)}))
    for value, counted in [(2, 0), (12, 0), (13, 0), (1, 0), (13.1, 1), (0.9, 2), (np.nan, 3)]:
        x = np.full((size // 2, 2), 7, np.float32)
        x[-1, 1] = value
        assert guard({"x": x}, outputs(1)) is None
        assert guard.out_of_range == counted


@pytest.mark.parametrize("size", [2, 1000])
def test_what_calibration_held_is_within_its_range_however_large(size: int) -> None:
    """Whole numbers that float32 does not hold, such as times in seconds."""
    low, high = 1_700_000_001, 1_700_000_003
    guard = Guard(GuardPlan({"t": (float(low), float(high))}))
    for value in (low, high):
        guard({"t": np.full(size, value)}, outputs(1))
        guard({"t": np.full(size, value, np.float32)}, outputs(1))
    assert guard.out_of_range == 0
    guard({"t": np.full(size, high + 1000)}, outputs(1))
    assert guard.out_of_range == 1


def test_ranges_are_those_of_the_calibration_data() -> None:
    x = np.array([[1, np.nan], [-3, 2]], np.float32)
    ids = np.array([[5], [90]])
    data = Dataset.__new__(Dataset)
    object.__setattr__(data, "batches", lambda size: iter([{"x": x, "ids": ids}, {"x": x * 2}]))
    assert find_ranges(data) == {"x": (-6.0, 4.0), "ids": (5.0, 90.0)}


def test_ranges_are_read_back(identity_bundle: Path) -> None:
    assert read_bundle(identity_bundle).manifest.input_ranges == {"x": (0.0, 10.0)}


def ask(*values: float) -> dict[str, Any]:
    shape = [1, len(values)]
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": list(values)}]}


def test_a_server_refuses_them_and_counts(identity_bundle: Path) -> None:
    labels = 'model="echo",version="1"'
    with serving(identity_bundle) as server:
        assert server.infer("echo", ask(1, 2))[0] == 200
        for value in (-1.0, 0.0):  # their logarithms are NaN and minus infinity
            status, answered = server.infer("echo", ask(1, value))
            assert status == 500
            assert answered == {
                "error": "output 'log' holds NaN or infinity, which this model's reference did not"
            }
        assert server.infer("echo", ask(50, 2))[0] == 200
        metrics = server.metrics()
        assert metrics[f"deploy_nonfinite_outputs_total{{{labels}}}"] == 2
        assert metrics[f"deploy_inputs_out_of_range_total{{{labels}}}"] == 1
        series = f'nv_inference_request_failure{{{labels},reason="NONFINITE"}}'
        assert metrics[series] == 2


def test_where_they_are_only_reported_json_still_cannot_hold_them(identity_bundle: Path) -> None:
    with serving(identity_bundle, "--nonfinite", "report") as server:
        status, answered = server.infer("echo", ask(-1.0))
        assert (status, "ask for binary_data" in answered["error"]) == (400, True)
        finite = ask(-1.0) | {"outputs": [{"name": "y"}]}
        assert server.infer("echo", finite)[0] == 200
