"""What is known of a built engine without opening it: what it needs, and what it was made of.

An engine is native code for certain GPUs and one version of its library. What is written here is
held against the machine before a byte of it is deserialized.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.tensorrt.options import ShapeProfile


@dataclass(frozen=True)
class EngineRecord:
    """What an engine file was built with.

    Attributes:
        product: ``tensorrt`` or ``tensorrt_rtx``, as the module is called.
        version: of that package, such as ``1.7.1.116``.
        targets: compute capabilities that it runs on, such as ``SM89``.
        flags: builder flags by TensorRT's names, in order.
        profiles: the shapes that it takes; empty where all are static.
        onnx_sha256: of the ONNX file that it was built from, with its external data.
        engine_sha256: of the engine file.
        cuda: version of CUDA that the driver offered where it was built; None: built without a GPU.
        driver: version of the NVIDIA driver there; likewise.
        gpu: name of the GPU there; likewise.
        system: operating system and processor there, such as ``linux-x86_64``.
        plugins: SHA-256 of every plugin library that it needs, by file name.
        calibration_sha256: of the ranges that its int8 follows from; None where it has no int8.
    """

    product: str
    version: str
    targets: tuple[str, ...]
    flags: tuple[str, ...]
    profiles: tuple[ShapeProfile, ...]
    onnx_sha256: str
    engine_sha256: str
    cuda: str | None = None
    driver: str | None = None
    gpu: str | None = None
    system: str | None = None
    plugins: Mapping[str, str] = field(default_factory=dict)
    calibration_sha256: str | None = None

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "EngineRecord":
        """From plain values, as `dataclasses.asdict` gives them.

        Raises:
            KeyError, TypeError, ValueError: it is not of that form.
        """
        values = dict(plain)
        for key in ("targets", "flags"):
            values[key] = tuple(str(item) for item in values[key])
        values["profiles"] = tuple(ShapeProfile.from_dict(item) for item in values["profiles"])
        values["plugins"] = {str(k): str(v) for k, v in values.get("plugins", {}).items()}
        return cls(**values)


@dataclass(frozen=True)
class EngineFile:
    """An engine on disk, built ahead of time, and what is known of it."""

    path: Path
    record: EngineRecord
