"""Where things run: eager, the baseline, and engines that have a device to choose."""

from typing import Any, Literal, Protocol

from export.errors import ConfigError
from export.gpu import read_gpu
from export.optional import require
from export.tensorrt.products import PRODUCTS

CPU: Literal["cpu"] = "cpu"
CUDA: Literal["cuda"] = "cuda"
"""Also the variant of an `EngineSpec` that runs torch or ONNX Runtime on the GPU."""
CUDA_NHWC = "cuda-nhwc"
"""The variant of ONNX Runtime on the GPU whose convolutions have their channels last."""
CUDA_GRAPHS = "cuda-graphs"
"""That of ONNX Runtime on the GPU, channels last, which replays a CUDA graph for each shape."""
NO_GPU = "no NVIDIA GPU"


class _Entry(Protocol):
    @property
    def engine(self) -> str: ...

    @property
    def variant(self) -> str: ...


def runs_on_gpu(variant: str) -> bool:
    """Whether a variant of torch or ONNX Runtime is one for the GPU."""
    return variant in (CUDA, CUDA_NHWC, CUDA_GRAPHS)


def needs_gpu(entry: _Entry) -> bool:
    """Whether an engine runs on a GPU alone: any of TensorRT, and ONNX Runtime's on CUDA.

    Eager torch on the GPU is not asked for here: it says itself what it lacks.
    """
    if entry.engine in PRODUCTS:
        return True
    return entry.engine == "onnxruntime" and runs_on_gpu(entry.variant)


def is_for_gpu(entry: _Entry) -> bool:
    """Whether an engine is to run on a GPU; eager's on CUDA too."""
    return needs_gpu(entry) or runs_on_gpu(entry.variant)


def choose_device(asked: str) -> Literal["cpu", "cuda"]:
    """The device of the baseline: ``cpu`` or ``cuda``.

    Args:
        asked: one of them, or ``auto``: the GPU where torch can use one.

    Raises:
        ConfigError: ``cuda`` is asked for, and torch cannot use a GPU here.
    """
    if asked == CPU:
        return CPU
    obstacle = explain_no_cuda(require("torch", extra="build"))
    if obstacle is None:
        return CUDA
    if asked == CUDA:
        raise ConfigError(f"--device cuda: {obstacle}")
    return CPU


def explain_no_cuda(torch: Any) -> str | None:
    """Why `torch` cannot use a GPU here, and what to do; None where it can."""
    if torch.cuda.is_available():
        return None
    gpu = read_gpu()
    if gpu is None:
        return (
            "no NVIDIA GPU was found here (nvidia-smi shows none). Leave --device out, or give "
            "--device cpu; on a machine with a GPU, deploy finish judges what waits for one."
        )
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} was built without CUDA, and cannot use the {gpu.name}. "
            "Install a build of torch with CUDA, or give --device cpu."
        )
    return (
        f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use the {gpu.name} with the "
        f"driver {gpu.driver}. Install a driver that fits, or give --device cpu."
    )
