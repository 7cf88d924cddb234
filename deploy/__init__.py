"""From a trained PyTorch model to a verified, fast engine: build, load, verify, compare.

    bundle = deploy.build("model.pt", deploy.BuildConfig(inputs=("1x3x224x224",)))
    with deploy.load("model.deploy") as engine:
        outputs = engine({"x": array})

`load` needs no torch. Heavy dependencies are imported by the functions that need them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.bundle.folder import Bundle, load, read_bundle
    from deploy.commands.verification import verify
    from deploy.config import BuildConfig
    from deploy.pipeline import build
    from deploy.report import compare_reports

__all__ = ["BuildConfig", "Bundle", "build", "compare_reports", "load", "read_bundle", "verify"]

_HOMES = {
    "BuildConfig": "deploy.config",
    "Bundle": "deploy.bundle.folder",
    "build": "deploy.pipeline",
    "compare_reports": "deploy.report",
    "load": "deploy.bundle.folder",
    "read_bundle": "deploy.bundle.folder",
    "verify": "deploy.commands.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deploy' has no attribute {name!r}")
    if name in ("build",):
        from export.optional import require

        require("torch", extra="build")
    return getattr(importlib.import_module(_HOMES[name]), name)
