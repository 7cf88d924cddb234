"""A bundle as a model of a Triton repository.

repo/
    NAME/
        config.pbtxt        what the model takes, and how Triton runs it
        1/model.onnx        the engine's file, with its external data
        warmup/             golden inputs, as Triton reads them before the model is ready
"""

import filecmp
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle.folder import Bundle
from deploy.bundle.manifest import MANIFEST
from deploy.bundle.staging import stage_folder
from deploy.datatypes import to_wire
from deploy.exports.choice import choose_engine, make_name
from deploy.exports.triton_config import (
    Batching,
    TritonModel,
    WarmUp,
    choose_batching,
    plan_warmups,
    render_config,
    render_signature,
)
from export.errors import BundleError, ConfigError

CONFIG = "config.pbtxt"
_MARK = "# Written by deploy export-triton"


@dataclass(frozen=True)
class TritonExport:
    """What was written.

    Attributes:
        path: the model's folder in the repository.
        engine: of the bundle, whose file it holds.
        warnings: what is not as it is in the bundle.
    """

    path: Path
    name: str
    version: int
    engine: str
    warnings: tuple[str, ...]


def export_triton(
    bundle: Bundle,
    repository: Path,
    *,
    name: str | None = None,
    version: int = 1,
    engine: str | None = None,
) -> TritonExport:
    """Write `bundle` into a Triton model repository, whole or not at all.

    Other models of the repository are left alone. Versions that an earlier export wrote stay where
    they have the same inputs and outputs; the one that is written is the one that Triton serves.

    Args:
        bundle: its hashes were checked when it was read.
        repository: the folder that Triton is started with; made where it is missing.
        name: of the model; None: that of the model file.
        version: its folder, 1 or more.
        engine: such as ``onnxruntime-fp32``; None: the winner, or the fastest that Triton runs.

    Raises:
        BundleError: Triton runs nothing of it, or the place is taken by something else.
        ConfigError: the name or the version cannot be used.
    """
    if version < 1:
        raise ConfigError(f"--version {version}: must be 1 or more.")
    choice = choose_engine(bundle, engine)
    model = TritonModel(bundle, choice.engine, choice.backend, make_name(bundle, name), version)
    batching = choose_batching(model)
    warmups = plan_warmups(bundle.golden().inputs, batching)
    target = repository / model.name
    try:
        _refuse_repository(repository)
        repository = repository.resolve()
        # Triton loads any subfolder
        beside = repository.with_name(f"{repository.name}.{model.name}")
        with stage_folder(target, _refuse_other, beside=beside) as stage:
            _keep_versions(target, stage, model, batching)
            _write_model(stage, model, batching, warmups)
            replaced = tuple(_warn_of_the_replaced(target, stage, version))
    except OSError as error:
        raise BundleError(
            f"{target} cannot be written: {error}. Choose another --output."
        ) from error
    return TritonExport(
        target,
        model.name,
        version,
        choice.engine,
        (*choice.warnings, *_warn(model, batching), *replaced),
    )


def _write_model(
    stage: Path, model: TritonModel, batching: Batching, warmups: tuple[WarmUp, ...]
) -> None:
    folder = stage / str(model.version)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    for file in _model_files(model):
        shutil.copyfile(file, folder / file.name)
    (stage / "warmup").mkdir()
    for warmup in warmups:
        for name, array in warmup.arrays.items():
            (stage / "warmup" / warmup.file(name)).write_bytes(to_wire(array))
    built = (
        f"{model.engine} of {model.bundle.manifest.model}, built {model.bundle.manifest.created}"
    )
    head = re.sub(r"[^ -~]", "?", f"{_MARK}: {built}")  # one line, whatever the file is called
    config = render_config(model, batching, warmups)
    (stage / CONFIG).write_text(f"{head}\n{config}", encoding="utf-8")


def _model_files(model: TritonModel) -> Iterator[Path]:
    """The engine's file, and the weights that lie beside one of more than 2 GB."""
    root, names = model.bundle.path, model.bundle.manifest.files
    yield root / model.file
    if f"{model.file}.data" in names:
        yield root / f"{model.file}.data"


def _keep_versions(target: Path, stage: Path, model: TritonModel, batching: Batching) -> None:
    """Copy the other versions that stand there; all versions of a model share one configuration."""
    found = (path for path in target.glob("*") if path.is_dir() and path.name.isdecimal())
    versions = [folder for folder in found if int(folder.name) != model.version]
    if not versions:
        return
    if render_signature(model, batching) not in (target / CONFIG).read_text(encoding="utf-8"):
        raise BundleError(
            f"{target} has version {min(folder.name for folder in versions)} with other inputs, "
            "outputs, batches or backend, and Triton has one configuration for all versions. "
            "Choose another --name."
        )
    for folder in versions:
        shutil.copytree(folder, stage / folder.name)


def _refuse_repository(repository: Path) -> None:
    if not repository.resolve().name:
        raise BundleError(f"{repository} is no folder of a repository. Choose another --output.")
    if (repository / MANIFEST).exists():
        raise BundleError(f"{repository} is a bundle, no repository. Choose another --output.")
    if (repository / CONFIG).exists():
        raise BundleError(
            f"{repository} is a model of a repository: it has a {CONFIG}. Pass the folder above it."
        )


def _refuse_other(target: Path) -> None:
    """Only what an earlier export wrote may be replaced."""
    if not target.exists():
        return
    config = target / CONFIG
    if not config.is_file() or not config.read_bytes().startswith(_MARK.encode()):
        raise BundleError(
            f"{target} exists and was not written by deploy export-triton; it is left alone. "
            "Choose another --name or --output."
        )


def _warn_of_the_replaced(target: Path, stage: Path, version: int) -> Iterator[str]:
    """Where another model stood as this version: what was served as it is gone."""
    before, after = target / str(version), stage / str(version)
    if not before.is_dir():
        return
    names = sorted({file.name for folder in (before, after) for file in folder.iterdir()})
    if filecmp.cmpfiles(before, after, names, shallow=False)[0] == names:
        return
    highest = max(int(path.name) for path in stage.iterdir() if path.name.isdecimal())
    yield (
        f"Another model stood as version {version} and was replaced. "
        f"--version {highest + 1} would have left it there and stood beside it."
    )


def _warn(model: TritonModel, batching: Batching) -> Iterator[str]:
    """What clients will see otherwise than the bundle has it."""
    manifest = model.bundle.manifest
    if not batching.most:
        yield (
            "The batch is not the first axis of every input and output, or is fixed: Triton will "
            "not batch requests."
        )
    for spec in (*manifest.inputs, *manifest.outputs):
        if not (spec.shape[1:] if batching.most else spec.shape):
            yield f"{spec.name!r} has no axis beside the batch; Triton adds one of size 1."
