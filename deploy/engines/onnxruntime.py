"""ONNX Runtime on the CPU; `onnxruntime_cuda.py` has what differs on the GPU."""

from pathlib import Path
from typing import Any

import onnxruntime

from deploy.engines.base import Array, BackendEngine, EngineSpec, Feeds
from deploy.engines.device import runs_on_gpu
from export.artifacts import BATCH, TensorSpec
from export.errors import EngineError
from export.onnx.execute import ORT_ERRORS
from export.ranges import take_ranges

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
}

CPU_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeEngine(BackendEngine):
    """An InferenceSession with all graph optimizations on."""

    def __init__(self, spec: EngineSpec) -> None:
        self._session = open_session(spec, make_options(spec))
        found = [_spec(value) for value in self._session.get_inputs()]
        self.inputs = take_ranges(found, spec.inputs)
        self.outputs = tuple(_spec(value) for value in self._session.get_outputs())
        self._names = [value.name for value in self.outputs]

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        try:
            outputs = self._session.run(self._names, dict(feeds))
        except ORT_ERRORS as error:
            raise EngineError(f"ONNX Runtime failed on this input: {error}") from error
        return dict(zip(self._names, outputs, strict=True))

    def _release(self) -> None:
        del self._session


def open_session(spec: EngineSpec, options: onnxruntime.SessionOptions) -> Any:
    """A session on the provider that the variant of `spec` asks for, and on no other.

    Raises:
        EngineError: the file is refused, or the provider cannot be had here.
    """
    providers: list[Any] = [CPU_PROVIDER]
    if runs_on_gpu(spec.variant):
        from deploy.engines.onnxruntime_cuda import choose_providers, explain_unloaded

        providers = choose_providers(spec)
    with map_ort_errors(f"cannot open {Path(spec.path).name}", path=spec.path):
        session = onnxruntime.InferenceSession(
            spec.path, options, providers=providers, enable_fallback=False
        )
    if len(session.get_providers()) < len(providers):  # it goes on with the CPU without a word
        raise EngineError(explain_unloaded())
    return session


class MappedErrors:
    """Turns what ONNX Runtime raises within it into ours.

    A generator would be left in a cycle with the error, which keeps sessions alive (Python 3.13).
    """

    def __init__(self, doing: str, path: str) -> None:
        self._doing, self._path = doing, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(
            error, (*ORT_ERRORS, RuntimeError)
        ):  # its binding to Python throws the latter
            path = self._path
            said = str(error).replace(path, Path(path).name) if path else str(error)
            raise EngineError(f"ONNX Runtime {self._doing}: {said}") from error


def map_ort_errors(doing: str, *, path: str = "") -> MappedErrors:
    """Turn what ONNX Runtime raises into ours; `doing` says what it could not do.

    A `path` that it names becomes its last part: the folder of a build is gone when it is read.
    """
    return MappedErrors(doing, path)


def make_options(spec: EngineSpec) -> onnxruntime.SessionOptions:
    """Options of a session for `spec`; all graph optimizations are on by default."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, and would be a line of no log of ours
    if runs_on_gpu(spec.variant):  # threads that wait for the GPU are to leave the CPU alone
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _spec(value: onnxruntime.NodeArg) -> TensorSpec:
    dtype = _DTYPES.get(value.type, value.type.removeprefix("tensor(").removesuffix(")"))
    shape = tuple(size if isinstance(size, int) else (size or BATCH) for size in value.shape)
    return TensorSpec(value.name, shape, dtype)
