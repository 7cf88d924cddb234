"""Nodes keep the line of the user's source, which names those that no module made."""

import inspect
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from export import to_onnx
from export.artifacts import OnnxModel
from export.capture.program import capture
from export.onnx.cost import model_cost, read_path
from export.onnx.graph import SOURCE, node_label, read_source
from export.onnx.source_traces import condense_traces


class Mixer(nn.Module):
    """A product that forward itself writes, before one of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(6, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed = x @ self.mix
        return self.head(mixed.relu())


def find_line(text: str) -> str:
    lines, first = inspect.getsourcelines(Mixer)
    (offset,) = (number for number, line in enumerate(lines) if text in line)
    return f"{Path(__file__).name}:{first + offset}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    program = capture(Mixer().eval(), {"x": torch.randn(2, 6)}, keyword=False, dynamic_batch=True)
    path = tmp_path_factory.mktemp("traces") / "model.onnx"
    return to_onnx(program, path, input_names=["x"], output_names=["y"])


def test_a_node_has_the_innermost_line_that_is_not_torchs(model: OnnxModel) -> None:
    nodes = {node.op_type: node for node in onnx.load(model.path).graph.node}
    assert read_source(nodes["MatMul"]) == find_line("x @ self.mix")
    assert read_source(nodes["Relu"]) == read_source(nodes["Gemm"]) == find_line("self.head(mixed")


def test_what_no_module_made_goes_by_its_line(model: OnnxModel) -> None:
    nodes = {node.op_type: node for node in onnx.load(model.path).graph.node}
    product, head = nodes["MatMul"], nodes["Gemm"]
    line = find_line("x @ self.mix")
    assert read_path(product) == node_label(product) == f"{product.name} ({line})"
    assert (read_path(head), node_label(head)) == ("head", f"head ({head.name})")
    assert [layer.name for layer in model_cost(model).layers] == [read_path(product), "head"]


def test_no_path_of_the_machine_is_in_the_file(model: OnnxModel) -> None:
    content = model.path.read_bytes()
    for folder in (Path(__file__).parent, Path(torch.__file__).parent, Path.cwd()):
        assert str(folder).encode() not in content


def node(name: str, trace: str | None) -> ir.Node:
    found = ir.Node("", "Relu", [ir.Value(name=f"{name}_in")], name=name)
    if trace is not None:
        found.metadata_props["pkg.torch.onnx.stack_trace"] = trace
    return found


def test_frames_of_foreign_folders_are_passed_over_in_functions_too() -> None:
    own = 'File "/home/me/nets/net.py", line 9, in forward\n    x\n'
    theirs = '  File "/lib/torch/nn/conv.py", line 565, in forward\n    y'
    inner = node("inner", own + theirs)
    nodes = [node("a", own + theirs), node("b", theirs), node("c", None), node("d", "no frame")]
    function = ir.Function("f", "f", graph=ir.Graph([], [], nodes=[inner], name="f"), attributes=[])
    model = ir.Model(ir.Graph([], [], nodes=nodes, name="g"), ir_version=10, functions=[function])
    condense_traces(model, ("/lib/torch/",))
    assert [each.metadata_props.get(SOURCE) for each in (*nodes, inner)] == [
        "net.py:9",
        None,
        None,
        None,
        "net.py:9",
    ]
    assert all("pkg.torch.onnx.stack_trace" not in each.metadata_props for each in nodes)
