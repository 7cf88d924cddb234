"""Which models a server has, asked for by name and version."""

import asyncio
from collections.abc import Sequence

from deploy.serving.errors import UnknownModelError
from deploy.serving.models.model import ServedModel

_NAMED = 8
"""Models, or versions, that a refusal names."""


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
        self._highest: dict[str, int] = {}

    def add(self, model: ServedModel) -> None:
        """Serve `model` from now on, in place of what had its name and version."""
        self._models.setdefault(model.name, {})[model.version] = model
        self._highest[model.name] = max(self.highest(model.name), int(model.version))

    def highest(self, name: str) -> int:
        """The highest version of the model called `name` that ever was here; 0: there was none.

        No number comes back: an answer says which version it is of.
        """
        return self._highest.get(name, 0)

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
