"""The frozen records that stages hand to each other."""

from dataclasses import dataclass
from pathlib import Path

BATCH = "batch"
"""The name of the dynamic axis in every signature: the leading one of inputs, any of outputs."""


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor of a signature.

    Attributes:
        name: as the engine and the protocol know it.
        shape: sizes; a string is a symbolic axis, ``"batch"`` the dynamic one of the samples.
        dtype: numpy's name (``float32``, ``int64``, ``bfloat16`` through ml_dtypes).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """The concrete shape for a batch of `batch`; other symbolic axes become 1."""
        return tuple(
            size if isinstance(size, int) else (batch if size == BATCH else 1)
            for size in self.shape
        )

    @property
    def has_dynamic_batch(self) -> bool:
        """Whether the leading axis is the dynamic batch."""
        return bool(self.shape) and self.shape[0] == BATCH

    @property
    def batch_axis(self) -> int | None:
        """The one axis that is the dynamic batch; None: no axis is, or several are."""
        return self.shape.index(BATCH) if self.shape.count(BATCH) == 1 else None

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(str(size) for size in self.shape)}:{self.dtype}"


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file on disk (with external data beside it when large) and its signature."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int


@dataclass(frozen=True)
class EngineFile:
    """A file that an engine opens, built ahead of time."""

    path: Path
    engine: str
    precision: str
    target: str


@dataclass(frozen=True)
class Fused:
    """One rewrite that was done: which modules, by the user's own paths, became what."""

    paths: tuple[str, ...]
    kind: str
    error_float64: float
    """Largest difference of the folded weights' result from the original in float64, relative."""


@dataclass(frozen=True)
class Skip:
    """One rewrite that was possible by its shape and was not done, and why."""

    where: str
    what: str
    reason: str
