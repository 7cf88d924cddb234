"""What earlier builds found out, kept by the hash of all that it depends on.

A plain folder of JSON files, ``$DEPLOY_CACHE``, else ``$XDG_CACHE_HOME/deploykit``, else
``~/.cache/deploykit``. A file that cannot be read counts as absent; deleting the folder loses
nothing but time.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from deploy.engines.base import Feeds
from export.onnx.files import external_files

_PACKAGES = (
    *("deploykit", "numpy", "onnx", "onnxruntime", "onnxscript", "openvino"),
    *("onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "torch"),
)


@dataclass(frozen=True)
class Cache:
    """A folder of findings; None: nothing is kept, nothing is found."""

    folder: Path | None

    def find(self, kind: str, key: str) -> Any | None:
        """The finding of that kind under that key; None where there is none."""
        if self.folder is None:
            return None
        try:
            return json.loads(self._path(kind, key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def keep(self, kind: str, key: str, value: Any) -> None:
        """Keep a finding, plain values only; a folder that cannot be written to keeps nothing."""
        if self.folder is None:
            return
        path = self._path(kind, key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(value, file)
                Path(name).replace(path)  # whole or not at all, whoever else writes it
            finally:
                Path(name).unlink(missing_ok=True)  # of a full disk, which it would keep full

    def recall(self, kind: str, key: str, compute: Callable[[], Any]) -> Any:
        """The finding, computed and kept where there is none."""
        found = self.find(kind, key)
        if found is None:
            found = compute()
            self.keep(kind, key, found)
        return found

    def _path(self, kind: str, key: str) -> Path:
        assert self.folder is not None
        return self.folder / kind / f"{key}.json"


def open_cache(*, enabled: bool = True) -> Cache:
    """The user's cache; one that keeps nothing where it is not wanted."""
    if not enabled:
        return Cache(None)
    if chosen := os.environ.get("DEPLOY_CACHE"):
        return Cache(Path(chosen))
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Cache(Path(base) / "deploykit")


def hash_parts(*parts: object) -> str:
    """SHA-256 over parts, in hex: files by content, bytes as they are, the rest by its JSON."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        elif isinstance(part, bytes):
            content = hashlib.sha256(part).digest()
        else:
            text = json.dumps(part, sort_keys=True, default=str)
            content = hashlib.sha256(text.encode()).digest()
        digest.update(content)
    return digest.hexdigest()


def hash_model(path: Path) -> str:
    """SHA-256 over an ONNX file and the files beside it that hold its weights.

    Raises:
        LoadError: the file is not ONNX.
    """
    return hash_parts(path, *external_files(path))


def hash_batches(batches: Iterable[Feeds]) -> str:
    """SHA-256 over the arrays of batches: names, shapes, types and values."""
    digest = hashlib.sha256()
    for batch in batches:
        for name, array in batch.items():
            digest.update(f"{name}{array.shape}{array.dtype}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def package_versions() -> dict[str, str | None]:
    """Versions of everything whose answers are kept."""
    return {name: _version(name) for name in _PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
