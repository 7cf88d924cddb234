"""From a trained PyTorch model to a verified, fast engine: build, load, verify, compare.

    bundle = deploy.build("model.pt", deploy.BuildConfig(inputs=("1x3x224x224",)))
    with deploy.load("model.deploy") as engine:
        outputs = engine({"x": array})

`load` needs no torch. Heavy dependencies are imported by the functions that need them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.bundle import Bundle, load, read_bundle
    from deploy.config import BuildConfig
    from deploy.pipeline import build
    from deploy.report import compare_reports
    from deploy.verification import verify

__all__ = ["BuildConfig", "Bundle", "build", "compare_reports", "load", "read_bundle", "verify"]

_HOMES = {
    "BuildConfig": "deploy.config",
    "Bundle": "deploy.bundle",
    "build": "deploy.pipeline",
    "compare_reports": "deploy.report",
    "load": "deploy.bundle",
    "read_bundle": "deploy.bundle",
    "verify": "deploy.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deploy' has no attribute {name!r}")
    if name in ("build",):
        from export.optional import require

        require("torch", extra="build")
    return getattr(importlib.import_module(_HOMES[name]), name)
