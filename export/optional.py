"""The only way to an optional dependency: ``openvino = require("openvino", extra="openvino")``."""

import importlib
import importlib.util
from importlib.machinery import ModuleSpec
from typing import Any

from export.errors import MissingExtraError

DISTRIBUTION = "deploykit"


SERVE_MODULES = ("starlette", "uvicorn", "uvloop", "httptools", "orjson", "grpc")
"""What a server imports, all of the extra ``serve``."""


def require(module: str, *, extra: str) -> Any:
    """Import `module`, or say which extra of the distribution brings it.

    Raises:
        MissingExtraError: the module is not installed, or is and fails to import for a reason of
            its own, such as a missing shared library; the message then has that reason.
    """
    try:
        found = importlib.import_module(module)
        if _is_bare_folder(found.__spec__):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module.partition(".")[0])
        return found
    except (ImportError, OSError) as error:  # OSError: a shared library that cannot be opened
        top_level = module.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == top_level:
            raise MissingExtraError(
                f"This needs {top_level!r}, which is not installed. "
                f"Install it with: pip install '{DISTRIBUTION}[{extra}]'"
            ) from error
        raise MissingExtraError(
            f"This needs {module!r}, which is installed and cannot be imported: {error}. "
            f"Mend it with: pip install --force-reinstall '{DISTRIBUTION}[{extra}]'"
        ) from error


def is_installed(module: str) -> bool:
    """Whether `module` can be found, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return False
    return spec is not None and not _is_bare_folder(spec)


def _is_bare_folder(spec: ModuleSpec | None) -> bool:
    """A folder of that name where Python looks, such as the user's own, with no package in it."""
    return spec is not None and spec.origin is None and spec.submodule_search_locations is not None
