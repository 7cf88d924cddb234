import numpy as np
import pytest
import torch
from torch import nn

from export.capture.agreement import (
    Expectation,
    Extent,
    expect,
    find_disagreement,
    float_dtypes,
    measure_error,
    measure_sample_errors,
    measure_tolerances,
    resize_feeds,
)
from export.capture.signature import describe_call


def make_expectation() -> Expectation:
    rng = np.random.default_rng(0)
    return Expectation(Extent(3), {}, {"output": rng.normal(size=(3, 4, 5, 5))}, {"output": 1e-5})


def permute_channel(y):
    return y[:, [1, 0, 2, 3]]


def swap_samples(y):
    return y[[1, 0, 2]]


def plant_nan(y):
    y = y.copy()
    y[1, 2, 3, 4] = np.nan
    return y


WRONG = {
    "scaled": lambda y: y * 1.01,
    "channel permuted": permute_channel,
    "one NaN": plant_nan,
    "samples swapped": swap_samples,
    "one Inf": lambda y: np.where(y == y.max(), np.inf, y),
    "one sample short": lambda y: y[:2],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_output_is_rejected(name):
    expected = make_expectation()
    wrong = WRONG[name](expected.outputs["output"])
    assert find_disagreement(expected, {"output": wrong}) is not None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_told_as_such(value):
    expected = make_expectation()
    wrong = expected.outputs["output"].copy()
    wrong[0] = value
    assert find_disagreement(expected, {"output": wrong}) == (
        "output 'output' at batch 3 has NaN or infinity in other places than eager"
    )


def test_rounding_is_accepted():
    expected = make_expectation()
    rounded = expected.outputs["output"].astype(np.float32)
    assert find_disagreement(expected, {"output": rounded}) is None


def test_missing_output_is_named():
    assert "'output' at batch 3 is missing" in (find_disagreement(make_expectation(), {}) or "")


def test_near_constant_output_is_not_asked_for_more_digits_than_float32_has():
    reference = np.full(8, 1.0) + np.linspace(0, 1e-7, 8)
    assert measure_error(reference, reference.astype(np.float32)) < 1e-4
    assert measure_error(reference, reference * 1.01) > 0.5


def test_integers_that_differ_are_said_to_be_so_many() -> None:
    classes = np.arange(8).reshape(2, 4)
    expected = Expectation(Extent(2), {}, {"labels": classes}, {"labels": 0.0})
    assert find_disagreement(expected, {"labels": classes.copy()}) is None
    said = find_disagreement(expected, {"labels": np.where(classes > 6, 0, classes)})
    assert said == "output 'labels' at batch 2 has other integers in 12.5% of its places"


def test_same_nan_in_both_is_agreement_and_integers_count_by_share():
    nan = np.array([1.0, np.nan, 3.0])
    assert measure_error(nan, nan) == 0.0
    assert measure_error(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert measure_error(np.ones((2, 3)), np.ones((2, 6))) == np.inf
    assert measure_error(np.ones((2, 3)), np.ones(3)) == np.inf


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_resized_batch_holds_samples_that_differ(batch):
    feeds = {"x": torch.arange(8.0).reshape(2, 4)}
    signature = describe_call(nn.Identity(), feeds, keyword=False, dynamic_batch=True)
    x = resize_feeds(feeds, signature, Extent(batch))["x"]
    assert len({tuple(row.tolist()) for row in x}) == batch


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int32])
def test_masks_of_further_samples_hide_no_more_of_the_start_than_given_ones(dtype):
    mask = torch.tensor([[1, 0, 1, 0, 0], [1, 0, 0, 0, 1]]).to(dtype)
    feeds = {"mask": mask, "ids": torch.tensor([[5, 1, 0, 2, 3], [1, 1, 4, 0, 0]])}
    signature = describe_call(Paired(), feeds, keyword=False, dynamic_batch=True)
    found = resize_feeds(feeds, signature, Extent(5))
    assert found["mask"].dtype == dtype
    assert found["mask"][:, :2].tolist() == [[1, 0]] * 5
    assert len({tuple(row.tolist()) for row in found["mask"]}) > 2
    assert found["mask"].sum(1).tolist() == [2] * 5
    assert found["ids"][2].tolist() == [5, 1, 0, 0, 3]  # no mask: each column from either sample


def test_categories_of_further_samples_stay_in_their_column() -> None:
    ids = torch.tensor([[1, 30, 2], [3, 40, 0]])
    signature = describe_call(nn.Identity(), {"x": ids}, keyword=False, dynamic_batch=True)
    found = resize_feeds({"x": ids}, signature, Extent(7))["x"]
    assert len({tuple(row.tolist()) for row in found}) > 3
    for column, given in zip(found.T, ids.T, strict=True):
        assert {*column.tolist()} == {*given.tolist()}
    images = torch.arange(24).reshape(2, 3, 4)
    signature = describe_call(nn.Identity(), {"x": images}, keyword=False, dynamic_batch=True)
    wider = resize_feeds({"x": images}, signature, Extent(3))["x"]
    assert torch.equal(wider[2][:, ::2], images[0][:, ::2])
    assert torch.equal(wider[2][:, 1::2], images[1][:, 1::2])


class Paired(nn.Module):
    def forward(self, mask, ids):
        return mask * ids


def test_tolerance_comes_from_what_float32_loses():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    feeds = {"x": torch.randn(2, 64)}
    signature = describe_call(net, feeds, keyword=False, dynamic_batch=True)
    tolerances = measure_tolerances(net, feeds, signature, 2)
    expected = expect(net, feeds, signature, extent=Extent(3), tolerances=tolerances)
    assert expected.tolerances == {"output": 1e-4}
    found = net(torch.from_numpy(expected.feeds["x"])).detach().numpy()
    assert find_disagreement(expected, {"output": found}) is None
    assert find_disagreement(expected, {"output": found * 1.01}) is not None


class _Cancelling(nn.Module):
    def forward(self, x):
        return (x + 3000.0) - 3000.0


def test_tolerance_grows_with_what_float32_loses():
    feeds = {"x": torch.randn(2, 640, generator=torch.Generator().manual_seed(0))}
    signature = describe_call(_Cancelling(), feeds, keyword=False, dynamic_batch=True)
    tolerance = measure_tolerances(_Cancelling(), feeds, signature, 2)["output"]
    assert 1.1e-4 < tolerance < 1e-3


def test_module_that_does_not_run_in_float64_gets_the_fixed_tolerance():
    class OnlyFloat32(nn.Module):
        def forward(self, x):
            return x @ torch.eye(4, dtype=torch.float32)

    feeds = {"x": torch.randn(2, 4)}
    signature = describe_call(OnlyFloat32(), feeds, keyword=False, dynamic_batch=True)
    assert measure_tolerances(OnlyFloat32(), feeds, signature, 2) == {"output": 1e-4}


def test_a_coarse_buffer_does_not_loosen_the_check_of_float32_weights() -> None:
    module = nn.Linear(4, 3)
    module.register_buffer("scale", torch.ones(1, dtype=torch.bfloat16))
    assert float_dtypes(module) == {torch.float32}


def test_one_number_is_measured_by_the_range_of_other_samples() -> None:
    lone, found = np.array([3e-6]), np.array([3.06e-6])
    assert measure_error(lone, found) == pytest.approx(2.0)  # over 1% of itself
    assert measure_error(lone, found, 0.75) == pytest.approx(8e-8)
    assert measure_error(lone, np.array([0.75]), 0.75) == pytest.approx(1.0, abs=1e-5)
    wide = np.array([0.0, 3.0])
    assert measure_error(wide, wide + 0.3, 0.75) == pytest.approx(0.1)


def test_each_of_thousands_of_samples_is_measured_by_the_range_of_all() -> None:
    rng = np.random.default_rng(0)
    reference = rng.uniform(-1, 3, (4096, 768))  # of which every pair would be 13 billion values
    missed = rng.choice([0.0, 1e-3, 2e-2], 4096)
    found = reference.copy()
    found[np.arange(4096), rng.integers(0, 768, 4096)] += missed
    found[7, 5] = np.nan
    missed[7] = np.inf
    errors = measure_sample_errors(reference, found)
    np.testing.assert_allclose(errors, missed / np.ptp(reference), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 4), (4, 4), (3, 5)])
def test_samples_of_another_shape_agree_in_none(shape: tuple[int, ...]) -> None:
    """As where a change of the inputs in their last digit changes how many things are found."""
    assert measure_sample_errors(np.ones((3, 4)), np.ones(shape)) == [np.inf] * 3
