"""Libraries with layers of the user's own, which TensorRT loads before it parses or opens anything.

Such a library is native code that runs in this process. So it is known by its hash from the moment
it is chosen, and one that has changed since is not loaded.
"""

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import ConfigError, EngineError

_MAGIC = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")
"""How shared libraries of Linux, Windows and macOS begin."""


@dataclass(frozen=True)
class PluginLibrary:
    """One library.

    Attributes:
        path: where it is; in the recipe of a bundle relative to the bundle.
        sha256: of its bytes.
    """

    path: str
    sha256: str

    @property
    def name(self) -> str:
        """Of the file, by which the engine's record knows it."""
        return Path(self.path).name

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "PluginLibrary":
        """From plain values, as `dataclasses.asdict` gives them.

        Raises:
            KeyError, TypeError: it is not of that form.
        """
        return cls(str(plain["path"]), str(plain["sha256"]))


def read_plugins(paths: Sequence[str]) -> tuple[PluginLibrary, ...]:
    """The libraries at `paths`, hashed; none is loaded.

    Raises:
        ConfigError: a file is missing or is no shared library, or two have one name.
    """
    found: dict[str, PluginLibrary] = {}
    for path in paths:
        file = Path(path)
        try:
            content = file.read_bytes()
        except FileNotFoundError as error:
            raise ConfigError(
                f"--plugin {path}: there is no such file. Pass the library's path, .so or .dll."
            ) from error
        except OSError as error:
            raise ConfigError(f"--plugin {path}: it cannot be read: {error}.") from error
        if not content.startswith(_MAGIC):
            raise ConfigError(
                f"--plugin {path}: this is no shared library. Pass what was compiled and linked "
                "against TensorRT, .so or .dll."
            )
        if file.name in found:
            raise ConfigError(
                f"--plugin {path}: two libraries are called {file.name}, and they lie side by side "
                "beside the engine. Rename one."
            )
        digest = hashlib.sha256(content).hexdigest()
        found[file.name] = PluginLibrary(str(file.absolute()), digest)
    return tuple(found.values())


def copy_plugins(plugins: Iterable[PluginLibrary], folder: Path) -> tuple[PluginLibrary, ...]:
    """Copy libraries into `folder`, byte by byte those that were chosen.

    Raises:
        EngineError: one is missing, or has changed since.
    """
    copied = []
    for plugin in plugins:
        source, target = Path(plugin.path), folder / plugin.name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if source.resolve() != target.resolve():
                shutil.copyfile(source, target)
            digest = hashlib.sha256(target.read_bytes()).hexdigest()
        except OSError as error:
            raise EngineError(
                f"The plugin library {plugin.path} cannot be read any more: {error}. Build again."
            ) from error
        if digest != plugin.sha256:
            target.unlink()
            raise EngineError(
                f"The plugin library {plugin.path} is not the one that was chosen (its SHA-256 "
                "differs): it has changed since. Build again, with the one that you mean."
            )
        copied.append(PluginLibrary(str(target), digest))
    return tuple(copied)


def load_plugins(registry: Any, paths: Iterable[Path], stack: ExitStack | None = None) -> None:
    """Load libraries into a registry of TensorRT, their hashes known to be right.

    Args:
        registry: of a builder or a runtime.
        paths: of the libraries.
        stack: lets go of them at its end; None: they stay as long as `registry`, which what was
            made of their code must not outlive.

    Raises:
        EngineError: TensorRT or the system refuses one.
    """
    for path in paths:
        try:
            handle = registry.load_library(str(path))
        except RuntimeError as error:
            raise EngineError(
                f"The plugin library {path.name} cannot be loaded: {error}"
            ) from error
        if handle is None:
            raise EngineError(
                f"The plugin library {path.name} cannot be loaded: it offers no plugins of "
                "TensorRT, or lacks a library that it needs itself (ldd shows which)."
            )
        if stack is not None:
            stack.callback(registry.deregister_library, handle)
