"""Exposed tensors against numpy closed forms."""

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from onnx_nets import affine_relu

from export.errors import EngineError, LoadError
from export.onnx.execute import ExposedModel
from export.onnx.files import write_model
from export.onnx.tensor_types import float_tensors


def _feed(batch: int = 5) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(0, 1, (batch, 4)).astype(np.float32)}


def test_exposes_inputs_hidden_tensors_and_outputs() -> None:
    model = affine_relu()
    weight = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    with ExposedModel(model, ["y", "x", "h", "a", "h"]) as exposed:
        values = exposed(_feed())
    hidden = _feed()["x"].astype(np.float64) @ weight
    assert set(values) == {"y", "x", "h", "a"}
    np.testing.assert_array_equal(values["x"], _feed()["x"])
    np.testing.assert_allclose(values["h"], hidden, rtol=0, atol=1e-5)
    np.testing.assert_allclose(values["a"], np.maximum(hidden, 0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(values["y"], 2 * np.maximum(hidden, 0), rtol=0, atol=1e-5)
    assert np.abs(values["y"] - values["a"]).max() > 0.1  # the tolerance tells tensors apart


def test_leaves_the_callers_model_and_file_as_they_are(tmp_path: Path) -> None:
    model = affine_relu()
    before = model.SerializeToString()
    write_model(model, tmp_path / "m.onnx")
    content = (tmp_path / "m.onnx").read_bytes()
    for source in (model, tmp_path / "m.onnx"):
        with ExposedModel(source, ["h"], threads=1) as exposed:
            assert exposed(_feed(2))["h"].shape == (2, 3)
        assert float_tensors(source) == ("x", "h", "a", "y")
    assert model.SerializeToString() == before
    assert (tmp_path / "m.onnx").read_bytes() == content


@pytest.mark.parametrize("limit", [10, 2**20])
def test_a_file_is_opened_as_it_is_where_its_outputs_are_all_that_is_asked(
    tmp_path: Path, limit: int
) -> None:
    path, model = tmp_path / "m.onnx", affine_relu()
    write_model(model, path, limit=limit)  # with external data, and without
    with ExposedModel(model, ["y", "x"]) as ours, ExposedModel(path, ["y", "x"]) as theirs:
        expected, found = ours(_feed()), theirs(_feed())
    assert {*found} == {"x", "y"}
    np.testing.assert_array_equal(found["y"], expected["y"])
    path.write_bytes(b"no model")
    with pytest.raises((EngineError, LoadError)):
        ExposedModel(path, ["y"])


@pytest.mark.parametrize("name", ["nowhere", "w", "two_"])
def test_names_the_tensor_that_is_not_there(name: str) -> None:
    with pytest.raises(EngineError, match=f"no activation tensor named '{name}'"):
        ExposedModel(affine_relu(), ["h", name])


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"z": np.zeros((1, 4), np.float32)},
        {"x": np.zeros((1, 7), np.float32)},
        {"x": np.zeros((1, 4), np.float64)},
    ],
)
def test_maps_a_bad_feed_to_an_engine_error(feeds: dict[str, np.ndarray]) -> None:
    with (
        ExposedModel(affine_relu(), ["h"]) as exposed,
        pytest.raises(EngineError, match="could not run the model on this batch"),
    ):
        exposed(feeds)


def test_is_closed_after_its_block() -> None:
    with ExposedModel(affine_relu(), ["h"]) as exposed:
        pass
    with pytest.raises(EngineError, match="closed"):
        exposed(_feed())


def test_maps_a_broken_model_to_an_engine_error() -> None:
    model = affine_relu()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(EngineError, match="cannot open the model"):
        ExposedModel(model, ["a"])
