"""Plugin libraries are asked for before an engine is opened, and loaded where it is built again."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

from plugin_libraries import compile_library
from rtx import L4, NAME, OPTIONS, host_for, make_model, write_bundle

from deploy.bundle.folder import Bundle, read_bundle
from deploy.bundle.plugin_files import locate_plugins, relate_plugins
from deploy.bundle.preflight import explain_mismatch
from deploy.bundle.substitutes import rebuild_engine
from deploy.config import BuildConfig
from deploy.pipeline import build
from export.errors import BundleError, ConfigError
from export.tensorrt import build_engine
from export.tensorrt.plugins import read_plugins


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("library") / "ours.so")


@pytest.fixture(scope="module")
def bundle(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With an engine that was built with the library, and a recipe that names it."""
    folder = tmp_path_factory.mktemp("engine")
    options = replace(OPTIONS, plugins=read_plugins([str(library)]))
    built = build_engine(make_model(folder), folder / "out" / "model.engine", options=options)
    content = {"ours.so": library.read_bytes()}
    return read_bundle(
        write_bundle(
            folder / "x.deploy",
            built.path.read_bytes(),
            built.record,
            plugins=content,
            shipped=content,
            recipe=relate_plugins(options),
        )
    )


def test_the_check_before_an_engine_is_opened_asks_for_it(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path / NAME, tmp_path / NAME)
    record, file = bundle.manifest.engines[NAME].record, tmp_path / NAME / "model.engine"
    assert record is not None
    assert explain_mismatch(record, file, host_for(record)) is None
    compile_library(tmp_path / NAME / "ours.so", note="another")
    assert "ours.so is not the one" in str(explain_mismatch(record, file, host_for(record)))


def test_an_engine_is_built_again_with_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DEPLOY_TEST_LOADED", str(tmp_path / "loaded"))
    record = bundle.manifest.engines[NAME].record
    assert record is not None
    host = host_for(record, gpu=replace(L4, name="NVIDIA RTX 5090", capability="12.0"))
    spec = rebuild_engine(bundle, bundle.spec(NAME), host)
    assert (tmp_path / "loaded").read_text() == "x"
    assert spec.record is not None
    assert spec.record.plugins == record.plugins
    assert explain_mismatch(spec.record, Path(spec.path), host) is None


def test_a_recipe_names_files_of_its_bundle_alone(bundle: Bundle) -> None:
    recipe = bundle.manifest.engines[NAME].recipe
    assert recipe is not None
    located = locate_plugins(recipe, bundle.path, bundle.manifest.files)
    assert located.plugins[0].path == str(bundle.path / "plugins" / "ours.so")
    for path in ("/lib/evil.so", "../ours.so", "plugins/other.so"):
        wrong = replace(recipe, plugins=(replace(recipe.plugins[0], path=path),))
        with pytest.raises(BundleError, match="does not hold it as it was chosen"):
            locate_plugins(wrong, bundle.path, bundle.manifest.files)
    other = replace(recipe, plugins=(replace(recipe.plugins[0], sha256="0" * 64),))
    with pytest.raises(BundleError, match="does not hold it"):
        locate_plugins(other, bundle.path, bundle.manifest.files)


def test_a_library_that_is_missing_stops_the_build_at_once(tmp_path: Path) -> None:
    config = BuildConfig(inputs=("1x6",), plugin=(str(tmp_path / "none.so"),))
    with pytest.raises(ConfigError, match="there is no such file"):
        build(torch.nn.Identity(), config, output=tmp_path / "x.deploy")
