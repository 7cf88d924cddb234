"""A GPU made of host memory, and a TensorRT that computes on it, for what needs neither to be true.

Work that is put into a stream waits there until somebody synchronizes, so whoever reads too early
reads what was there before; memory is poisoned when it is freed; a graph keeps the addresses that
it was captured with. All that is open is counted.
"""

import ctypes
import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from deploy.engines.device_memory import DeviceBuffer
from export.errors import EngineError


class HostGpu:
    """Everything that streams have open, and where CUDA is to fail next."""

    def __init__(self) -> None:
        self.open: dict[str, int] = dict.fromkeys(
            ("streams", "buffers", "pinned", "graphs", "contexts", "engines"), 0
        )
        self.streams: dict[int, HostMemory] = {}
        self.calls = 0
        self.fail_at: int | None = None
        self.launches = self.captures = 0
        self.allocations = 0
        self.captures_graphs = True

    def touch(self) -> None:
        """One call of CUDA; the one numbered `fail_at` fails."""
        self.calls += 1
        if self.calls == self.fail_at:
            raise EngineError(f"CUDA failed at call {self.calls}")

    def open_memory(self) -> "HostMemory":
        return HostMemory(self)

    def make_context(self, engine: "Engine", managed: bool, graphs: bool) -> "Context":
        """What runs an engine of this GPU."""
        return Context(engine, managed, graphs=graphs)

    @property
    def left(self) -> dict[str, int]:
        """What is open."""
        return {kind: count for kind, count in self.open.items() if count}


class HostMemory:
    """See `deploy.engines.device_memory.DeviceMemory`."""

    name = "host"
    _handles = itertools.count(1000)

    def __init__(self, gpu: HostGpu) -> None:
        gpu.touch()
        self.gpu, self.stream = gpu, next(self._handles)
        self.captures = gpu.captures_graphs
        self._queue: list[Callable[[], None]] = []
        self._recorded: list[Callable[[], None]] | None = None
        gpu.streams[self.stream] = self
        gpu.open["streams"] += 1

    def enqueue(self, work: Callable[[], None]) -> None:
        (self._queue if self._recorded is None else self._recorded).append(work)

    @property
    def capturing(self) -> bool:
        return self._recorded is not None

    def allocate(self, size: int) -> DeviceBuffer:
        self.gpu.touch()
        owner = np.full(max(size, 1), 0xEE, np.uint8)
        self.gpu.open["buffers"] += 1
        self.gpu.allocations += 1
        return DeviceBuffer(owner.ctypes.data, size, owner)

    def free(self, buffer: DeviceBuffer) -> None:
        assert buffer.owner is not None, "freed twice"
        assert not self._queue, "freed while the stream has work"
        buffer.owner[:] = 0xDD
        buffer.owner = None
        self.gpu.open["buffers"] -= 1

    def pin(self, size: int) -> np.ndarray[Any, Any]:
        self.gpu.touch()
        self.gpu.open["pinned"] += 1
        return np.full(size, 0xEE, np.uint8)

    def unpin(self, array: np.ndarray[Any, Any]) -> None:
        assert not self._queue, "freed while the stream has work"
        self.gpu.open["pinned"] -= 1

    def copy_in(self, host: np.ndarray[Any, Any], buffer: DeviceBuffer) -> None:
        self.gpu.touch()
        assert host.nbytes <= buffer.size
        self.enqueue(lambda: _move(host.ctypes.data, buffer.address, host.nbytes))

    def copy_out(self, buffer: DeviceBuffer, host: np.ndarray[Any, Any]) -> None:
        self.gpu.touch()
        assert host.nbytes <= buffer.size
        self.enqueue(lambda: _move(buffer.address, host.ctypes.data, host.nbytes))

    def wait_for(self, stream: int | None) -> None:
        self.gpu.touch()
        if stream is not None:
            self.gpu.streams[stream].synchronize()

    def record_event(self) -> Any:
        return None

    def elapsed(self, start: Any, end: Any) -> float:
        return 0.0

    def synchronize(self) -> None:
        queue, self._queue = self._queue, []
        for work in queue:
            work()
        self.gpu.touch()

    def capture(self, work: Callable[[], None]) -> "HostGraph":
        self.gpu.touch()
        self._recorded = []
        try:
            work()
            recorded = self._recorded
        finally:
            self._recorded = None
        self.gpu.captures += 1
        return HostGraph(self, recorded)

    def close(self) -> None:
        self.gpu.open["streams"] -= 1
        del self.gpu.streams[self.stream]


class HostGraph:
    """Work with the addresses of the moment when it was captured."""

    def __init__(self, memory: HostMemory, recorded: list[Callable[[], None]]) -> None:
        self._memory, self._recorded = memory, recorded
        memory.gpu.open["graphs"] += 1

    def launch(self) -> None:
        self._memory.gpu.touch()
        self._memory.gpu.launches += 1
        for work in self._recorded:
            self._memory.enqueue(work)

    def free(self) -> None:
        self._memory.gpu.open["graphs"] -= 1


def _move(source: int, target: int, size: int) -> None:
    ctypes.memmove(target, source, size)


def read(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """A copy of what lies at an address."""
    count = int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize
    return np.frombuffer(ctypes.string_at(address, count), dtype).reshape(shape).copy()


class Model:
    """``twice = 2 x + s``, in its own type, and ``positive``, those of x above 0, where asked for.

    x is [batch, width], s a scalar; `profiles` are (least, best, most) batch sizes.
    """

    def __init__(
        self,
        *,
        dtype: str = "FLOAT",
        profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 16),),
        width: int = 3,
        data_dependent: bool = False,
        capturable: bool = True,
    ) -> None:
        self.profiles, self.width, self.capturable = profiles, width, capturable
        self.tensors = {
            "x": (True, (-1, width), dtype),
            "s": (True, (), dtype),
            "twice": (False, (-1, width), dtype),
        }
        if data_dependent:
            self.tensors["positive"] = (False, (-1,), dtype)


def make_trt(gpu: HostGpu, model: Model) -> Any:
    """What of TensorRT's module is used, over `model`."""
    modes = SimpleNamespace(INPUT="input", OUTPUT="output")
    trt = SimpleNamespace(
        TensorIOMode=modes,
        TensorLocation=SimpleNamespace(DEVICE="device", HOST="host"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole", DISABLED="disabled"),
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        ILogger=_Logger,
        IOutputAllocator=_Allocator,
        IProfiler=_Allocator,
    )
    trt.Runtime = lambda logger: _Runtime(logger, gpu, model, modes)
    return trt


class _Logger:
    ERROR, INTERNAL_ERROR = "error", "internal error"


class _Allocator:
    pass


class _Runtime:
    def __init__(self, logger: Any, gpu: HostGpu, model: Model, modes: Any) -> None:
        self._made = (logger, gpu, model, modes)
        self.engine_host_code_allowed = False

    def get_plugin_registry(self) -> Any:
        return None

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        logger, gpu, _, _ = self._made
        if plan == b"broken":
            logger.log(_Logger.ERROR, "magic tag does not match")
            return None
        gpu.touch()
        return Engine(*self._made)


class Engine:
    device_memory_size_v2 = 512

    def __init__(self, logger: Any, gpu: HostGpu, model: Model, modes: Any) -> None:
        self.logger, self.gpu, self.model, self.modes = logger, gpu, model, modes
        self.num_io_tensors = len(model.tensors)
        self.num_optimization_profiles = len(model.profiles)
        self.names = list(model.tensors)
        gpu.open["engines"] += 1

    def __del__(self) -> None:
        self.gpu.open["engines"] -= 1

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_location(self, name: str) -> str:
        return "device"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.model.tensors[name][2])

    def get_tensor_mode(self, name: str) -> str:
        return self.modes.INPUT if self.model.tensors[name][0] else self.modes.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.model.tensors[name][1]

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert name == "x"
        return [(batch, self.model.width) for batch in self.model.profiles[index]]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(create_runtime_cache=object, set_runtime_cache=lambda cache: True)

    def create_execution_context(self, how: object) -> "Context":
        self.gpu.touch()
        managed = how == "user managed"
        return self.gpu.make_context(
            self, managed, getattr(how, "cuda_graph_strategy", "") == "whole"
        )

    def create_engine_inspector(self) -> Any:
        return _Inspector()


class _Inspector:
    """Tells both layers of the model, with the shapes of its context, as TensorRT 11 does."""

    execution_context: Any = None

    def get_engine_information(self, kind: str) -> str:
        assert kind == "json"
        shape = list(self.execution_context._shapes["x"])
        tensor = {"Name": "x", "Dimensions": shape, "DataType": "Float", "Format": "Row major"}
        names = {"Mul_0 + Add_0": "kgen", "Reformatting CopyNode for Output": "Reformat"}
        layers = [
            {"Name": name, "LayerType": kind, "Inputs": [tensor], "Outputs": [tensor]}
            for name, kind in names.items()
        ]
        return json.dumps({"Layers": layers})


class Context:
    """Strict: it runs only with all that the real one wants, and captures only when warm."""

    profiler: Any = None
    enqueue_emits_profile = False

    def __init__(self, engine: Engine, managed: bool, *, graphs: bool) -> None:
        self._engine, self._managed, self._graphs = engine, managed, graphs
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._scratch: tuple[int, int] | None = None
        self._warm = False
        engine.gpu.open["contexts"] += 1

    def __del__(self) -> None:
        self._engine.gpu.open["contexts"] -= 1

    def set_device_memory(self, address: int, size: int) -> None:
        self._scratch = (address, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile, self._shapes, self._warm = index, {}, False
        return stream in self._engine.gpu.streams

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._warm = False
        if name == "x":
            least, _, most = self._engine.model.profiles[self._profile or 0]
            if not least <= shape[0] <= most:
                self._engine.logger.log(_Logger.ERROR, "outside the profile")
                return False
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1,) if name == "positive" else self._shapes["x"]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address != 0

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self._allocators[name] = allocator
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._engine.model.capturable

    def execute_async_v3(self, stream: int) -> bool:
        engine, memory = self._engine, self._engine.gpu.streams[stream]
        engine.gpu.touch()
        if not self._is_bound():
            return False
        if memory.capturing:
            assert self._warm, "captured before the first run"
        self._warm = True
        addresses, shape = dict(self._addresses), self._shapes["x"]
        memory.enqueue(lambda: self._compute(addresses, shape, stream))
        if self.profiler is not None and self.enqueue_emits_profile:
            assert not memory.capturing, "captured under the profiler"
            assert not self._graphs, "profiled with graphs of its own"
            memory.synchronize()
            self.profiler.report_layer_time("Mul_0 + Add_0", 0.5)
            self.profiler.report_layer_time("Reformatting CopyNode for Output", 0.25)
        return True

    def _is_bound(self) -> bool:
        """Whether it may run; where it may not, the logger hears of it."""
        if self._managed:
            assert self._scratch is not None
            assert self._scratch[1] >= self._engine.device_memory_size_v2
        bound = {"x", "s", "twice"} <= set(self._addresses) and self._profile is not None
        if not bound:
            self._engine.logger.log(_Logger.ERROR, "not all is bound")
        return bound

    def _compute(self, addresses: dict[str, int], shape: tuple[int, ...], stream: int) -> None:
        dtype = DTYPES[self._engine.model.tensors["x"][2]]
        x = read(addresses["x"], shape, dtype)
        s = read(addresses["s"], (), dtype)
        twice = (2 * x + s).astype(dtype)
        _move(twice.ctypes.data, addresses["twice"], twice.nbytes)
        allocator = self._allocators.get("positive")
        if allocator is not None:
            positive = np.ascontiguousarray(x[x > 0])
            target = allocator.reallocate_output_async("positive", 0, positive.nbytes, 256, stream)
            if target:
                _move(positive.ctypes.data, target, positive.nbytes)
                allocator.notify_shape("positive", positive.shape)


def _dtypes() -> dict[str, Any]:
    import ml_dtypes

    return {"FLOAT": np.float32, "HALF": np.float16, "BF16": ml_dtypes.bfloat16}


DTYPES = _dtypes()
