"""Where the baseline runs: eager on the CPU, or on the NVIDIA GPU of this machine."""

from typing import Any, Literal

from export.errors import ConfigError
from export.gpu import read_gpu
from export.optional import require

CPU: Literal["cpu"] = "cpu"
CUDA: Literal["cuda"] = "cuda"


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
