"""One file a backend. `open_engine` is the only way in; vendor errors are mapped inside."""

import contextlib

from deploy.engines.base import Array, Engine, EngineSpec, Feeds
from deploy.engines.conformity import check_engine
from deploy.engines.device import CUDA_GRAPHS, runs_on_gpu
from export.errors import EngineError
from export.tensorrt.products import PRODUCTS

__all__ = ["Array", "Engine", "EngineSpec", "Feeds", "open_engine"]


def open_engine(spec: EngineSpec) -> Engine:
    """Open the engine that `spec` describes, in this process.

    Raises:
        MissingExtraError: the backend is not installed; the message says which extra brings it.
        EngineError: the backend refuses the file, or has no runtime here; or the file takes or
            returns other than the signature in `spec` says.
    """
    with contextlib.ExitStack() as stack:
        engine = stack.enter_context(_open(spec))
        check_engine(engine, spec)
        stack.pop_all()
    return engine


def _open(spec: EngineSpec) -> Engine:
    if spec.engine == "torch":
        from deploy.engines.torch import TorchEngine

        return TorchEngine(spec)
    if spec.engine == "onnxruntime" and spec.variant == CUDA_GRAPHS:
        from deploy.engines.onnxruntime_graphs import OnnxRuntimeGraphsEngine

        return OnnxRuntimeGraphsEngine(spec)
    if spec.engine == "onnxruntime" and runs_on_gpu(spec.variant):
        from deploy.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine

        return OnnxRuntimeCudaEngine(spec)
    if spec.engine == "onnxruntime":
        from deploy.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(spec)
    if spec.engine == "openvino":
        from deploy.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(spec)
    if spec.engine in PRODUCTS:
        from deploy.engines.tensorrt import open_tensorrt

        return open_tensorrt(spec)
    raise EngineError(
        f"Engine {spec.engine!r} cannot be run by this version; it runs torch, onnxruntime, "
        "openvino, tensorrt and tensorrt_rtx."
    )
