"""The bundles that a server is to serve: where they lie, what they are called, what is in them."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.bundle.folder import Bundle, read_bundle
from deploy.bundle.manifest import MANIFEST
from deploy.serving.models.model import ServedModel
from deploy.serving.options import ServeOptions
from export.errors import BundleError, ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_NOT_OURS = "lost+found"
"""What file systems make in the root of a volume, and let nobody read."""


@dataclass(frozen=True)
class FoundBundle:
    """A bundle on disk and what it is to be called.

    Attributes:
        path: without links, so that all that is read is of one bundle.
        identity: `deploy.bundle.manifest.Manifest.identity` of what was there; None: of whatever
            is there when it is read.
    """

    name: str
    version: str
    path: Path
    identity: str | None = None


def find_bundles(paths: Iterable[Path]) -> list[FoundBundle]:
    """The bundles that `paths` stand for.

    A path is a bundle, called by `name_bundle`; or a repository, a folder of bundles and of folders
    ``NAME/VERSION`` that are bundles; or such a folder ``NAME``. Hidden folders are passed over:
    they are what is being written.

    Raises:
        BundleError: a path is neither, or cannot be read.
        ConfigError: a name that cannot stand in a URL, or one that is there twice.
    """
    found: list[FoundBundle] = []
    for path in paths:
        try:
            inside = list(_search(path))
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error}. Check its permissions.") from error
        if not inside:
            if not path.exists():
                raise BundleError(f"{path}: there is no such folder. Make one with deploy build.")
            raise BundleError(
                f"{path} is no bundle and holds none: no {MANIFEST} is in it, in a folder of it, "
                "or in a folder NAME/VERSION. Make one with deploy build."
            )
        found += inside
    seen: set[tuple[str, str]] = set()
    for bundle in found:
        check_name(bundle.name, bundle.path)
        if (bundle.name, bundle.version) in seen:
            raise ConfigError(
                f"Two bundles are model {bundle.name!r} version {bundle.version}. A model has the "
                "name of its folder: rename one, or put versions into folders NAME/1, NAME/2."
            )
        seen.add((bundle.name, bundle.version))
    return found


def name_bundle(path: Path) -> tuple[str, int | None]:
    """What the model of the bundle at `path` is called, and its version where the folder says one.

    The name of the folder without ``.deploy``; of a folder ``NAME/VERSION`` these two.
    """
    folder = Path(os.path.abspath(path))  # its name as it was given, links and all, but for ".."
    if _VERSION.fullmatch(folder.name) and _NAME.fullmatch(folder.parent.name):
        return folder.parent.name, int(folder.name)
    return folder.name.removesuffix(".deploy"), None


def check_name(name: str, path: Path) -> None:
    """Hold the name of a model to what can stand in a URL and in a label.

    Raises:
        ConfigError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{path}: {name!r} cannot be the name of a model; rename the folder to letters, "
            "digits, '.', '_' and '-'."
        )


def make_models(bundles: Iterable[FoundBundle], options: ServeOptions) -> list[ServedModel]:
    """Read every bundle, hashes and all; none is opened yet.

    Raises:
        BundleError: see `deploy.bundle.folder.read_bundle`; or it is not the one that was found.
    """
    return [ServedModel(found.name, found.version, _read(found), options) for found in bundles]


def hold_to(found: Sequence[FoundBundle], identities: Mapping[str, str]) -> list[FoundBundle]:
    """`found`, each to be read as the bundle of its identity.

    Args:
        found: on this machine.
        identities: by ``NAME/VERSION``; see `identify`.

    Raises:
        BundleError: there are others than these, or some are missing.
    """
    there = {f"{bundle.name}/{bundle.version}": bundle for bundle in found}
    if there.keys() != identities.keys():
        raise BundleError(
            f"Here are {', '.join(sorted(there))}, and to be served are "
            f"{', '.join(sorted(identities))}. Put the bundles in their places, or write the "
            "config anew."
        )
    return [replace(bundle, identity=identities[name]) for name, bundle in there.items()]


def identify(models: Sequence[ServedModel]) -> dict[str, str]:
    """The identities of the bundles of `models` by ``NAME/VERSION``."""
    return {f"{m.name}/{m.version}": m.bundle.manifest.identity() for m in models}


def pin_bundles(models: Sequence[ServedModel]) -> list[FoundBundle]:
    """The bundles of `models`, to be read again elsewhere: these and no others in their place."""
    return [
        FoundBundle(model.name, model.version, model.bundle.path, model.bundle.manifest.identity())
        for model in models
    ]


def _read(found: FoundBundle) -> Bundle:
    bundle = read_bundle(found.path)
    if found.identity not in (None, bundle.manifest.identity()):
        raise BundleError(
            f"{found.path} is another bundle than when the server started or its config was "
            "written, and answers of two would be mixed. Put it back, or start anew."
        )
    return bundle


def _search(path: Path) -> Iterable[FoundBundle]:
    if (path / MANIFEST).is_file():
        yield _found(*name_bundle(path), path)
        return
    for folder in _list_folders(path):
        if (folder / MANIFEST).is_file():
            yield _found(*name_bundle(folder), folder)
            continue
        for inner in _list_folders(folder):
            if _VERSION.fullmatch(inner.name) and (inner / MANIFEST).is_file():
                yield FoundBundle(folder.name, inner.name, inner.resolve())


def _list_folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    folders = (each for each in path.iterdir() if each.name[0] != "." and each.name != _NOT_OURS)
    return sorted(folders)


def _found(name: str, version: int | None, path: Path) -> FoundBundle:
    return FoundBundle(name, str(version or 1), path.resolve())
