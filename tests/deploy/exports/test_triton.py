"""A repository is written whole or not at all, and nothing of others in it is touched."""

import os
from pathlib import Path

import pytest
from altered import alter, with_plan, with_shapes
from tiny import Lean

import deploy.exports.triton
from deploy.bundle.folder import Bundle, read_bundle
from deploy.exports.triton import export_triton
from export.errors import BundleError, ConfigError


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return read_bundle(bundle_path)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models" / "repo"


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_layout_is_tritons(bundle: Bundle, repository: Path) -> None:
    export = export_triton(bundle, repository)
    assert (export.name, export.version, export.engine, export.warnings) == (
        "tiny",
        1,
        "onnxruntime-int8",
        (),
    )
    assert sorted(tree(repository)) == [
        "tiny/1/model.onnx",
        "tiny/config.pbtxt",
        "tiny/warmup/golden_1.0.raw",
        "tiny/warmup/golden_3.0.raw",
    ]
    model = bundle.path / "onnx-int8" / "model.onnx"
    assert (repository / "tiny" / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert sorted(os.listdir(repository)) == ["tiny"]
    assert sorted(os.listdir(repository.parent)) == ["repo"]


def test_weights_beside_the_file_come_along(bundle: Bundle, repository: Path) -> None:
    (bundle.path / "onnx-int8" / "model.onnx.data").write_bytes(b"weights")
    files = {**bundle.manifest.files, "onnx-int8/model.onnx.data": "0" * 64}
    export_triton(alter(bundle, files=files), repository)
    assert (repository / "tiny" / "1" / "model.onnx.data").read_bytes() == b"weights"


def test_a_plan_is_copied_under_its_name(bundle: Bundle, repository: Path) -> None:
    export_triton(with_plan(bundle), repository)
    assert (repository / "tiny" / "1" / "model.plan").read_bytes() == b"a plan"


def test_exporting_again_replaces_and_leaves_other_models_alone(
    bundle: Bundle, repository: Path
) -> None:
    other = repository / "other" / "config.pbtxt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    export_triton(bundle, repository, engine="onnxruntime-fp32")
    first = tree(repository)
    export_triton(bundle, repository)
    second = tree(repository)
    assert other.read_text() == "mine"
    assert b"onnxruntime-fp32" in first["tiny/config.pbtxt"]
    assert b"onnxruntime-fp32" not in second["tiny/config.pbtxt"]


def test_another_model_of_the_same_version_is_not_replaced_without_a_word(
    bundle: Bundle, repository: Path
) -> None:
    export_triton(bundle, repository, version=4)
    (repository / "tiny" / "9").mkdir()
    assert export_triton(bundle, repository, version=4).warnings == ()
    (repository / "tiny" / "4" / "model.onnx").write_bytes(b"another")
    (warning,) = export_triton(bundle, repository, version=4).warnings
    assert "stood as version 4 and was replaced. --version 10 would have left it" in warning
    (repository / "tiny" / "4" / "model.onnx.data").write_bytes(b"weights of another")
    assert len(export_triton(bundle, repository, version=4).warnings) == 1


def test_another_version_stands_beside_the_first_and_is_the_one_served(
    bundle: Bundle, repository: Path
) -> None:
    export_triton(bundle, repository)
    export_triton(bundle, repository, version=2, engine="onnxruntime-fp32")
    assert {"tiny/1/model.onnx", "tiny/2/model.onnx"} <= set(tree(repository))
    assert "versions: 2\n" in (repository / "tiny" / "config.pbtxt").read_text()


def test_a_version_with_other_inputs_is_refused_and_the_first_stays(
    bundle: Bundle, repository: Path
) -> None:
    export_triton(bundle, repository)
    before = tree(repository)
    wider = with_shapes(bundle, ("batch", 4), ("batch", 9))
    with pytest.raises(
        BundleError, match=r"has version 1 with other inputs.*Choose another --name"
    ):
        export_triton(wider, repository, version=2)
    assert tree(repository) == before
    assert os.listdir(repository.parent) == ["repo"]


@pytest.mark.parametrize("content", [None, "config.pbtxt", "notes.txt"])
def test_what_others_wrote_is_not_replaced(
    bundle: Bundle, repository: Path, content: str | None
) -> None:
    (repository / "tiny").mkdir(parents=True)
    if content is not None:
        (repository / "tiny" / content).write_text('name: "tiny"')
    before = tree(repository)
    with pytest.raises(BundleError, match="not written by deploy export-triton; it is left alone"):
        export_triton(bundle, repository)
    assert tree(repository) == before


def test_a_bundle_is_no_repository(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="is a bundle, no repository"):
        export_triton(bundle, bundle.path)
    assert read_bundle(bundle.path)


def test_a_model_folder_is_no_repository(bundle: Bundle, repository: Path) -> None:
    export = export_triton(bundle, repository)
    with pytest.raises(BundleError, match="Pass the folder above it"):
        export_triton(bundle, export.path)


def test_a_file_is_no_repository(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="cannot be written"):
        export_triton(bundle, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupt_leaves_the_old_model_and_nothing_that_triton_would_load(
    bundle: Bundle, repository: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    export_triton(bundle, repository)
    before = tree(repository)

    def stop(*arguments: object) -> str:
        assert os.listdir(repository) == ["tiny"]  # Triton takes any subfolder for a model
        raise error

    monkeypatch.setattr(deploy.exports.triton, "render_config", stop)
    with pytest.raises((KeyboardInterrupt, BundleError)):
        export_triton(bundle, repository, engine="onnxruntime-fp32")
    assert tree(repository) == before
    assert os.listdir(repository.parent) == ["repo"]


def test_a_place_that_cannot_be_looked_at_is_said(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"too long.* Choose another --output"):
        export_triton(bundle, tmp_path / ("a" * 300))
    with pytest.raises(BundleError, match=r"/ is no folder of a repository\. Choose another"):
        export_triton(bundle, Path("/"))


def test_versions_count_from_one(bundle: Bundle, repository: Path) -> None:
    with pytest.raises(ConfigError, match="--version 0: must be 1 or more"):
        export_triton(bundle, repository, version=0)


def test_what_clients_see_otherwise_is_said(bundle: Bundle, repository: Path) -> None:
    scalar = export_triton(with_shapes(bundle, ("batch", 4), ("batch",)), repository)
    assert scalar.warnings == ("'out0' has no axis beside the batch; Triton adds one of size 1.",)
    static = export_triton(with_shapes(bundle, (4, 4), (4, 3)), repository)
    assert "Triton will not batch requests" in static.warnings[0]


def test_an_odd_model_name_does_not_break_the_configuration(
    bundle: Bundle, repository: Path
) -> None:
    export = export_triton(alter(bundle, model='x\nname: "y"\n.pt'), repository, name="tiny")
    lines = (export.path / "config.pbtxt").read_text().splitlines()
    assert [line for line in lines if line.startswith("name:")] == ['name: "tiny"']


def test_it_needs_no_torch(pristine: Path, tmp_path: Path, lean: Lean) -> None:
    done = lean("-m", "deploy", "export-triton", pristine, "-o", tmp_path / "repo")
    assert done.returncode == 0, done.stderr
    assert f"onnxruntime-int8 is version 1 of tiny: {tmp_path / 'repo' / 'tiny'}" in done.stdout
