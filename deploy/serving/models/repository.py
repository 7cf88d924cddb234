"""Which models a server has: found on disk at the start, asked for by name and version."""

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.bundle.folder import read_bundle
from deploy.bundle.manifest import MANIFEST
from deploy.serving.errors import UnknownModelError
from deploy.serving.models.model import ServedModel
from deploy.serving.options import ServeOptions
from export.errors import BundleError, ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_NAMED = 8
"""Models, or versions, that a refusal names."""


@dataclass(frozen=True)
class FoundBundle:
    """A bundle on disk and what it is to be called."""

    name: str
    version: str
    path: Path


def find_bundles(paths: Iterable[Path]) -> list[FoundBundle]:
    """The bundles that `paths` stand for.

    A path is a bundle, whose model is called as the folder without ``.deploy``, version 1; or a
    repository, a folder of bundles and of folders ``NAME/VERSION`` that are bundles.

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


def _search(path: Path) -> Iterable[FoundBundle]:
    if (path / MANIFEST).is_file():
        yield FoundBundle(path.resolve().name.removesuffix(".deploy"), "1", path)
        return
    for folder in sorted(path.iterdir()) if path.is_dir() else ():
        if (folder / MANIFEST).is_file():
            yield FoundBundle(folder.name.removesuffix(".deploy"), "1", folder)
            continue
        for inner in sorted(folder.iterdir()) if folder.is_dir() else ():
            if _VERSION.fullmatch(inner.name) and (inner / MANIFEST).is_file():
                yield FoundBundle(folder.name, inner.name, inner)


class ModelRepository:
    """The models of a server, by name and version.

    Attributes:
        draining: the server is about to end; nothing is ready any more, and requests are taken.
        leaving: what waits for engines of models that are served no more, and have not returned.
    """

    def __init__(self) -> None:
        self.draining = False
        self.leaving: set[asyncio.Task[None]] = set()
        self._models: dict[str, dict[str, ServedModel]] = {}

    def add(self, model: ServedModel) -> None:
        """Serve `model` from now on, in place of what had its name and version."""
        self._models.setdefault(model.name, {})[model.version] = model

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model called `name`, of `version` or the highest.

        Raises:
            UnknownModelError: there is none.
        """
        versions = self._models.get(name)
        if versions is None:
            there = _name_some(list(self._models)) or "none"
            raise UnknownModelError(f"there is no model {name[:64]!r}; this server has {there}")
        if version:
            model = versions.get(version)
            if model is None:
                raise UnknownModelError(
                    f"model {name!r} has no version {version[:16]!r}; it has "
                    f"{_name_some(self.versions(name))}"
                )
            return model
        return (
            versions[max(versions, key=int)] if len(versions) > 1 else next(iter(versions.values()))
        )

    def find(self, name: str) -> list[ServedModel]:
        """The model called `name` in all its versions; empty: there is none."""
        return list(self._models.get(name, {}).values())

    def remove(self, model: ServedModel) -> None:
        """Send no more requests to `model`."""
        versions = self._models.get(model.name, {})
        if versions.get(model.version) is model:
            del versions[model.version]
        if not versions:
            self._models.pop(model.name, None)

    def versions(self, name: str) -> list[str]:
        """All versions of a model, ascending."""
        return sorted(self._models.get(name, ()), key=int)

    @property
    def ready(self) -> bool:
        """Whether every model is, and the server is to stay."""
        return not self.draining and all(model.ready for model in self.models())

    def models(self) -> list[ServedModel]:
        """All models in all versions."""
        return [model for versions in self._models.values() for model in versions.values()]

    def index(self, *, ready_only: bool = False) -> list[dict[str, str]]:
        """The repository index of the protocol."""
        return [
            {
                "name": model.name,
                "version": model.version,
                "state": "UNAVAILABLE" if model.stalled else model.state,
                "reason": model.obstacle,
            }
            for model in self.models()
            if model.ready or not ready_only
        ]


def _name_some(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are: refusals stay short."""
    more = len(names) - _NAMED
    text = ", ".join(names[:_NAMED])
    return f"{text} and {more} more" if more > 0 else text


def make_models(paths: Iterable[Path], options: ServeOptions) -> list[ServedModel]:
    """Read every bundle that `paths` stand for, hashes and all; none is opened yet.

    Raises:
        BundleError, ConfigError: see `find_bundles` and `deploy.bundle.folder.read_bundle`.
    """
    return [
        ServedModel(found.name, found.version, read_bundle(found.path), options)
        for found in find_bundles(paths)
    ]
