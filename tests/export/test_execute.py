"""Exposed tensors against numpy closed forms; files of every size."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.errors import EngineError, LoadError
from export.execute import ExposedModel, element_types, float_tensors, read_model, write_model


def _affine_relu() -> onnx.ModelProto:
    """y = relu(x @ w) * 2, its shape computed beside it; h and a are hidden."""
    weight = np.random.default_rng(0).normal(0, 1, (4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Constant", [], ["two"], value_float=2.0),
            helper.make_node("Mul", ["a", "two"], ["y"]),
            helper.make_node("Shape", ["y"], ["shape"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _feed(batch: int = 5) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(0, 1, (batch, 4)).astype(np.float32)}


def test_exposes_inputs_hidden_tensors_and_outputs() -> None:
    model = _affine_relu()
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
    model = _affine_relu()
    before = model.SerializeToString()
    write_model(model, tmp_path / "m.onnx")
    content = (tmp_path / "m.onnx").read_bytes()
    for source in (model, tmp_path / "m.onnx"):
        with ExposedModel(source, ["h"], threads=1) as exposed:
            assert exposed(_feed(2))["h"].shape == (2, 3)
        assert float_tensors(source) == ("x", "h", "a", "y")
    assert model.SerializeToString() == before
    assert (tmp_path / "m.onnx").read_bytes() == content


@pytest.mark.parametrize("name", ["nowhere", "w", "two_"])
def test_names_the_tensor_that_is_not_there(name: str) -> None:
    with pytest.raises(EngineError, match=f"no activation tensor named '{name}'"):
        ExposedModel(_affine_relu(), ["h", name])


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
        ExposedModel(_affine_relu(), ["h"]) as exposed,
        pytest.raises(EngineError, match="could not run the model on this batch"),
    ):
        exposed(feeds)


def test_is_closed_after_its_block() -> None:
    with ExposedModel(_affine_relu(), ["h"]) as exposed:
        pass
    with pytest.raises(EngineError, match="closed"):
        exposed(_feed())


def test_maps_a_broken_model_to_an_engine_error() -> None:
    model = _affine_relu()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(EngineError, match="cannot open the model"):
        ExposedModel(model, ["a"])


def test_float_tensors_leaves_integers_and_constants_out() -> None:
    assert float_tensors(_affine_relu()) == ("x", "h", "a", "y")
    assert element_types(_affine_relu())["shape"] == TensorProto.INT64


def test_a_model_over_the_limit_is_written_with_external_data_and_runs(tmp_path: Path) -> None:
    model = _affine_relu()
    wide = np.random.default_rng(2).normal(0, 1, (4, 4000)).astype(np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(wide, "w"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4000
    path = tmp_path / "deep" / "m.onnx"
    for _ in range(2):  # writing twice must not append to the data
        write_model(model, path, limit=10_000)
    assert path.stat().st_size < 2_000
    assert path.with_name("m.onnx.data").stat().st_size == pytest.approx(wide.nbytes, rel=0.3)
    assert len(model.graph.initializer[0].raw_data) == wide.nbytes
    np.testing.assert_array_equal(
        numpy_helper.to_array(read_model(path).graph.initializer[0]), wide
    )
    with ExposedModel(path, ["h"]) as exposed:
        got = exposed(_feed())["h"]
    np.testing.assert_allclose(got, _feed()["x"].astype(np.float64) @ wide, rtol=0, atol=1e-5)
    write_model(model, path)
    assert not path.with_name("m.onnx.data").exists()


@pytest.mark.slow
def test_a_model_beyond_two_gigabytes_is_typed_written_and_run(tmp_path: Path) -> None:
    model = _affine_relu()
    columns = 2**31 // 16 + 1000
    model.graph.initializer[0].CopyFrom(
        TensorProto(
            name="w", data_type=TensorProto.FLOAT, dims=[4, columns], raw_data=bytes(16 * columns)
        )
    )
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = columns
    assert float_tensors(model) == ("x", "h", "a", "y")
    write_model(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 10_000
    with ExposedModel(tmp_path / "m.onnx", ["h"]) as exposed:
        assert exposed(_feed(1))["h"].shape == (1, columns)


@pytest.mark.parametrize("content", [None, b"not a model at all"])
def test_an_unreadable_file_is_a_load_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match="cannot be read as an ONNX model"):
        read_model(path)
