"""Every way to hand `deploy build` something that it cannot use: message and exit code."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import Cli
from torch import nn

FACTORY = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x)

def make():
    return Own()

def broken():
    raise RuntimeError("no weights today")

def batches():
    yield torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
    raise OSError("the disk went away")
"""


@pytest.fixture
def own(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's in the working directory; its name."""
    name = "own_package_for_errors"
    Path(f"{name}.py").write_text(FACTORY, encoding="utf-8")
    monkeypatch.syspath_prepend(os.getcwd())
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def _save_linear() -> Path:
    path = Path("linear.pt")
    torch.save(nn.Sequential(nn.Linear(4, 3)).eval(), path)
    return path


class Runs:
    """A pickle that would run a shell command through a function that torch owns."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        from torch.utils.collect_env import run

        return run, ("touch ran",)


def _refused(cli: Cli, *arguments: object, words: tuple[str, ...]) -> None:
    code, out, error = cli("build", *arguments)
    assert code == 2, error
    assert out == ""
    assert error.count("\nError: ") == 1
    assert "Traceback" not in error
    for word in words:
        assert word in error
    assert not list(Path.cwd().glob("*.deploy"))


def test_a_missing_file(cli: Cli) -> None:
    _refused(cli, "nowhere.pt", "--input", "1x4", words=("There is no file nowhere.pt",))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", ("empty",)), (b"\x00\x01garbage" * 9, ("model.pt",)), (b"PK\x03\x04cut", ("model.pt",))],
    ids=["empty", "garbage", "truncated"],
)
def test_a_file_that_is_no_model(cli: Cli, content: bytes, words: tuple[str, ...]) -> None:
    Path("model.pt").write_bytes(content)
    _refused(cli, "model.pt", "--input", "1x4", words=words)


def test_a_class_that_is_not_trusted_is_named_with_the_command_that_works(
    cli: Cli, own: str
) -> None:
    torch.save(__import__(own).Own(), "my own.pt")
    np.savez("my data.npz", x=np.zeros((8, 4), np.float32))
    given = ("my own.pt", "--data", "my data.npz", "-o", "my out.deploy", "--measure-seconds", 0.1)
    code, out, error = cli("build", *given)
    assert (code, out) == (2, "")
    assert f"{own}.Own. Nothing of it was run" in error
    command = shlex.split(error.splitlines()[-1])
    assert command == ["deploy", "build", *map(str, given), "--trust", own]
    assert cli(*command[1:])[0] == 0
    assert Path("my out.deploy", "manifest.json").is_file()


def test_weights_alone_are_told_with_the_command_that_was_given(cli: Cli, own: str) -> None:
    torch.save(__import__(own).Own().state_dict(), "weights.pt")
    _, _, error = cli("build", "weights.pt", "--input", "1x4", "--static-batch")
    assert error.splitlines()[-1].strip() == (
        "deploy build weights.pt --input 1x4 --static-batch --model package.module:factory"
    )


def test_a_function_is_not_safe_because_torch_owns_it(cli: Cli) -> None:
    torch.save(Runs(), "evil.pt")
    _refused(
        cli,
        "evil.pt",
        "--input",
        "1x4",
        words=("torch.utils.collect_env.run", "honest models do not name it", "only --trust-all"),
    )
    _refused(cli, "evil.pt", "--trust", "torch.utils", words=("is not opened by --trust",))
    _refused(cli, "evil.pt", "--trust", "torch", words=("is not opened by --trust",))
    assert not Path("ran").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_code_in_a_file_needs_trust_all(cli: Cli) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(4, 3)), "script.pt")
    _refused(cli, "script.pt", "--input", "1x4", words=("TorchScript", "--trust-all"))
    program = torch.export.export(nn.Linear(4, 3), (torch.zeros(2, 4),))
    torch.export.save(program, "program.pt2")
    _refused(cli, "program.pt2", "--input", "1x4", words=("--trust-all",))


def test_weights_without_a_factory_and_with_a_wrong_one(cli: Cli, own: str) -> None:
    module = __import__(own)
    torch.save(module.Own().state_dict(), "weights.pt")
    save_file({"other.weight": torch.zeros(3, 4)}, "weights.safetensors")
    shape = ("--input", "1x4")
    _refused(cli, "weights.pt", *shape, words=("--model",))
    _refused(cli, "weights.pt", *shape, "--model", "nonsense", words=("nonsense", "module:"))
    _refused(cli, "weights.pt", *shape, "--model", "no_such_thing:f", words=("no_such_thing",))
    _refused(cli, "weights.pt", *shape, "--model", f"{own}:mak", words=("mak", "make"))
    _refused(cli, "weights.pt", *shape, "--model", f"{own}:broken", words=("no weights today",))
    _refused(cli, "weights.safetensors", *shape, "--model", f"{own}:make", words=("layer.weight",))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("1x0x4", "'0'"),
        ("axb", "'axb'"),
        ("x:1x4:float31", "float31"),
        ("1x99999999999x9999", "1x99999999999x9999"),
        ("wrong_name:1x4", "wrong_name"),
    ],
)
def test_an_input_that_cannot_be(cli: Cli, text: str, word: str) -> None:
    path = _save_linear()
    _refused(cli, path, "--input", text, words=(word,))


def test_neither_inputs_nor_data(cli: Cli) -> None:
    _refused(cli, _save_linear(), words=("--input", "--data"))


def _data_cases() -> dict[str, tuple[dict[str, object], tuple[str, ...]]]:
    x = np.zeros((8, 4), np.float32)
    spoilt = x.copy()
    spoilt[5, 2] = np.nan
    return {
        "wrong shape": ({"x": np.zeros((8, 5), np.float32)}, ("5", "4")),
        "wrong dtype": ({"x": np.zeros((8, 4), np.uint8)}, ("uint8", "float32")),
        "NaN": ({"x": spoilt}, ("NaN", "row 5")),
        "empty": ({"x": x[:0]}, ("no samples",)),
        "one sample": ({"x": x[:1]}, ("one sample",)),
        "lengths differ": ({"x": x, "y": np.zeros(7, np.int64)}, ("8", "7")),
        "label out of range": (
            {"x": x, "y": np.array([0, 1, 2, 3, 0, 0, 0, 0])},
            ("label 3", "row 3", "0..2"),
        ),
        "negative label": ({"x": x, "y": np.full(8, -1)}, ("-1", "row")),
        "objects": ({"x": np.array([{}] * 8, dtype=object)}, ("objects",)),
    }


@pytest.mark.parametrize("case", _data_cases())
def test_data_that_cannot_be_used(cli: Cli, case: str) -> None:
    arrays, words = _data_cases()[case]
    np.savez("data.npz", **arrays)  # type: ignore[arg-type]
    path = _save_linear()
    _refused(cli, path, "--input", "1x4", "--data", "data.npz", words=("data.npz", *words))


def test_data_that_is_not_there_or_of_no_known_kind(cli: Cli, own: str) -> None:
    path = _save_linear()
    shape = ("--input", "1x4", "--data")
    _refused(cli, path, *shape, "gone.npz", words=("gone.npz", "no such file"))
    Path("table.csv").write_text("1,2\n")
    _refused(cli, path, *shape, "table.csv", words=("table.csv", ".npz", "folder of images"))
    Path("bad.npz").write_bytes(b"no archive")
    _refused(cli, path, *shape, "bad.npz", words=("bad.npz",))
    _refused(cli, path, *shape, f"{own}:batches", words=("the disk went away",))


def test_an_image_that_cannot_be_read_is_named(cli: Cli) -> None:
    for label in ("cat", "dog"):
        folder = Path("images") / label
        folder.mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    (Path("images") / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\ncut")
    torch.save(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 2)).eval(), "net.pt")
    _refused(cli, "net.pt", "--input", "1x3x8x8", "--data", "images", words=("dog/1.png",))


def test_data_of_one_input_for_a_model_of_two(cli: Cli) -> None:
    torch.save(nn.Bilinear(4, 4, 2).eval(), "two.pt")
    np.savez("data.npz", x=np.zeros((8, 4), np.float32))
    shapes = ("--input", "input1:1x4", "--input", "input2:1x4")
    _refused(cli, "two.pt", *shapes, "--data", "data.npz", words=("input1", "input2"))
