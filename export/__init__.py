"""Torch graph → fused graph → ONNX → TensorRT engine. Depends on nothing of ours.

The names below load on first use, so that importing this package needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.capture.ladder import export_model as export_model
    from export.fusion import fuse as fuse
    from export.fusion import fuse_program as fuse_program
    from export.onnx.cost import model_cost as model_cost
    from export.onnx.exporter import to_onnx as to_onnx

_PUBLIC = {
    "export_model": "export.capture.ladder",
    "fuse": "export.fusion",
    "fuse_program": "export.fusion",
    "model_cost": "export.onnx.cost",
    "to_onnx": "export.onnx.exporter",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
