"""What shape inference says of tensors, weights of any size left out."""

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx_nets import affine_relu

import export.onnx.tensor_types as tensor_types
from export.onnx.tensor_types import element_types, float_ranks, float_shapes, float_tensors


def test_float_tensors_leaves_integers_and_constants_out() -> None:
    assert float_tensors(affine_relu()) == ("x", "h", "a", "y")
    assert element_types(affine_relu())["shape"] == TensorProto.INT64


def test_shapes_have_none_where_a_size_is_not_known() -> None:
    shapes = float_shapes(affine_relu())
    assert shapes["h"] == (None, 3)
    assert float_ranks(affine_relu())["h"] == 2


def test_without_its_weights_a_model_is_typed_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = affine_relu()
    wide = np.ones((4, 3000), np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(wide, "w"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3000
    before, types = model.SerializeToString(), element_types(model)
    monkeypatch.setattr(tensor_types, "_FEW_BYTES", 10_000)
    light = tensor_types.without_weights(model)
    assert light.ByteSize() < 10_000 < model.ByteSize()
    assert element_types(model) == types
    assert float_shapes(model)["a"] == (None, 3000)
    assert model.SerializeToString() == before
