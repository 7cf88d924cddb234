"""A deserialized engine: its tensors, its profiles, and the contexts that it runs in."""

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from deploy.engines.base import Array
from deploy.engines.layer_times import LayerTimes, make_profiler
from deploy.engines.output_allocator import make_allocator_class
from export.errors import EngineError
from export.tensorrt.options import ShapeProfile
from export.tensorrt.plugins import load_plugins
from export.tensorrt.products import ErrorLog, Product, import_product, start

_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
    "FP8": ml_dtypes.float8_e4m3fn,
}
"""By TensorRT's names; of fewer than 8 bits numpy has none."""


@dataclass(frozen=True)
class NativeTensor:
    """An input or output, as the engine knows it; -1 is an axis whose size it does not fix."""

    name: str
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"

    def count_bytes(self, shape: tuple[int, ...]) -> int:
        """Of a tensor of that shape."""
        return int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize

    def view(self, pinned: Array, shape: tuple[int, ...]) -> Array:
        """Bytes seen as this tensor."""
        seen: Array = pinned.view(self.dtype).reshape(shape)
        return seen


@dataclass(frozen=True)
class PlanFile:
    """What is deserialized.

    Attributes:
        content: the bytes of the engine, whose hash was checked.
        label: its name, for messages.
        host_code: it brings code of its own for the host, as version-compatible engines do.
        plugins: libraries that it needs, whose hashes were checked.
    """

    content: bytes
    label: str
    host_code: bool = False
    plugins: tuple[Path, ...] = ()


class NativeEngine:
    """See the module's own words.

    Attributes:
        inputs, outputs: by name, in the engine's order.
        profiles: the shapes that it takes; empty where all are static.
        scratch: bytes that a context needs for its own work.
        allocator: makes what TensorRT asks for the memory of outputs of unknown size.
        captures_itself: the product has CUDA graphs of its own, and ours would stand in their way.

    Raises:
        MissingExtraError: the product is not installed.
        EngineError: it refuses the engine; the message has its words.
    """

    def __init__(self, product: Product, plan: PlanFile) -> None:
        self._trt = trt = import_product(product)
        self._title, self._log, self._lock = product.title, ErrorLog(trt), threading.Lock()
        with ExitStack() as stack:
            runtime = start(product, trt.Runtime, self._log)
            runtime.engine_host_code_allowed = plan.host_code
            load_plugins(runtime.get_plugin_registry(), plan.plugins, stack)
            engine = runtime.deserialize_cuda_engine(plan.content)
            if engine is None:
                raise EngineError(f"{self._title} cannot open {plan.label}: {self.explain()}")
            self._runtime, self._engine, self._cache = runtime, engine, None
            tensors = _read_tensors(trt, engine, plan.label)
            self.inputs = {t.name: t for t, is_input in tensors if is_input}
            self.outputs = {t.name: t for t, is_input in tensors if not is_input}
            self.profiles = _read_profiles(engine, self.inputs)
            self.scratch = int(engine.device_memory_size_v2)
            self.captures_itself = product.ahead_of_time
            self.allocator = make_allocator_class(trt)
            self._config = self._make_config() if self.captures_itself else None
            self._profiled_config: Any = None
            self._stack = stack.pop_all()

    def create_context(self, times: LayerTimes | None = None) -> Any:
        """A context; one that needs `scratch` given by the caller, unless it captures itself.

        Args:
            times: are told every layer's time in every run, which is waited for; such a context
                captures nothing.

        Raises:
            EngineError: there is no memory left for one.
        """
        trt = self._trt
        with self._lock:  # contexts may run side by side, and are made one after the other
            if self._config is not None:
                config = self._config if times is None else self._make_plain_config()
                context = self._engine.create_execution_context(config)
            else:
                strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
                context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"{self._title} cannot open a context: {self.explain()}")
        if times is not None:
            context.profiler = make_profiler(trt, times)
            context.enqueue_emits_profile = True
        return context

    def inspect(self, context: Any) -> str:
        """What TensorRT's inspector tells of the engine, as JSON, with the shapes of `context`."""
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def explain(self) -> str:
        """What TensorRT has said went wrong since the last time, as one text."""
        words = self._log.explain()
        self._log.errors.clear()
        return words

    def fail(self, doing: str) -> EngineError:
        """The error for a call of TensorRT that was refused."""
        return EngineError(f"{self._title} failed to {doing}: {self.explain()}")

    def close(self) -> None:
        """Let go of the engine and its libraries. Contexts are dropped before."""
        self._cache = self._config = self._profiled_config = self._engine = self._runtime = None
        self._stack.close()

    def _make_config(self) -> Any:
        """Contexts that capture CUDA graphs, and share what one of them has compiled."""
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = config.create_runtime_cache()
        config.set_runtime_cache(self._cache)
        return config

    def _make_plain_config(self) -> Any:
        """For a context whose layers are timed one by one, which a graph would hide."""
        self._profiled_config = config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
        return config


def _read_tensors(trt: Any, engine: Any, label: str) -> list[tuple[NativeTensor, bool]]:
    """Every input and output; the second says whether it is an input."""
    found = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise EngineError(
                f"{label} wants {name!r} in the host's memory: it decides shapes inside. Export "
                "the model so that shapes follow from those of its inputs."
            )
        kind = engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise EngineError(f"{label} has {name!r} in {kind}, which numpy has no type for.")
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        shape = tuple(int(size) for size in engine.get_tensor_shape(name))
        found.append((NativeTensor(name, shape, np.dtype(_DTYPES[kind])), is_input))
    return found


def _read_profiles(engine: Any, inputs: dict[str, NativeTensor]) -> tuple[ShapeProfile, ...]:
    dynamic = [name for name, tensor in inputs.items() if -1 in tensor.shape]
    if not dynamic:
        return ()
    profiles = []
    for index in range(engine.num_optimization_profiles):
        shapes = {}
        for name in dynamic:
            least, best, most = (
                tuple(int(size) for size in shape)
                for shape in engine.get_tensor_profile_shape(name, index)
            )
            shapes[name] = (least, best, most)
        profiles.append(ShapeProfile(shapes))
    return tuple(profiles)
