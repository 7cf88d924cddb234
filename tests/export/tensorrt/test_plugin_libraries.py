"""Plugin libraries are known by their hashes, loaded before the parser runs, and kept beside."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from plugin_libraries import compile_library

from export.artifacts import OnnxModel
from export.errors import ConfigError, EngineError
from export.tensorrt.options import BuildOptions
from export.tensorrt.plugins import PluginLibrary, copy_plugins, read_plugins

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is in the rtx extra")

import onnx
from onnx import TensorProto, helper

from export.artifacts import TensorSpec
from export.tensorrt import build_engine

ELF = b"\x7fELF rest"


@pytest.fixture
def model(tmp_path: Path) -> OnnxModel:
    """The absolute value of four numbers."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx")
    specs = [TensorSpec(name, (1, 4), "float32") for name in "xy"]
    return OnnxModel(tmp_path / "m.onnx", (specs[0],), (specs[1],), 20)


def options(*plugins: PluginLibrary) -> BuildOptions:
    return BuildOptions(targets=("SM89",), plugins=plugins)


def test_a_build_loads_the_library_records_its_hash_and_keeps_it_beside_the_engine(
    model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compile_library(tmp_path / "libours.so.1")
    monkeypatch.setenv("DEPLOY_TEST_LOADED", str(tmp_path / "loaded"))
    built = build_engine(
        model, tmp_path / "out" / "m.engine", options=options(*read_plugins([str(library)]))
    )
    assert (tmp_path / "loaded").read_text() == "x"
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    assert built.record.plugins == {"libours.so.1": digest}
    assert (tmp_path / "out" / "libours.so.1").read_bytes() == library.read_bytes()


def test_a_library_that_has_changed_since_it_was_chosen_is_not_loaded(
    model: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = compile_library(tmp_path / "ours.so")
    chosen = read_plugins([str(library)])
    compile_library(library, note="another")
    monkeypatch.setenv("DEPLOY_TEST_LOADED", str(tmp_path / "loaded"))
    with pytest.raises(EngineError, match=r"ours\.so is not the one that was chosen"):
        build_engine(model, tmp_path / "out" / "m.engine", options=options(*chosen))
    assert not (tmp_path / "loaded").exists()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_library_without_plugins_is_refused_in_words(model: OnnxModel, tmp_path: Path) -> None:
    library = compile_library(tmp_path / "plain.so", offers=False)
    with pytest.raises(EngineError, match=r"plugin library plain\.so cannot be loaded: \S+"):
        build_engine(
            model, tmp_path / "out" / "m.engine", options=options(*read_plugins([str(library)]))
        )
    assert not (tmp_path / "out" / "m.engine").exists()


def write(content: bytes) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "a.so").write_bytes(content)
        return [str(folder / "a.so")]

    return make


def write_twice(folder: Path) -> list[str]:
    paths = [folder / "one" / "a.so", folder / "two" / "a.so"]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(ELF)
    return [str(path) for path in paths]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: [str(folder / "none.so")], r"none\.so: there is no such file"),
        (write(b"#!/bin/sh"), r"a\.so: this is no shared library"),
        (write(b""), r"a\.so: this is no shared library"),
        (lambda folder: [str(folder)], "it cannot be read: "),
        (write_twice, r"two libraries are called a\.so"),
    ],
)
def test_what_cannot_be_a_plugin_library_is_refused_before_anything_is_built(
    make: Callable[[Path], list[str]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        read_plugins(make(tmp_path))


def test_a_library_that_went_away_is_named(tmp_path: Path) -> None:
    gone = PluginLibrary(str(tmp_path / "gone.so"), "0" * 64)
    with pytest.raises(EngineError, match=r"gone\.so cannot be read any more"):
        copy_plugins([gone], tmp_path / "out")


def test_options_with_libraries_go_through_plain_values() -> None:
    from dataclasses import asdict

    chosen = options(PluginLibrary("plugins/a.so", "0" * 64))
    assert BuildOptions.from_dict(asdict(chosen)) == chosen
    plain = asdict(options())
    del plain["plugins"]  # as bundles had them before
    assert BuildOptions.from_dict(plain) == options()
