"""What ``-o FILE`` names: looked at before the work whose result it is to hold, and written."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from export.errors import ConfigError


def check_output(path: Path | None) -> None:
    """Refuse a file that could not be written; None is no file. Nothing is made.

    Raises:
        ConfigError: it is a folder, its own folder is not there, or neither may be written.
    """
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Choose a file as --output.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {folder}. Make it first.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise _refuse(path, "Permission denied")


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write `content` to `path`, indented, in UTF-8.

    A file that is there is replaced by the whole of the new one, with its permissions, or stays as
    it is. A link or what is no plain file, such as ``/dev/stdout``, is written to, and so is a file
    whose folder takes no other beside it.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    plain = not path.is_symlink() and (path.is_file() or not path.exists())
    try:
        if plain and os.access(path.parent, os.W_OK):
            _replace(path, text)
        else:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _refuse(path, error.strerror or str(error)) from error


def _replace(path: Path, text: str) -> None:
    with tempfile.TemporaryDirectory(prefix=".deploy-", dir=path.parent) as folder:
        staged = Path(folder) / path.name
        staged.write_text(text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, staged)
        staged.replace(path)


def _refuse(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path} cannot be written: {reason}. Choose another --output.")
