"""Places in the user's model that are named where something fails."""

import linecache
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import export
from export.capture.locating import describe_place, list_failed_lines, list_running_lines


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 0:
            raise ValueError("nothing here")
        return x


class Late(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, x.new_zeros(3, 99), bias=None) + sum(
            [0, 0, 0, 0, 0, 0]
        )


def fail(net: nn.Module) -> str:
    try:
        net(torch.zeros(2, 4))
    except (ValueError, RuntimeError) as error:
        return describe_place(net, list_failed_lines(error.__traceback__))
    raise AssertionError("it does not fail")


def line_of(text: str) -> int:
    with open(__file__, encoding="utf-8") as file:
        return next(n for n, line in enumerate(file, 1) if text in line)


def test_the_innermost_module_and_line_are_named() -> None:
    said = fail(nn.Sequential(nn.Linear(4, 4), nn.Sequential(Failing())))
    line = line_of("raise ValueError(")
    assert said == f" at '1.0' (test_locating.py, line {line}: raise ValueError(\"nothing here\"))"


def test_the_model_itself_has_a_line_alone() -> None:
    assert fail(Failing()).startswith(" (test_locating.py, line ")


def test_lines_of_torch_are_not_named_and_long_ones_are_cut() -> None:
    said = fail(nn.Sequential(Late()))
    line = line_of("return torch.nn.functional.linear(")
    assert said.startswith(
        f" at '0' (test_locating.py, line {line}: return torch.nn.functional.lin"
    )
    assert len(said) < 150


def test_a_colon_is_left_out() -> None:
    lines = [(sys._getframe(), line_of("if x.shape[0] > 0:"))]
    assert describe_place(nn.ReLU(), lines).endswith(": if x.shape[0] > 0)")


def test_what_has_no_file_is_not_named() -> None:
    frames: dict[str, object] = {}
    exec("import sys\nframe = sys._getframe()", frames)
    assert describe_place(nn.ReLU(), [(frames["frame"], 2)]) == ""


def locate_in(file: str) -> str:
    frames: dict[str, object] = {}
    exec(compile("import sys\nframe = sys._getframe()", file, "exec"), frames)
    return describe_place(nn.ReLU(), [(frames["frame"], 2)])


@pytest.mark.parametrize("package", [torch, export])
def test_a_package_whose_name_only_begins_alike_is_named(package: ModuleType) -> None:
    folder = Path(str(package.__file__)).parent
    assert locate_in(f"{folder}/inner/net.py") == ""
    assert locate_in(f"{folder}vision/net.py") == " (net.py, line 2)"


def test_a_line_that_a_notebook_keeps_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "<ipython-input-7-0123456789ab>"
    kept = (None, None, ["import sys\n", "frame = sys._getframe()\n"], name)
    monkeypatch.setitem(linecache.cache, name, kept)
    assert locate_in(name) == f" ({name}, line 2: frame = sys._getframe())"


def test_running_lines_end_at_the_call_that_was_asked_for() -> None:
    def outer() -> list[str]:
        return inner()

    def inner() -> list[str]:
        lines = list_running_lines(sys._getframe(), outer)
        return [frame.f_code.co_name for frame, _ in lines]

    assert outer() == ["inner"]
