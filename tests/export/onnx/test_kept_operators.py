"""What the exporter knows of operators is read once, and no export changes another's."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._export import utils
from torch.onnx._internal.exporter import _registration

from export.onnx import kept_operators
from export.onnx.kept_operators import keep_operators

RELU = torch.ops.aten.relu.default


class Registry(_registration.ONNXRegistry):
    """A table of its own, which says how often all of it was read."""

    reads = 0

    @classmethod
    def from_torchlib(cls, opset_version: int = 18) -> "Registry":
        Registry.reads += 1
        registry = cls()
        registry._opset_version = opset_version
        registry.functions = {"aten::relu": [], "aten::other": [f"at {opset_version}"]}
        return registry


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> type[Registry]:
    monkeypatch.setattr(kept_operators, "_TABLES", {})
    monkeypatch.setattr(_registration, "ONNXRegistry", Registry)
    monkeypatch.setattr(Registry, "reads", 0)
    return Registry


def test_a_table_is_read_once_for_each_opset(table: type[Registry]) -> None:
    for _ in range(2):
        with keep_operators():
            for opset in (18, 23):
                for found in (table.from_torchlib(opset_version=opset), table.from_torchlib(opset)):
                    assert found.opset_version == opset
                    assert found.functions["aten::other"] == [f"at {opset}"]
    assert table.reads == 4  # each opset by name and by place


def test_operators_of_torchvision_that_come_later_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept_operators, "_TABLES", {})
    name = "torchvision::roi_align"
    with keep_operators():
        before = _registration.ONNXRegistry.from_torchlib()
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        if name not in torch._C._dispatch_get_all_op_names():
            assert name not in before.functions
            library.define("roi_align(Tensor x, Tensor rois, float s, int h, int w) -> Tensor")
        with keep_operators():
            after = _registration.ONNXRegistry.from_torchlib()
        assert after.functions.keys() == _registration.ONNXRegistry.from_torchlib().functions.keys()
        assert name in after.functions
    finally:
        library._destroy()


def test_what_one_export_registers_no_other_has(table: type[Registry]) -> None:
    def translate(x: object) -> object:
        return x

    with keep_operators():
        first, second = table.from_torchlib(), table.from_torchlib()
        first.register_op(RELU, translate)
        third = table.from_torchlib()
    assert first.get_decomps(RELU)[0].onnx_function is translate
    assert second.get_decomps(RELU) == third.get_decomps(RELU) == []


def test_operators_are_looked_up_where_there_are_more_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names, looked = ["aten::a"], []
    monkeypatch.setattr(kept_operators, "_looked_up", [])
    monkeypatch.setattr(utils, "_materialize_cpp_cia_ops", lambda: looked.append(list(names)))
    monkeypatch.setattr(
        torch._C, "_dispatch_get_registrations_for_dispatch_key", lambda key: list(names)
    )
    with keep_operators():
        utils._materialize_cpp_cia_ops()
        utils._materialize_cpp_cia_ops()
    names.append("mine::b")
    for _ in range(2):
        with keep_operators():
            utils._materialize_cpp_cia_ops()
    assert looked == [["aten::a"], ["aten::a", "mine::b"]]


def fail_within() -> None:
    with keep_operators():
        raise ZeroDivisionError


def test_torch_is_as_it_was_afterwards(table: type[Registry]) -> None:
    read, look_up = vars(table)["from_torchlib"], utils._materialize_cpp_cia_ops
    with pytest.raises(ZeroDivisionError):
        fail_within()
    assert vars(table)["from_torchlib"] is read
    assert utils._materialize_cpp_cia_ops is look_up


def test_a_release_without_these_parts_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_registration, "ONNXRegistry")
    monkeypatch.delattr(utils, "_materialize_cpp_cia_ops")
    with keep_operators():
        assert not hasattr(_registration, "ONNXRegistry")
        assert not hasattr(utils, "_materialize_cpp_cia_ops")


SCRIPT = """
import sys
from pathlib import Path

import torch
from torch import nn

from export.capture.program import capture
from export.onnx.exporter import to_onnx
from torch.onnx._internal.exporter import _registration

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.LayerNorm(144)).eval()
program = capture(net, {"x": torch.zeros(2, 3, 8, 8)}, keyword=False, dynamic_batch=True)
infer, counts = _registration._schemas.op_signature_from_function, []

def count(*args, **options):
    counts[-1] += 1
    return infer(*args, **options)

_registration._schemas.op_signature_from_function = count
for name in ("first.onnx", "second.onnx"):
    counts.append(0)
    to_onnx(program, Path(sys.argv[1], name), input_names=["x"], output_names=["y"])
print(*counts)
"""


@pytest.mark.thorough
def test_the_second_export_of_a_process_reads_nothing_and_is_the_same(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path], capture_output=True, text=True, check=True
    )
    first, second = map(int, run.stdout.split())
    assert first > 400
    assert second < 10  # translations of our own
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
