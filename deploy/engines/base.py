"""What every engine is, and how to open one anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from export.artifacts import TensorSpec
from export.errors import EngineError
from export.images import ImageCall
from export.tensorrt.record import EngineRecord

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
"""Named arrays, batch first."""


class Engine(Protocol):
    """A model that runs. Parity, latency, search and serving know nothing more of a backend."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The signature's inputs."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The signature's outputs."""

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Run on named arrays and return named arrays that the caller owns."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@dataclass(frozen=True)
class EngineSpec:
    """How to open an engine: in this process, in a child that is measured, in a server.

    Attributes:
        engine: ``torch``, ``onnxruntime``, ``openvino``, ``tensorrt``, ``tensorrt_rtx``.
        precision: ``fp32``, ``tf32``, ``bf16``, ``fp16``, ``int8``, ``int4``, ``mixed``.
        path: the file that is opened.
        threads: intra-op threads.
        trust: packages whose code a torch model file may run; ``("*",)`` trusts all.
        factory: ``package.module:callable`` that makes the module of a state_dict.
        keyword: the torch module takes its inputs by name.
        inputs: signature; needed by ``torch``. The others read it from the file, but for the ranges
            of dynamic axes, and OpenVINO the names of axes of outputs.
        outputs: likewise.
        variant: how int8 comes about without calibration: ``dynamic``, activations are quantized
            as they come, a tensor at a time; ``weights``, weights are packed in blocks, and
            activations quantized in blocks while they are multiplied. Empty: neither. Or where
            ONNX Runtime or torch runs: ``cuda``, on the GPU; empty: on the CPU. ONNX Runtime alone:
            ``cuda-nhwc``, there with channels last; ``cuda-graphs``, so and with CUDA graphs.
        record: of an engine that was built ahead of time, what it needs; such an engine is not
            opened without.
        source: of such an engine, the ONNX file that it was built from, which tells what its layers
            are; None: `path` is the graph itself.
        images: inputs of a torch module that take uint8 images; others have that in their graph.
    """

    engine: str
    precision: str
    path: str
    threads: int
    trust: tuple[str, ...] = ()
    factory: str | None = None
    keyword: bool = False
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    variant: str = ""
    record: EngineRecord | None = None
    source: str | None = None
    images: ImageCall | None = None

    @property
    def name(self) -> str:
        """The candidate's name in reports: ``onnxruntime-int8``; the baseline is ``torch``."""
        return "torch" if self.engine == "torch" else name_candidate(self)


class _Candidate(Protocol):
    @property
    def engine(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def variant(self) -> str: ...


def name_candidate(candidate: _Candidate) -> str:
    """``onnxruntime-int8``, ``onnxruntime-int8-dynamic``: engine, precision and variant."""
    parts = (candidate.engine, candidate.precision, candidate.variant)
    return "-".join(part for part in parts if part)


class BackendEngine:
    """What the engines of all backends share: checked inputs, and an end.

    A backend sets `inputs` and `outputs` and says how it runs and what it lets go.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _closed = False
    _fitting: tuple[object, ...] | None = None
    """Names, dtypes and shapes of arrays that were found to fit; the next ones are mostly alike."""

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        raise NotImplementedError

    def _release(self) -> None:
        """Let go of what the vendor's library holds."""

    def __call__(self, feeds: Feeds) -> dict[str, Array]:
        """Run on named arrays and return named arrays that the caller owns.

        Raises:
            EngineError: the inputs do not fit, the backend fails, or the engine was closed.
        """
        if self._closed:
            raise EngineError("The engine is closed; call it inside its with block.")
        seen = _describe_arrays(feeds)
        if seen is None or seen != self._fitting:
            check_feeds(self.inputs, feeds)
            self._fitting = seen
        return self._run(feeds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        self._release()

    def __repr__(self) -> str:
        takes, gives = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"{type(self).__name__}({takes} -> {gives})"


def _describe_arrays(feeds: Feeds) -> tuple[object, ...] | None:
    """Name, dtype and shape of every array; None where they are no arrays of numpy by name."""
    if type(feeds) is not dict:
        return None
    described: list[object] = []
    for name, array in feeds.items():
        if type(array) is not np.ndarray:
            return None
        described += (name, array.dtype, array.shape)
    return tuple(described)


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Feeds) -> None:
    """Compare named arrays with a signature before a backend sees them.

    Raises:
        EngineError: a name is missing or unknown, a dtype or a size differs, or the dynamic batch
            is not the same for all inputs.
    """
    names = [spec.name for spec in specs]
    if not isinstance(feeds, Mapping):
        raise EngineError(
            f"An engine takes named arrays, not {type(feeds).__name__}: "
            f"engine({{{names[0]!r}: x}})."
        )
    for name in feeds:
        if name not in names:
            raise EngineError(f"There is no input {name!r}; the inputs are: {', '.join(names)}.")
    batches: dict[str, int] = {}
    named: dict[str, tuple[str, int]] = {}
    for spec in specs:
        if spec.name not in feeds:
            raise EngineError(f"Input {spec.name!r} is missing; it is {spec}.")
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray):
            raise EngineError(
                f"Input {spec.name!r} is no numpy array but {type(array).__name__}; it is {spec}."
            )
        if str(array.dtype) != spec.dtype:
            raise EngineError(
                f"Input {spec.name!r} has dtype {array.dtype}; the engine takes {spec.dtype}."
            )
        _check_shape(spec, array.shape)
        if spec.has_dynamic_batch:
            batches[spec.name] = array.shape[0]
        _check_named(spec, array.shape, named)
    if len(set(batches.values())) > 1:
        sizes = ", ".join(f"{name} {size}" for name, size in batches.items())
        raise EngineError(f"The inputs have different batch sizes: {sizes}.")


def _check_named(
    spec: TensorSpec, shape: tuple[int, ...], named: dict[str, tuple[str, int]]
) -> None:
    """Axes of one name are of one size; `named` has the inputs and sizes that were seen."""
    for name, size in zip(spec.shape, shape, strict=True):
        if isinstance(name, str) and name in spec.ranges:
            other, known = named.setdefault(name, (spec.name, size))
            if size != known:
                raise EngineError(
                    f"The axis {name!r} is {size} in input {spec.name!r} and {known} in "
                    f"{other!r}; it must be the same."
                )


def _check_shape(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    agrees = len(shape) == len(spec.shape) and all(
        size >= 1 if isinstance(expected, str) else size == expected
        for size, expected in zip(shape, spec.shape, strict=True)
    )
    if not agrees:
        raise EngineError(f"Input {spec.name!r} has shape {list(shape)}; the engine takes {spec}.")
    misfit = spec.explain_misfit(shape)
    if misfit is not None:
        raise EngineError(f"Input {spec.name!r} {misfit}; resize it, or build for more sizes.")
