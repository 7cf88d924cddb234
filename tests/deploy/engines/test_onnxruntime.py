"""ONNX Runtime answers as the closed form does, and what it returns belongs to the caller."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny import answer, draw

from deploy.engines import EngineSpec, open_engine
from export.errors import EngineError


def spec(path: Path, precision: str = "fp32") -> EngineSpec:
    return EngineSpec("onnxruntime", precision, str(path), 1)


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 64])
def test_every_batch_is_right(tiny_onnx: Path, batch: int) -> None:
    x = draw(batch)
    with open_engine(spec(tiny_onnx)) as engine:
        np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=1e-5, atol=1e-5)


def test_an_input_passed_through_is_no_view_of_the_callers(tmp_path: Path) -> None:
    info = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in ("x", "y")
    ]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", info[:1], info[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "identity.onnx",
    )
    x = draw(2)
    with open_engine(spec(tmp_path / "identity.onnx")) as engine:
        y = engine({"x": x})["y"]
    kept = x.copy()
    x[:] = 0
    np.testing.assert_array_equal(y, kept)


@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_a_file_that_is_no_model_is_an_engine_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=r"cannot open .*broken\.onnx"):
        open_engine(spec(path))


def test_a_failure_inside_the_model_is_an_engine_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    info = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]),
        helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    graph = helper.make_graph([node], "g", info[:2], info[2:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "reshape.onnx",
    )
    with open_engine(spec(tmp_path / "reshape.onnx")) as engine:
        good = engine({"x": draw(2), "shape": np.array([4, 2])})
        assert good["y"].shape == (4, 2)
        with pytest.raises(EngineError, match="failed on this input"):
            engine({"x": draw(2), "shape": np.array([3, 2])})
    assert capfd.readouterr() == ("", "")  # a server's log is JSON, a line an event


def test_a_wrong_input_is_said_before_the_backend_sees_it(tiny_onnx: Path) -> None:
    with (
        open_engine(spec(tiny_onnx)) as engine,
        pytest.raises(EngineError, match="dtype float64; the engine takes float32"),
    ):
        engine({"x": draw(2).astype(np.float64)})
