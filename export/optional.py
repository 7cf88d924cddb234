"""The only way to an optional dependency: ``openvino = require("openvino", extra="openvino")``."""

import importlib
import importlib.util
from typing import Any

from export.errors import MissingExtraError

DISTRIBUTION = "deploykit"


def require(module: str, *, extra: str) -> Any:
    """Import `module`, or say which extra of the distribution brings it.

    Raises:
        MissingExtraError: the module is not installed. A module that is installed and fails to
            import for a reason of its own keeps that reason in the message.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top_level = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top_level:
            raise
        raise MissingExtraError(
            f"This needs {top_level!r}, which is not installed. "
            f"Install it with: pip install '{DISTRIBUTION}[{extra}]'"
        ) from error


def is_installed(module: str) -> bool:
    """Whether `module` can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
