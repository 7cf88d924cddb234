"""What a server has is found by name and version; who asks for another is told what there is."""

import shutil
from pathlib import Path

import pytest

from deploy.bundle.folder import read_bundle
from deploy.serving.errors import UnknownModelError
from deploy.serving.models.finding import find_bundles, make_models, name_bundle
from deploy.serving.models.model import ServedModel
from deploy.serving.models.repository import ModelRepository
from deploy.serving.options import ServeOptions
from export.errors import BundleError


def serve(path: Path, names: list[str], versions: tuple[str, ...] = ("1",)) -> ModelRepository:
    repository = ModelRepository()
    for name in names:
        for version in versions:
            model = ServedModel(name, version, read_bundle(path), ServeOptions())
            repository.add(model)
    return repository


def refuse(repository: ModelRepository, name: str, version: str = "") -> str:
    with pytest.raises(UnknownModelError) as raised:
        repository.get(name, version)
    return str(raised.value)


def test_a_path_that_cannot_be_looked_at_is_said(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot be read: .*too long"):
        find_bundles([tmp_path / ("a" * 300)])


def test_a_refusal_names_the_models_that_there_are(pristine: Path) -> None:
    said = refuse(serve(pristine, ["resnet", "bert"]), "resnext")
    assert said == "there is no model 'resnext'; this server has resnet, bert"
    assert refuse(ModelRepository(), "resnet").endswith("this server has none")


def test_a_refusal_stays_short_and_names_no_path(pristine: Path) -> None:
    names = [f"{number:03}{'n' * 125}" for number in range(12)]
    said = refuse(serve(pristine, names), "m" * 10_000)
    assert said.endswith(f"{names[7]} and 4 more")
    assert len(said) < 1200
    assert str(pristine) not in said


def test_a_refusal_names_the_versions_that_there_are(pristine: Path) -> None:
    said = refuse(serve(pristine, ["net"], ("10", "2")), "net", "3")
    assert said == "model 'net' has no version '3'; it has 2, 10"


def test_a_folder_that_is_a_version_has_its_model_above_it(pristine: Path, tmp_path: Path) -> None:
    for version in ("2", "10"):
        shutil.copytree(pristine, tmp_path / "all" / "scale" / version)
    shutil.copytree(pristine, tmp_path / "all" / "other.deploy")

    def called(*parts: str) -> list[tuple[str, str]]:
        return [(found.name, found.version) for found in find_bundles([tmp_path.joinpath(*parts)])]

    scale = [("scale", "10"), ("scale", "2")]
    assert called("all") == [("other", "1"), *scale]
    assert called("all", "scale") == scale
    assert called("all", "scale", "2") == [("scale", "2")]
    assert called("all", "other.deploy") == [("other", "1")]
    assert name_bundle(tmp_path / "all" / "other.deploy" / ".." / "scale" / "10") == ("scale", 10)
    assert name_bundle(Path("/7")) == ("7", None)  # nothing above it can be a name


def test_folders_that_are_no_bundles_do_not_keep_those_that_are_from_being_found(
    pristine: Path, tmp_path: Path
) -> None:
    shutil.copytree(pristine, tmp_path / "net.deploy")
    shutil.copytree(pristine, tmp_path / ".net.deploy.new-1")  # as it is being written
    shutil.copytree(pristine, tmp_path / "lost+found" / "1")
    (tmp_path / "notes.txt").write_text("no folder")
    assert [found.name for found in find_bundles([tmp_path])] == ["net"]


def test_a_link_has_its_own_name_and_is_followed_once(pristine: Path, tmp_path: Path) -> None:
    shutil.copytree(pristine, tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    (found,) = find_bundles([tmp_path / "current"])
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("gone")
    assert (found.name, found.path) == ("current", (tmp_path / "v1").resolve())
    (model,) = make_models([found], ServeOptions())
    assert model.bundle.golden().inputs  # which is read where its hash was found


def test_no_version_comes_back(pristine: Path) -> None:
    repository = serve(pristine, ["net"], ("1", "4"))
    repository.remove(repository.get("net", "4"))
    assert (repository.get("net").version, repository.highest("net")) == ("1", 4)
    repository.remove(repository.get("net"))
    assert (repository.highest("net"), repository.highest("other")) == (4, 0)
