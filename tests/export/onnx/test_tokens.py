"""Rank 4 becomes rank 3 with the same values bit by bit, and only where every pixel is alike."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export.onnx.tokens import flatten_tokens

WIDTH, HIDDEN = 6, 10


def _constants(seed: int = 0) -> list[onnx.TensorProto]:
    random = np.random.default_rng(seed)
    shapes = {
        "gamma": (WIDTH,),
        "beta": (WIDTH,),
        "w1": (WIDTH, HIDDEN),
        "b1": (HIDDEN,),
        "w2": (HIDDEN, WIDTH),
        "column": (5, 1),
    }
    return [
        numpy_helper.from_array(random.normal(0, 1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def _model(
    nodes: list[onnx.NodeProto], *outputs: str, size: tuple[int | str, int | str] = (7, 5)
) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH, *size])
    ys = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "net", [x], ys, _constants())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"n_{output}", **attributes)


def _block() -> list[onnx.NodeProto]:
    return [
        _node("Transpose", "x", "last", perm=[0, 2, 3, 1]),
        _node("LayerNormalization", "last gamma beta", "norm", axis=3),
        _node("MatMul", "norm w1", "fc1"),
        _node("Add", "fc1 b1", "biased"),
        _node("Gelu", "biased", "gelu"),
        _node("MatMul", "gelu w2", "fc2"),
        _node("Transpose", "fc2", "first", perm=[0, 3, 1, 2]),
        _node("Add", "first x", "y"),
    ]


def _run(model: onnx.ModelProto, batch: int = 2) -> list[np.ndarray]:
    x = np.random.default_rng(1).normal(0, 1, (batch, WIDTH, 7, 5)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


def _ranks(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {v.name: len(v.type.tensor_type.shape.dim) for v in inferred.value_info}


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


@pytest.mark.parametrize("batch", [1, 3])
def test_a_block_gives_the_same_bits_over_tokens(batch: int) -> None:
    model = _model(_block(), "y")
    flat = _copy(model)
    assert flatten_tokens(flat) == 1
    onnx.checker.check_model(flat, full_check=True)
    assert np.array_equal(_run(model, batch)[0], _run(flat, batch)[0])
    ranks = _ranks(flat)
    assert {ranks[name] for name in ("last_tokens", "norm", "fc1", "biased", "gelu")} == {3}
    assert {ranks[name] for name in ("last", "fc2", "first")} == {4}
    assert [node.op_type for node in flat.graph.node].count("Reshape") == 2


def test_onnx_s_own_reference_agrees() -> None:
    model = _model(_block(), "y")
    flat = _copy(model)
    flatten_tokens(flat)
    x = np.random.default_rng(1).normal(0, 1, (2, WIDTH, 7, 5)).astype(np.float32)
    expected, got = (ReferenceEvaluator(item).run(None, {"x": x})[0] for item in (model, flat))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_what_is_read_outside_is_there_in_both_forms() -> None:
    nodes = [*_block(), _node("ReduceMean", "norm", "mean", keepdims=0)]
    model = _model(nodes, "y", "mean", "biased")
    flat = _copy(model)
    assert flatten_tokens(flat) == 1
    for expected, got in zip(_run(model), _run(flat), strict=True):
        assert np.array_equal(expected, got)
    assert {"norm", "norm_tokens", "biased", "biased_tokens"} <= {
        name for node in flat.graph.node for name in node.output
    }


def test_every_node_keeps_its_name_and_a_second_time_changes_nothing() -> None:
    model = _model(_block(), "y")
    flat = _copy(model)
    flatten_tokens(flat)
    names = {node.name for node in model.graph.node}
    assert names <= {node.name for node in flat.graph.node}
    before = flat.SerializeToString()
    assert flatten_tokens(flat) == 0
    assert flat.SerializeToString() == before


def _turned() -> list[onnx.NodeProto]:
    return [
        _node("Transpose", "x", "last", perm=[0, 3, 2, 1]),
        _node("LayerNormalization", "last gamma beta", "y"),
    ]


def _no_norm() -> list[onnx.NodeProto]:
    return [
        _node("Transpose", "x", "last", perm=[0, 2, 3, 1]),
        _node("Gelu", "last", "y"),
    ]


def _norm_over_the_plane() -> list[onnx.NodeProto]:
    return [
        _node("Transpose", "x", "last", perm=[0, 2, 3, 1]),
        _node("Add", "last column", "shifted"),
        _node("LayerNormalization", "shifted gamma beta", "y"),
    ]


@pytest.mark.parametrize("nodes", [_turned(), _no_norm(), _norm_over_the_plane()])
def test_what_is_not_alike_for_every_pixel_is_left(nodes: list[onnx.NodeProto]) -> None:
    model = _model(nodes, "y")
    before = model.SerializeToString()
    assert flatten_tokens(model) == 0
    assert model.SerializeToString() == before


def test_a_dynamic_size_is_left() -> None:
    model = _model(_block(), "y", size=("height", "width"))
    assert flatten_tokens(model) == 0


def test_the_file_of_torch_s_exporter_is_flattened(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from export.capture.program import capture
    from export.onnx.exporter import to_onnx

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
            self.norm = torch.nn.LayerNorm(6)
            self.fc1, self.fc2 = torch.nn.Linear(6, 12), torch.nn.Linear(12, 6)

        def forward(self, x):
            y = self.norm(self.conv(x).permute(0, 2, 3, 1))
            y = self.fc2(torch.nn.functional.gelu(self.fc1(y)))
            return x + y.permute(0, 3, 1, 2)

    torch.manual_seed(0)
    block = Block().eval()
    program = capture(block, {"x": torch.zeros(2, 6, 7, 5)}, keyword=False, dynamic_batch=True)
    model = to_onnx(program, tmp_path / "m.onnx", input_names=["x"], output_names=["y"])
    assert "Reshape" in {node.op_type for node in onnx.load(model.path).graph.node}
    x = np.random.default_rng(1).normal(0, 1, (3, 6, 7, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = block.double()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=0, atol=1e-5)
