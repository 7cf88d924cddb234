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

from export.gpu import read_gpu

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


def test_a_gpu_that_is_asked_for_and_is_not_there(cli: Cli) -> None:
    if read_gpu() is not None:
        pytest.skip("this machine has an NVIDIA GPU")
    code, out, error = cli("build", _save_linear(), "--input", "1x4", "--device", "cuda")
    assert (code, out) == (2, "")
    assert error.startswith("Error: --device cuda: no NVIDIA GPU")  # before anything is begun
    assert "give --device cpu" in error
    assert not list(Path.cwd().glob("*.deploy"))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", ("empty",)), (b"\x00\x01garbage" * 9, ("model.pt",)), (b"PK\x03\x04cut", ("model.pt",))],
    ids=["empty", "garbage", "truncated"],
)
def test_a_file_that_is_no_model(cli: Cli, content: bytes, words: tuple[str, ...]) -> None:
    Path("model.pt").write_bytes(content)
    _refused(cli, "model.pt", "--input", "1x4", words=words)


@pytest.mark.thorough
@pytest.mark.usefixtures("onnxruntime_alone")
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


BOTH_FORMS = pytest.mark.parametrize("with_input", [True, False], ids=["--input", "data alone"])


def _given(with_input: bool, shape: str) -> tuple[str, ...]:
    return ("--input", shape) if with_input else ()


@BOTH_FORMS
@pytest.mark.parametrize("case", _data_cases())
def test_data_that_cannot_be_used(cli: Cli, case: str, with_input: bool) -> None:
    arrays, words = _data_cases()[case]
    np.savez("data.npz", **arrays)  # type: ignore[arg-type]
    path = _save_linear()
    shape = _given(with_input, "1x4")
    _refused(cli, path, *shape, "--data", "data.npz", words=("data.npz", *words))


def test_data_that_the_model_fails_on_is_told_in_its_words(cli: Cli) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 2, 3)).eval(), "net.pt")
    np.savez("last.npz", x=np.zeros((8, 9, 9, 3), np.float32))
    said = (
        "last.npz, read as x:Nx9x9x3:float32",
        "expected input",
        "to have 3 channels",
        "float32",
    )
    _refused(cli, "net.pt", "--data", "last.npz", words=(*said, "transpose to [N, C, H, W]"))
    np.savez("bytes.npz", x=np.zeros((8, 3, 9, 9), np.uint8))
    said = ("bytes.npz, read as x:Nx3x9x9:uint8", "weights are float32", "scaled as in training")
    _refused(cli, "net.pt", "--data", "bytes.npz", words=said)
    torch.save(nn.Linear(4, 3).double(), "double.pt")
    np.savez("double.npz", x=np.zeros((8, 4)))
    said = ("double.npz, read as x:Nx4:float32", "weights are float64", "--input 1x4:float64")
    _refused(cli, "double.pt", "--data", "double.npz", words=said)
    np.savez("wide.npz", x=np.zeros((8, 3, 9, 9), np.uint16))
    _refused(cli, "net.pt", "--data", "wide.npz", words=("wide.npz", "x is uint16", ".astype"))


@BOTH_FORMS
def test_an_output_for_labels_that_is_not_there_is_told_with_those_that_are(
    cli: Cli, with_input: bool
) -> None:
    x = np.zeros((8, 4), np.float32)
    np.savez("data.npz", x=x, y=np.arange(8) % 3)
    options = (*_given(with_input, "1x4"), "--data", "data.npz", "--classes", "scores")
    words = ("--classes 'scores'", "no such output", "output:batchx3:float32")
    _refused(cli, _save_linear(), *options, words=words)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((8, 5), np.int64), ("labels are Nx5", "output:batchx3:float32", "labels out")),
        (np.eye(3)[np.arange(32) % 3], ("single 1", "y.argmax(axis=1)")),
        (np.linspace(0, 1, 8), ("float64", "[N]", "output:batchx3:float32", "leave y out")),
        (np.arange(8.0) % 3, ("float64", "y.astype(int)", "regression")),
        (np.full((8, 3, 2), 0.5), ("[N, 3, 2]", "output:batchx3:float32", "shape of the output")),
        (np.array([[0, 1, np.nan]] * 8), ("0, 1 and NaN", "save -1")),
        (np.full((8, 3), 2), ("label 2", "0..1", "regression", "y.astype(np.float32)")),
    ],
)
def test_labels_that_fit_nothing_are_told_with_what_would(
    cli: Cli, labels: np.ndarray, words: tuple[str, ...]
) -> None:
    np.savez("data.npz", x=np.zeros((len(labels), 4), np.float32), y=labels)
    _refused(cli, _save_linear(), "--data", "data.npz", words=("data.npz", *words))


def test_what_is_wrong_with_the_data_itself_is_told_before_what_the_model_says(cli: Cli) -> None:
    x = np.zeros((8, 5), np.float32)
    x[5, 2] = np.nan
    np.savez("data.npz", x=x)
    _refused(cli, _save_linear(), "--data", "data.npz", words=("data.npz", "NaN", "row 5"))


@BOTH_FORMS
def test_data_that_is_not_there_or_of_no_known_kind(cli: Cli, own: str, with_input: bool) -> None:
    path = _save_linear()
    shape = (*_given(with_input, "1x4"), "--data")
    _refused(cli, path, *shape, "gone.npz", words=("gone.npz", "no such file"))
    Path("table.csv").write_text("1,2\n")
    _refused(cli, path, *shape, "table.csv", words=("table.csv", ".npz", "folder of images"))
    Path("bad.npz").write_bytes(b"no archive")
    _refused(cli, path, *shape, "bad.npz", words=("bad.npz",))
    _refused(cli, path, *shape, f"{own}:batches", words=("the disk went away",))


def _save_images(channels: int) -> None:
    """Two classes of small images, and a network for images of so many channels."""
    for label in ("cat", "dog"):
        folder = Path("images") / label
        folder.mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    layers = nn.Conv2d(channels, 2, 3), nn.Flatten(), nn.Linear(72, 2)
    torch.save(nn.Sequential(*layers).eval(), "net.pt")


@BOTH_FORMS
def test_an_image_that_cannot_be_read_is_named(cli: Cli, with_input: bool) -> None:
    _save_images(3)
    (Path("images") / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\ncut")
    shape = _given(with_input, "1x3x8x8")
    _refused(cli, "net.pt", *shape, "--data", "images", words=("dog/1.png",))


def test_an_image_that_cannot_be_read_is_named_though_the_model_takes_no_such_images(
    cli: Cli,
) -> None:
    _save_images(1)
    (Path("images") / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\ncut")
    _refused(cli, "net.pt", "--data", "images", words=("dog/1.png",))


def test_colour_images_for_a_network_of_one_channel_are_told_with_the_option(cli: Cli) -> None:
    _save_images(1)
    words = ("images", "read as RGB; pass --image-mode gray")
    _refused(cli, "net.pt", "--data", "images", words=words)
    shape = ("--input", "1x1x8x8", "--image-mode", "rgb")
    _refused(cli, "net.pt", *shape, "--data", "images", words=words)


@BOTH_FORMS
def test_data_of_one_input_for_a_model_of_two(cli: Cli, with_input: bool) -> None:
    torch.save(nn.Bilinear(4, 4, 2).eval(), "two.pt")
    np.savez("data.npz", x=np.zeros((8, 4), np.float32))
    shapes = ("--input", "input1:1x4", "--input", "input2:1x4") if with_input else ()
    words = ("data.npz", "input2") if not with_input else ("input1", "input2")
    _refused(cli, "two.pt", *shapes, "--data", "data.npz", words=words)
