"""What OpenVINO says, condensed: each refused operator once, no places in its source."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from versions import since

from deploy.engines.base import EngineSpec
from deploy.engines.openvino import OpenVinoEngine
from deploy.engines.openvino_messages import condense_message
from export.errors import EngineError

pytest.importorskip("openvino")


def open_graph(nodes: list[onnx.NodeProto], folder: Path) -> str:
    """What is said of a model that cannot be opened."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ours", 1)]
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    with pytest.raises(EngineError) as caught:
        OpenVinoEngine(EngineSpec("openvino", "fp32", str(path), threads=1))
    return str(caught.value)


@since("openvino", "2026.4", "names what it does not know in other words")
def test_operators_that_it_does_not_know_are_named_and_no_folder(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Warp", ["x"], ["a"], domain="ours"),
        helper.make_node("Fold", ["a"], ["y"], domain="ours"),
    ]
    said = open_graph(nodes, tmp_path)
    assert said.startswith("OpenVINO cannot open model.onnx: it has no form of 2 kinds")
    assert "Warp" in said
    assert "Fold" in said
    for noise in (str(tmp_path), ".cpp", "Check '", "Exception from"):
        assert noise not in said


def test_operators_that_it_refuses_stand_once_with_the_reason() -> None:
    text = """Exception from src/inference/src/cpp/core.cpp:84:
Check 'false' failed at src/frontends/common_translators/src/report.cpp:151:
FrontEnd API failed with OpConversionFailure:
Model wasn't fully converted. Failed operations detailed log:
-- ReduceSum-20 with a message:
Check '(supported.find(x) != supported.end())' failed at src/op/reduce.cpp:134:
While validating ONNX node '<Node(ReduceSum): row_32>':
Unsupported input type dynamic

-- Slice-20 with a message:
While validating ONNX node '<Node(Slice): start>':
Exception from src/core/element_visitor.hpp:150:
Element not supported

Summary:
-- Conversion is failed for: ReduceSum-20, Slice-20
"""
    assert condense_message(text) == (
        "it has no form of 2 kinds of operators: ReduceSum (Unsupported input type dynamic); "
        "Slice (Element not supported)"
    )


def test_other_words_are_kept_in_one_line() -> None:
    text = "Exception from src/a.cpp:84:\nCheck 'ok' failed at src/b.cpp:1:\nNo memory\nfor it\n"
    assert condense_message(text) == "No memory for it"
    assert condense_message("Exception from src/a.cpp:84:") == "Exception from src/a.cpp:84:"
