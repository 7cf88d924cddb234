"""What every engine of an ONNX file keeps to: its signature, and whose memory is whose."""

from pathlib import Path

import numpy as np
import pytest
from tiny import LAYOUTS, answer, draw, lay_out

from deploy.engines import EngineSpec, open_engine

TOLERANCES = {"onnxruntime": 1e-5, "openvino": 1e-4}

every_engine = pytest.mark.parametrize("name", TOLERANCES)


def spec(name: str, path: Path) -> EngineSpec:
    return EngineSpec(name, "fp32", str(path), 1)


@every_engine
def test_the_signature_is_read_from_the_file(tiny_onnx: Path, name: str) -> None:
    with open_engine(spec(name, tiny_onnx)) as engine:
        assert [str(each) for each in engine.inputs] == ["x:batchx4:float32"]
        assert [str(each) for each in engine.outputs] == ["logits:batchx3:float32"]


@every_engine
def test_outputs_belong_to_the_caller(tiny_onnx: Path, name: str) -> None:
    x = draw(4)
    with open_engine(spec(name, tiny_onnx)) as engine:
        first = engine({"x": x})["logits"]
        kept = first.copy()
        engine({"x": -3 * x})
        np.testing.assert_array_equal(first, kept)
        first[:] = 0
    np.testing.assert_array_equal(first, 0)
    first[:] = 1  # where the engine is closed, too
    np.testing.assert_array_equal(first, 1)


@every_engine
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_input_is_right(tiny_onnx: Path, name: str, layout: str) -> None:
    x = lay_out(draw(4), layout)
    limit = TOLERANCES[name]
    with open_engine(spec(name, tiny_onnx)) as engine:
        np.testing.assert_allclose(engine({"x": x})["logits"], answer(x), rtol=limit, atol=limit)
