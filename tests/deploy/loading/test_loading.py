"""Every form of a model file loads as what was saved; every other file says what is wrong."""

import os
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deploy.loading.model_files import load_model, prepare_module
from deploy.loading.references import import_object
from deploy.loading.weights import fill_weights
from export.errors import ConfigError, DeployError, LoadError, TrustError

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
    def forward(self, x):
        return self.body(x)

def make():
    return Net()

def make_wide():
    return Net(7)

def fail():
    raise RuntimeError("no weights of the backbone")

class Config(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

class Sizes(list):
    pass

class Anew(nn.Module):
    def __setstate__(self, state):
        super().__init__()
    def forward(self, x):
        return x

number = 3
"""

LATE = """
def __getattr__(name):
    if name != "Net":
        raise AttributeError(name)
    try:
        raise ValueError("no CUDA")
    except ValueError as error:
        raise ModuleNotFoundError(f"could not import {name}.") from error
"""
"""A module as packages have it that import their parts when they are first asked for."""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of an importable package with a module ``nets``; another one for every test."""
    name = f"zoo_{abs(hash(request.node.nodeid)):x}"
    (tmp_path / "src" / name).mkdir(parents=True)
    (tmp_path / "src" / name / "__init__.py").write_text("")
    (tmp_path / "src" / name / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path / "src")
    return name


@pytest.fixture
def net(package: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = import_object(f"{package}.nets:make", what="--model")()
    for name, buffer in module.named_buffers():
        if name.endswith("mean"):
            buffer.copy_(torch.randn(buffer.shape))
    return module.eval()


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()


def with_function(function: object) -> nn.Module:
    """A layer of torch that keeps `function` as an attribute."""
    module = plain_net()
    module.function = function  # type: ignore[assignment]
    return module


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def refused(
    path: Path, *words: str, kind: type[DeployError] = LoadError, **options: object
) -> None:
    with pytest.raises(kind) as caught:
        load_model(path, **options)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def assert_same(module: nn.Module, reference: nn.Module, *shape: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(module(x), reference(x))
    assert not any(part.training for part in module.modules())


class TestModule:
    def test_modules_of_torch_load_without_trust(self, tmp_path: Path) -> None:
        loaded = load_model(save(plain_net(), tmp_path / "m.bin"))
        assert (loaded.form, loaded.was_training, loaded.warnings) == ("module", False, ())
        assert_same(loaded.module, plain_net(), 2, 1, 5, 5)

    @pytest.mark.parametrize("activation", ["relu", "gelu"])
    def test_layer_that_holds_an_activation_loads_without_trust(
        self, tmp_path: Path, activation: str
    ) -> None:
        load_model(save(nn.LSTM(8, 2), tmp_path / "lstm.pt"))
        layer = nn.TransformerEncoderLayer(8, 2, activation=activation).eval()
        loaded = load_model(save(layer, tmp_path / "m.pt"))
        assert_same(loaded.module, layer, 2, 5, 8)

    def test_other_function_of_torch_in_a_module_needs_trust(self, tmp_path: Path) -> None:
        path = save(with_function(nn.functional.interpolate), tmp_path / "m.pt")
        refused(path, 'trust=("torch.nn.functional",)', kind=TrustError)
        load_model(path, trust=("torch.nn.functional",))

    def test_function_that_pickles_as_getattr_is_explained(self, tmp_path: Path) -> None:
        path = save(with_function(torch.tanh), tmp_path / "m.pt")
        refused(path, "torch.tanh", "nn.Tanh()", kind=TrustError)

    def test_training_mode_is_told_and_left(self, tmp_path: Path) -> None:
        module = plain_net()
        module[1].train()  # type: ignore[index]
        loaded = load_model(save(module, tmp_path / "m.pt"))
        assert loaded.was_training
        assert "training mode" in loaded.warnings[0]
        assert_same(loaded.module, plain_net(), 2, 1, 5, 5)

    def test_own_class_needs_trust_and_the_error_says_how_python_gives_it(
        self, tmp_path: Path, net: nn.Module, package: str
    ) -> None:
        path = save(net, tmp_path / "my model.pt")
        refused(path, f"{package}.nets.Net", f'trust=("{package}",)', kind=TrustError)
        refused(path, f'trust=("a", "{package}")', kind=TrustError, trust=("a",))
        refused(path, package, kind=TrustError, trust=(package[:-1],))

    @pytest.mark.parametrize("suffix", ["", ".nets", ".nets.Net"])
    def test_trusted_class_loads(
        self, tmp_path: Path, net: nn.Module, package: str, suffix: str
    ) -> None:
        loaded = load_model(save(net, tmp_path / "m.pt"), trust=(package + suffix,))
        assert_same(loaded.module, net, 2, 3)

    def test_a_module_that_begins_anew_when_it_is_read_was_not_training(
        self, tmp_path: Path, package: str
    ) -> None:
        module = plain_net()
        module.append(import_object(f"{package}.nets:Anew", what="--model")())
        loaded = load_model(save(module.eval(), tmp_path / "m.pt"), trust=(package,))
        assert (loaded.was_training, loaded.warnings) == (False, ())
        assert not any(part.training for part in loaded.module.modules())

    @pytest.mark.parametrize(
        "value",
        [range(3), slice(1, 2), frozenset({1}), ..., int, np.float32(3), np.arange(3.0)],
        ids=repr,
    )
    def test_values_that_run_nothing_come_with_any_trust(
        self, tmp_path: Path, package: str, net: nn.Module, value: object
    ) -> None:
        net.value = value  # type: ignore[assignment]
        trust = (package, "numpy") if type(value).__module__ == "numpy" else (package,)
        loaded = load_model(save(net, tmp_path / "m.pt"), trust=trust)
        np.testing.assert_array_equal(loaded.module.value, value)
        assert type(loaded.module.value) is type(value)

    def test_value_in_a_layer_of_torch_is_trusted_by_its_name(self, tmp_path: Path) -> None:
        path = save(with_function(range(3)), tmp_path / "m.pt")
        refused(path, 'trust=("builtins.range",)', kind=TrustError)
        assert load_model(path, trust=("builtins.range",)).module.function == range(3)

    def test_dict_of_a_trusted_class_is_filled(
        self, tmp_path: Path, package: str, net: nn.Module
    ) -> None:
        config = import_object(f"{package}.nets:Config", what="--model")
        net.config = config(width=[3, 4], depth=2)
        net.config.note = "kept"
        found = load_model(save(net, tmp_path / "m.pt"), trust=(package,)).module.config
        assert type(found) is config
        assert (dict(found), found.note) == ({"width": [3, 4], "depth": 2}, "kept")

    def test_dict_of_a_class_is_not_filled_without_its_trust(
        self, tmp_path: Path, package: str
    ) -> None:
        config = import_object(f"{package}.nets:Config", what="--model")
        path = save(with_function(config(width=3)), tmp_path / "m.pt")
        refused(path, f"{package}.nets.Config", kind=TrustError)

    def test_list_of_a_class_is_named_with_what_reads_it(
        self, tmp_path: Path, package: str, net: nn.Module
    ) -> None:
        net.sizes = import_object(f"{package}.nets:Sizes", what="--model")([3, 4])
        path = save(net, tmp_path / "m.pt")
        refused(path, f"{package}.nets.Sizes", "state_dict", 'trust=("*",)', trust=(package,))
        assert load_model(path, trust=("*",)).module.sizes == [3, 4]

    def test_trust_all_loads(self, tmp_path: Path, net: nn.Module) -> None:
        assert_same(load_model(save(net, tmp_path / "m.pt"), trust=("*",)).module, net, 2, 3)

    def test_trusted_class_that_is_not_there_names_its_module(
        self, tmp_path: Path, net: nn.Module, package: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = save(net, tmp_path / "m.pt")
        (tmp_path / "src" / package).rename(tmp_path / "gone")
        for name in (package, f"{package}.nets"):
            monkeypatch.delitem(sys.modules, name)
        for trust in (package, "*"):
            refused(path, repr(package), "PYTHONPATH", trust=(trust,))

    def test_class_that_its_module_lacks_is_not_called_a_missing_module(
        self, tmp_path: Path, net: nn.Module, package: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = save(net, tmp_path / "m.pt")
        monkeypatch.delattr(sys.modules[f"{package}.nets"], "Net")
        for trust in (package, "*"):
            refused(path, f"{package}.nets has no 'Net'", "renamed", trust=(trust,))

    def test_class_of_a_script_that_is_trusted_is_told_to_move(
        self, tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(type(net), "__module__", "__main__")
            patch.setattr(sys.modules["__main__"], "Net", type(net), raising=False)
            path = save(net, tmp_path / "m.pt")
        for trust in ("__main__", "*"):
            refused(path, "__main__.Net", "move them to a module", trust=(trust,))

    def test_error_of_a_trusted_class_that_is_there_stays_its_own(
        self, tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = save(net, tmp_path / "m.pt")
        monkeypatch.setattr(
            type(net), "__setstate__", lambda self, state: self.old_name, raising=False
        )
        refused(path, "AttributeError", "old_name", trust=("*",))

    def test_class_that_is_imported_late_says_why_it_cannot_be(
        self, tmp_path: Path, net: nn.Module, package: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = save(net, tmp_path / "m.pt")
        source = tmp_path / "src" / package / "nets.py"
        source.write_text(LATE)
        for name in (package, f"{package}.nets"):
            monkeypatch.delitem(sys.modules, name)
        words = ("importing it failed", "could not import Net", "ValueError: no CUDA")
        for trust in (package, "*"):
            refused(path, *words, trust=(trust,))

    def test_class_of_the_training_script_is_explained(
        self, tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(type(net), "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], "Net", type(net), raising=False)
        path = save(net, tmp_path / "m.pt")
        refused(path, "__main__.Net", "move them to a module", kind=TrustError)

    def test_factory_is_refused(self, tmp_path: Path, package: str) -> None:
        path = save(plain_net(), tmp_path / "m.pt")
        refused(path, "weights files", kind=ConfigError, factory=f"{package}.nets:make")

    @pytest.mark.parametrize("key", ["model", "net", "state_dict"])
    def test_module_in_a_checkpoint_is_found_by_its_key(self, tmp_path: Path, key: str) -> None:
        checkpoint = {"epoch": 3, key: plain_net(), "optimizer": {"state": {}, "lr": 0.1}}
        path = save(checkpoint, tmp_path / "m.pt")
        loaded = load_model(path)
        assert (loaded.form, loaded.was_training) == ("module", False)
        assert loaded.warnings == (f"The file is a checkpoint; its entry {key!r} was used.",)
        assert_same(loaded.module, plain_net(), 2, 1, 5, 5)
        refused(path, "a whole module", kind=ConfigError, factory="builtins:dict")

    def test_own_module_in_a_checkpoint_needs_trust(
        self, tmp_path: Path, net: nn.Module, package: str
    ) -> None:
        path = save({"model": net, "epoch": 3}, tmp_path / "m.pt")
        refused(path, f"{package}.nets.Net", f'trust=("{package}",)', kind=TrustError)
        assert_same(load_model(path, trust=(package,)).module, net, 2, 3)

    def test_data_parallel_is_taken_off(self, tmp_path: Path) -> None:
        loaded = load_model(save(nn.DataParallel(plain_net()).eval(), tmp_path / "m.pt"))
        assert isinstance(loaded.module, nn.Sequential)
        assert "DataParallel" in loaded.warnings[0]

    def test_old_format_says_to_save_again(self, tmp_path: Path) -> None:
        path = tmp_path / "m.pt"
        torch.save(plain_net(), path, _use_new_zipfile_serialization=False)
        refused(path, "save it again", kind=TrustError)
        assert_same(load_model(path, trust=("*",)).module, plain_net(), 1, 1, 5, 5)


class TestWeights:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda s: s,
            lambda s: {"state_dict": s, "epoch": 3},
            lambda s: {"model": s, "optimizer": {}},
            lambda s: {f"module.{key}": value for key, value in s.items()},
            lambda s: {"state_dict": {f"module.{key}": value for key, value in s.items()}},
            lambda s: {"ema": s, "epoch": 3},
            lambda s: {"state_dict": {f"model.{key}": value for key, value in s.items()}},
            lambda s: {f"net.encoder.{key}": value for key, value in s.items()},
        ],
    )
    def test_state_dict_in_its_common_shapes(
        self, tmp_path: Path, net: nn.Module, package: str, wrap: object
    ) -> None:
        path = save(wrap(net.state_dict()), tmp_path / "m.pt")  # type: ignore[operator]
        loaded = load_model(path, factory=f"{package}.nets:make")
        assert (loaded.form, loaded.was_training) == ("state_dict", False)
        assert not any("training" in note for note in loaded.warnings)
        assert_same(loaded.module, net, 2, 3)

    def test_the_averaged_weights_beside_the_model_are_told(
        self, tmp_path: Path, net: nn.Module, package: str
    ) -> None:
        other = {key: torch.zeros_like(value) for key, value in net.state_dict().items()}
        path = save({"ema": other, "model": net.state_dict()}, tmp_path / "m.pt")
        loaded = load_model(path, factory=f"{package}.nets:make")
        assert_same(loaded.module, net, 2, 3)
        assert loaded.warnings == (
            "The file is a checkpoint; its entry 'model' was used. It also holds 'ema': "
            "to build that, save it alone.",
        )

    def test_what_lies_beside_the_part_with_the_weights_is_told(
        self, tmp_path: Path, net: nn.Module, package: str
    ) -> None:
        state = {f"model.{key}": value for key, value in net.state_dict().items()}
        state |= {"loss.weight": torch.ones(2)}
        path = save(state, tmp_path / "m.pt")
        loaded = load_model(path, factory=f"{package}.nets:make")
        assert_same(loaded.module, net, 2, 3)
        assert loaded.warnings == (
            "The weights were found under 'model.' in the file; 1 left out (loss.weight).",
        )

    def test_a_part_that_lacks_a_weight_is_not_taken(
        self, tmp_path: Path, net: nn.Module, package: str
    ) -> None:
        state = {f"model.{key}": value for key, value in net.state_dict().items()}
        del state["model.body.0.bias"]
        path = save(state, tmp_path / "m.pt")
        words = ("6 missing in the file", "6 unexpected in the file (model.body.0.weight")
        refused(path, *words, factory=f"{package}.nets:make")

    def test_of_two_parts_that_fit_none_is_taken(
        self, tmp_path: Path, net: nn.Module, package: str
    ) -> None:
        parts = ("student", "teacher")
        state = {f"{p}.{key}": value for p in parts for key, value in net.state_dict().items()}
        path = save(state, tmp_path / "m.pt")
        refused(path, "unexpected in the file (student.", factory=f"{package}.nets:make")

    def test_old_format(self, tmp_path: Path, net: nn.Module, package: str) -> None:
        path = tmp_path / "m.pth"
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
        assert_same(load_model(path, factory=f"{package}.nets:make").module, net, 2, 3)

    def test_safetensors(self, tmp_path: Path, net: nn.Module, package: str) -> None:
        path = tmp_path / "m.safetensors"
        save_file(net.state_dict(), path)
        loaded = load_model(path, factory=f"{package}.nets:make")
        assert loaded.form == "safetensors"
        assert_same(loaded.module, net, 2, 3)
        refused(path, 'model="package.module:factory"')

    def test_truncated_safetensors(self, tmp_path: Path, net: nn.Module) -> None:
        path = tmp_path / "m.safetensors"
        save_file(net.state_dict(), path)
        raw = path.read_bytes()
        for damaged in (raw[:-5], raw[:40], struct.pack("<Q", 2**62) + raw[8:], raw[:8] + b"{" * 9):
            path.write_bytes(damaged)
            refused(path, "cannot be read")

    def test_without_factory_says_the_flag(self, tmp_path: Path) -> None:
        refused(save(plain_net().state_dict(), tmp_path / "m.pt"), 'model="package.module:factory"')

    def test_other_shapes_are_listed(self, tmp_path: Path, net: nn.Module, package: str) -> None:
        path = save(net.state_dict(), tmp_path / "m.pt")
        words = ("6 of another shape", "body.0.weight is (4, 3)", "(7, 3) in the model", ", ...")
        refused(path, *words, factory=f"{package}.nets:make_wide")

    def test_missing_and_unexpected_keys_are_listed(
        self, tmp_path: Path, net: nn.Module, package: str
    ) -> None:
        state = net.state_dict()
        state["extra"] = state.pop("body.0.bias")
        path = save(state, tmp_path / "m.pt")
        words = ("1 missing in the file (body.0.bias)", "1 unexpected in the file (extra)")
        refused(path, *words, factory=f"{package}.nets:make")

    def test_factory_that_raises_keeps_its_message(
        self, tmp_path: Path, net: nn.Module, package: str
    ) -> None:
        path = save(net.state_dict(), tmp_path / "m.pt")
        refused(path, "no weights of the backbone", factory=f"{package}.nets:fail")
        refused(path, "int cannot be called", kind=ConfigError, factory=f"{package}.nets:number")
        refused(path, "returned dict", factory="builtins:dict")

    @pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.ones(3), "text"])
    def test_no_model_inside(self, tmp_path: Path, content: object) -> None:
        refused(save(content, tmp_path / "m.pt"), "model")


class TestCode:
    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        path = tmp_path / "m.pt"
        x = torch.ones(1, 1, 5, 5)
        with warnings.catch_warnings():  # torch calls its own TorchScript deprecated
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(plain_net().train(), x, check_trace=False), path)
        return path

    def test_torchscript_needs_trust_all(self, script: Path) -> None:
        refused(script, "which is code", "TorchScript", 'trust=("*",)', kind=TrustError)

    def test_torchscript_loads(self, script: Path) -> None:
        loaded = load_model(script, trust=("*",))
        assert (loaded.form, loaded.was_training) == ("torchscript", True)
        assert not loaded.module.training

    def test_exported_program_loads_whatever_its_name(self, tmp_path: Path) -> None:
        path = tmp_path / "m.pt"
        x = torch.ones(1, 1, 5, 5)
        torch.export.save(torch.export.export(plain_net(), (x,)), path.with_suffix(".pt2"))
        path.with_suffix(".pt2").rename(path)
        loaded = load_model(path, trust=("*",))
        assert loaded.form == "exported_program"
        assert loaded.program is not None
        assert (loaded.was_training, loaded.warnings) == (False, ())
        assert_same(loaded.module, plain_net(), 1, 1, 5, 5)

    def test_exported_program_in_training_mode_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "m.pt2"
        module = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train()
        torch.export.save(torch.export.export(module, (torch.ones(1, 3),)), path)
        loaded = load_model(path, trust=("*",))
        assert loaded.was_training
        assert "training mode" in loaded.warnings[0]


class TestNoModel:
    def test_a_pipe_is_refused_and_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "m.pt")
        refused(tmp_path / "m.pt", "is a pipe")

    def test_missing_file_and_directory(self, tmp_path: Path) -> None:
        refused(tmp_path / "none.pt", "no file", "none.pt")
        refused(tmp_path, "directory")

    @pytest.mark.parametrize(
        ("name", "wanted"), [("nets.py", "nets:factory"), ("nets.py:make", "nets:make")]
    )
    def test_source_code_is_no_model(self, tmp_path: Path, name: str, wanted: str) -> None:
        (tmp_path / "nets.py").write_text(NETS)
        refused(tmp_path / name, "no trained weights", f"--model {wanted}.")

    @pytest.mark.parametrize(
        ("name", "packages", "wanted"),
        [
            ("src/nets/small.py:make", ["src/nets"], "nets.small:make"),
            ("zoo/small.py", [], "zoo.small:factory"),
            ("my-nets/small.py", [], "small:factory"),
        ],
    )
    def test_source_code_goes_by_the_name_of_its_import(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        packages: list[str],
        wanted: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / name).parent.mkdir(parents=True)
        for package in packages:
            (tmp_path / package / "__init__.py").touch()
        refused(Path(name), f"--model {wanted}.")

    @pytest.mark.parametrize(
        ("content", "word"),
        [
            (b"", "empty"),
            (b"\x93random bytes of no kind at all", "not a model file"),
            (b"P", "not a model file"),
            (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
            (b"\x80\x04K\x01.", "pickle"),
        ],
    )
    def test_other_content(self, tmp_path: Path, content: bytes, word: str) -> None:
        path = tmp_path / "m.pt"
        path.write_bytes(content)
        refused(path, word, str(path))

    def test_truncated_file(self, tmp_path: Path) -> None:
        path = save(plain_net(), tmp_path / "m.pt")
        raw = path.read_bytes()
        for size in (3, 100, len(raw) // 2, len(raw) - 1):
            path.write_bytes(raw[:size])
            refused(path, "truncated")

    def test_onnx_model(self, tmp_path: Path) -> None:
        onnx = pytest.importorskip("onnx")
        graph = onnx.helper.make_graph([], "g", [], [])
        path = tmp_path / "m.pt"
        onnx.save(onnx.helper.make_model(graph, producer_name="x"), str(path))
        refused(path, "ONNX", "PyTorch model")


class TestPrepareModule:
    def test_callers_module_is_untouched(self) -> None:
        module = plain_net().train()
        before = {key: value.clone() for key, value in module.state_dict().items()}
        copied, notes = prepare_module(module)
        assert copied is not module
        assert module.training
        assert "training mode" in notes[0]
        with torch.no_grad():
            next(copied.parameters()).zero_()
        assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())

    def test_wrapper_is_taken_off_and_eval_module_has_no_warning(self) -> None:
        assert prepare_module(plain_net())[1] == ()
        assert isinstance(prepare_module(nn.DataParallel(plain_net()))[0], nn.Sequential)

    def test_exported_module_is_accepted(self) -> None:
        program = torch.export.export(plain_net(), (torch.ones(1, 1, 5, 5),))
        copied, _ = prepare_module(program.module())
        assert_same(copied, plain_net(), 1, 1, 5, 5)

    def test_meta_module_is_refused(self) -> None:
        with pytest.raises(LoadError, match="meta device"):
            prepare_module(nn.Linear(2, 2, device="meta"))

    def test_module_that_was_never_called_and_has_no_sizes_is_refused(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            module = nn.Sequential(nn.LazyLinear(3))
        with pytest.raises(LoadError, match=r"0\.(weight|bias) has no size yet.* a sample once"):
            prepare_module(module)

    def test_layers_without_a_size_take_that_of_the_file(self, tmp_path: Path) -> None:
        source = nn.Sequential(nn.Linear(4, 3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            module = nn.Sequential(nn.LazyLinear(3))
        assert fill_weights(module, source.state_dict(), tmp_path / "net.pt", "nets:make") == ()
        x = torch.ones(2, 4)
        torch.testing.assert_close(module(x), source(x), rtol=0, atol=0)
