"""Memory, streams and graphs of a GPU behind one small seam, so that an engine needs no torch."""

from deploy.engines.device_memory.base import DeviceBuffer, DeviceGraph, DeviceMemory, DeviceTensor
from export.errors import EngineError, MissingExtraError
from export.optional import is_installed, require

__all__ = ["DeviceBuffer", "DeviceGraph", "DeviceMemory", "DeviceTensor", "choose_memory"]


def choose_memory() -> type[DeviceMemory]:
    """What opens a stream with its memory: torch where it is here with CUDA, else pycuda.

    torch is taken first since tensors of the caller are then used where they lie, and since it
    captures CUDA graphs, which pycuda has no calls for.

    Raises:
        MissingExtraError: neither is here.
        EngineError: torch is here, has no GPU to offer, and pycuda is not here.
    """
    has_torch = is_installed("torch")
    if has_torch and require("torch", extra="build").cuda.is_available():
        from deploy.engines.device_memory.torch_memory import TorchMemory

        return TorchMemory
    if is_installed("pycuda"):
        from deploy.engines.device_memory.pycuda_memory import PycudaMemory

        return PycudaMemory
    remedy = "Install torch with CUDA, or, where nvcc is to compile it: pip install pycuda"
    if has_torch:
        raise EngineError(
            "This torch was built without CUDA, or finds no GPU, and pycuda is not installed. "
            f"{remedy}"
        )
    raise MissingExtraError(
        f"Running TensorRT needs torch with CUDA, or pycuda, for memory on the GPU. {remedy}"
    )
