"""What torch makes anew for each decomposition is made once, and is right every time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import fake_impls
from torch.export import ExportedProgram, exported_program

from export.capture.program import capture, contain_noise
from export.onnx import kept_overrides
from export.onnx.exporter import to_onnx
from export.onnx.kept_overrides import keep_overrides

aten = torch.ops.aten


class Spectra(nn.Module):
    """Operators of torch that are composed, and one that is composed of others here."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.gelu(torch.fft.rfft(x).abs()) + torch.cummax(x, -1).values[..., :5]


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_overrides, "_KEPT", {})


def record() -> ExportedProgram:
    return capture(Spectra().eval(), {"x": torch.randn(2, 8)}, keyword=False, dynamic_batch=True)


def decompose(program: ExportedProgram, *table: Any) -> ExportedProgram:
    with contain_noise():
        return program.run_decompositions(*table)


def write(path: Path) -> bytes:
    to_onnx(record(), path, input_names=["x"], output_names=["y"])
    return path.read_bytes()


def list_kernels() -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Kernels of Python by operator, and rules that tell results without values."""
    operators = torch._export.utils._collect_all_valid_cia_ops()
    kernels = {operator: dict(operator.py_kernels) for operator in operators}
    return kernels, dict(fake_impls.op_implementations_dict)


@pytest.mark.thorough
def test_files_are_the_same_as_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / f"{number}.onnx") for number in range(2)]
    assert kept_overrides._KEPT
    with monkeypatch.context() as patch:
        patch.setattr(kept_overrides, "_KEPT", Forgetful())
        files.append(write(tmp_path / "plain.onnx"))
    assert files[0] == files[1] == files[2]


class Forgetful(dict[Any, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def test_kernels_are_made_once_and_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    made, original = [], exported_program._override_composite_implicit_decomp

    def count(compositions: dict[Any, Any]) -> Any:
        made.append(len(compositions))
        return original(compositions)

    monkeypatch.setattr(exported_program, "_override_composite_implicit_decomp", count)
    program = record()
    decompose(program)  # which imports more of torch
    made.clear()
    kept_overrides._KEPT.clear()
    before = list_kernels()
    with keep_overrides():
        for _ in range(2):
            decompose(program)
            assert list_kernels() == before
    assert exported_program._override_composite_implicit_decomp is count
    assert made[0] > 0
    assert made[1] == 0


def test_another_composition_of_an_operator_is_used() -> None:
    module = Composed().eval()
    program = capture(module, {"x": torch.ones(2, 3)}, keyword=False, dynamic_batch=True)
    with keep_overrides():
        for factor in (2, 3, 2):
            found = decompose(program, {aten.linear.default: scaled_by(factor)})
            answer = found.module()(torch.ones(2, 3))
            torch.testing.assert_close(answer, factor * module(torch.ones(2, 3)))


class Composed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def scaled_by(factor: int) -> Any:
    def compose(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return x @ weight.mT * factor

    return compose


def test_kernels_that_an_operator_got_meanwhile_stay() -> None:
    operator = aten.linear.default
    program = record()
    key = torch._C.DispatchKey.Meta

    def kernel(*args: Any) -> Any:
        raise NotImplementedError

    with keep_overrides():
        decompose(program)
        operator.py_impl(key)(kernel)
        try:
            decompose(program)
            assert operator.py_kernels[key] is kernel
        finally:
            del operator.py_kernels[key]
            operator._dispatch_cache.clear()
    assert kept_overrides._KEPT[operator].before[key] is kernel


def test_a_decomposition_that_fails_leaves_nothing() -> None:
    def fail(*args: Any) -> Any:
        raise ZeroDivisionError

    program = record()
    decompose(program)
    before = list_kernels()
    with keep_overrides():
        decompose(program)
        with pytest.raises(ZeroDivisionError):
            decompose(program, {aten.fft_rfft.default: fail})
    assert list_kernels() == before


def test_a_release_without_these_parts_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(exported_program, "_override_composite_implicit_decomp")
    with keep_overrides():
        assert not hasattr(exported_program, "_override_composite_implicit_decomp")
