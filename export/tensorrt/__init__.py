"""OnnxModel → TensorRT engine: NVIDIA TensorRT and TensorRT for RTX through one code path.

Precision lives in the ONNX graph alone, since both are strongly typed: Casts for fp16 and bf16,
Q/DQ for int8. TensorRT for RTX parses and builds without a GPU, for the compute capabilities that
are named; NVIDIA TensorRT builds for the GPU that it runs on.

The names below load on first use, so that options are read without ONNX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.artifacts import SizeRange as SizeRange
    from export.tensorrt.building import build_engine as build_engine
    from export.tensorrt.options import BuildOptions as BuildOptions
    from export.tensorrt.options import ShapeProfile as ShapeProfile
    from export.tensorrt.record import EngineFile as EngineFile
    from export.tensorrt.record import EngineRecord as EngineRecord
    from export.tensorrt.refit import refit_engine as refit_engine

_PUBLIC = {
    "BuildOptions": "export.tensorrt.options",
    "EngineFile": "export.tensorrt.record",
    "EngineRecord": "export.tensorrt.record",
    "ShapeProfile": "export.tensorrt.options",
    "SizeRange": "export.artifacts",
    "build_engine": "export.tensorrt.building",
    "refit_engine": "export.tensorrt.refit",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
