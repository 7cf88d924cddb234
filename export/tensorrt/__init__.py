"""OnnxModel → TensorRT engine: NVIDIA TensorRT and TensorRT for RTX through one code path.

Precision lives in the ONNX graph alone, since both are strongly typed: Casts for fp16 and bf16, Q/DQ
for int8. TensorRT for RTX parses and builds without a GPU, for the compute capabilities that are
named; NVIDIA TensorRT builds for the GPU that it runs on.
"""

from export.tensorrt.building import build_engine
from export.tensorrt.options import BuildOptions, ShapeProfile
from export.tensorrt.record import EngineRecord

__all__ = ["BuildOptions", "EngineRecord", "ShapeProfile", "build_engine"]
