"""Does a model file take and return what was recorded of it: names, ranks, sizes and types."""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.engines.base import Engine, EngineSpec
from export.artifacts import TensorSpec
from export.errors import EngineError


@dataclass(frozen=True)
class DeclaredTensor:
    """An input or output as a file declares it.

    Attributes:
        shape: sizes; a string is an axis of any size. None: the file does not tell.
        dtype: numpy's name; None: the file does not tell.
    """

    name: str
    shape: tuple[int | str, ...] | None
    dtype: str | None

    def __str__(self) -> str:
        sizes = "any shape" if self.shape is None else "x".join(str(size) for size in self.shape)
        return f"{self.name}:{sizes}:{self.dtype or 'any type'}"


def explain_difference(
    what: str, recorded: Sequence[TensorSpec], declared: Sequence[DeclaredTensor]
) -> str | None:
    """In what a file differs from a signature, in words; None: in nothing.

    An axis is fixed in both or dynamic in both, by whatever name. A file may leave sizes of its
    outputs open, since its exporter could not infer them.

    Args:
        what: ``inputs`` or ``outputs``.
        recorded: the signature.
        declared: by the file.
    """
    found = {tensor.name: tensor for tensor in declared}
    if sorted(found) != sorted(spec.name for spec in recorded):
        names = ", ".join(spec.name for spec in recorded)
        return f"its {what} are {', '.join(found)}, and {names} were recorded"
    for spec in recorded:
        tensor = found[spec.name]
        fault = _compare(spec, tensor, open_sizes=what == "outputs")
        if fault is not None:
            recorded_as = f"{spec.name}:{'x'.join(map(str, spec.shape))}:{spec.dtype}"
            return (
                f"{what.removesuffix('s')} {spec.name!r} was recorded as {recorded_as}, and the "
                f"file has {tensor}: {fault}"
            )
    return None


def check_engine(engine: Engine, spec: EngineSpec) -> None:
    """Hold what was opened against the signature that `spec` gives, as far as it gives one.

    Raises:
        EngineError: they differ; the message has the file, the tensor and both.
    """
    for what, recorded, opened in (
        ("inputs", spec.inputs, engine.inputs),
        ("outputs", spec.outputs, engine.outputs),
    ):
        if not recorded:
            continue
        # of an output without a declared rank ONNX Runtime says that it has no axes
        declared = [
            DeclaredTensor(s.name, s.shape if s.shape or what == "inputs" else None, s.dtype)
            for s in opened
        ]
        difference = explain_difference(what, recorded, declared)
        if difference is not None:
            raise EngineError(f"{spec.path}: {difference}. Build it again.")


def _compare(spec: TensorSpec, tensor: DeclaredTensor, *, open_sizes: bool) -> str | None:
    if tensor.dtype is not None and tensor.dtype != spec.dtype:
        return f"{tensor.dtype} is not {spec.dtype}"
    if tensor.shape is None:
        return None
    if len(tensor.shape) != len(spec.shape):
        return f"{len(tensor.shape)} axes are not {len(spec.shape)}"
    for axis, (size, known) in enumerate(zip(tensor.shape, spec.shape, strict=True)):
        if size == known or (isinstance(size, str) and (open_sizes or isinstance(known, str))):
            continue
        return f"axis {axis} is {_name_size(size)}, not {_name_size(known)}"
    return None


def _name_size(size: int | str) -> str:
    return f"dynamic ({size})" if isinstance(size, str) else str(size)
