"""Files of every size, and what is read from them without their weights."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_nets import affine_relu

from export import model_cost
from export.errors import LoadError
from export.onnx.execute import ExposedModel
from export.onnx.files import (
    external_files,
    read_model,
    read_opset,
    serialize_model,
    write_model,
)
from export.onnx.tensor_types import float_tensors


def test_a_model_over_the_limit_is_written_with_external_data_and_runs(tmp_path: Path) -> None:
    model = affine_relu()
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
    x = np.random.default_rng(1).normal(0, 1, (5, 4)).astype(np.float32)
    with ExposedModel(path, ["h"]) as exposed:
        got = exposed({"x": x})["h"]
    np.testing.assert_allclose(got, x.astype(np.float64) @ wide, rtol=0, atol=1e-5)
    write_model(model, path)
    assert not path.with_name("m.onnx.data").exists()


@pytest.mark.slow
def test_a_model_beyond_two_gigabytes_is_typed_counted_written_and_run(tmp_path: Path) -> None:
    model = affine_relu()
    columns = 2**31 // 16 + 1000
    model.graph.initializer[0].CopyFrom(
        TensorProto(
            name="w", data_type=TensorProto.FLOAT, dims=[4, columns], raw_data=bytes(16 * columns)
        )
    )
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = columns
    assert float_tensors(model) == ("x", "h", "a", "y")
    assert model_cost(model, batch=3).macs == 3 * 4 * columns
    write_model(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 10_000
    with ExposedModel(tmp_path / "m.onnx", ["h"]) as exposed:
        assert exposed({"x": np.ones((1, 4), np.float32)})["h"].shape == (1, columns)


@pytest.mark.parametrize("content", [None, b"not a model at all"])
def test_an_unreadable_file_is_a_load_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match="cannot be read as an ONNX model"):
        read_model(path)


def test_external_data_is_found_beside_its_file_and_nowhere_else(tmp_path: Path) -> None:
    model, path = affine_relu(), tmp_path / "m.onnx"
    write_model(model, path)
    assert external_files(path) == ()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 4000), "f4"), "w"))
    write_model(model, path, limit=10_000)
    assert external_files(path) == (tmp_path / "m.onnx.data",)
    stored = onnx.load(path, load_external_data=False)
    stored.graph.initializer[0].external_data[0].value = "../m.onnx.data"
    path.write_bytes(stored.SerializeToString())
    with pytest.raises(LoadError, match=r"'\.\./m\.onnx\.data', which is not beside it"):
        external_files(path)


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_the_opset_is_that_of_onnx_under_both_names(domain: str, tmp_path: Path) -> None:
    model = affine_relu()
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1000))
    model.opset_import.append(helper.make_opsetid(domain, 17))
    onnx.save(model, tmp_path / "m.onnx")
    assert read_opset(tmp_path / "m.onnx") == 17


def test_a_message_is_the_file_up_to_the_limit_and_none_above(tmp_path: Path) -> None:
    model = affine_relu()
    size = len(model.SerializeToString())
    assert serialize_model(model, limit=size) == model.SerializeToString()
    assert serialize_model(model, limit=size - 1) is None
    assert serialize_model(model, limit=10) is None  # its weights alone are more
    write_model(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == serialize_model(model)
