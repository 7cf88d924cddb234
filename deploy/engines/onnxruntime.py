"""ONNX Runtime on the CPU, or on the GPU where its build for CUDA is installed."""

import onnxruntime

from deploy.engines.base import Array, BackendEngine, EngineSpec, Feeds
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


CUDA = "cuda"
"""The variant of an `EngineSpec` that runs on the GPU."""
CUDA_PROVIDER = "CUDAExecutionProvider"
_CPU_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeEngine(BackendEngine):
    """An InferenceSession on the CPU or CUDA provider, all graph optimizations on."""

    def __init__(self, spec: EngineSpec) -> None:
        providers = _choose_providers(spec)
        try:
            self._session = onnxruntime.InferenceSession(
                spec.path, make_options(spec), providers=providers
            )
        except ORT_ERRORS as error:
            raise EngineError(f"ONNX Runtime cannot open {spec.path}: {error}") from error
        if self._session.get_providers()[0] != providers[0]:  # it takes the next without a word
            raise EngineError(
                "ONNX Runtime has its CUDA provider and could not load it: its libraries of CUDA "
                "and cuDNN are missing, or no NVIDIA GPU is there."
            )
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


def make_options(spec: EngineSpec) -> onnxruntime.SessionOptions:
    """Options of a session for `spec`; all graph optimizations are on by default."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is raised, and would be a line of no log of ours
    return options


def has_cuda_provider() -> bool:
    """Whether the ONNX Runtime that is installed was built for CUDA; a GPU may be missing yet."""
    return CUDA_PROVIDER in onnxruntime.get_available_providers()


def _choose_providers(spec: EngineSpec) -> list[str]:
    if spec.variant != CUDA:
        return [_CPU_PROVIDER]
    if not has_cuda_provider():
        raise EngineError(
            "This ONNX Runtime runs on the CPU alone; it has no CUDA provider. Install the one for "
            "GPUs in its place: pip uninstall onnxruntime, then pip install onnxruntime-gpu."
        )
    return [CUDA_PROVIDER, _CPU_PROVIDER]


def _spec(value: onnxruntime.NodeArg) -> TensorSpec:
    dtype = _DTYPES.get(value.type, value.type.removeprefix("tensor(").removesuffix(")"))
    shape = tuple(size if isinstance(size, int) else (size or BATCH) for size in value.shape)
    return TensorSpec(value.name, shape, dtype)
