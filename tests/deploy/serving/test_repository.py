"""What a server has is found by name and version; who asks for another is told what there is."""

from pathlib import Path

import pytest

from deploy.bundle.folder import read_bundle
from deploy.serving.errors import UnknownModelError
from deploy.serving.models.model import ServedModel
from deploy.serving.models.repository import ModelRepository, find_bundles
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
