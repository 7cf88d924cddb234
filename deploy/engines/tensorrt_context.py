"""A context of TensorRT in one stream, and the calls that it is told what to run by."""

from dataclasses import dataclass

from deploy.engines.device_memory import DeviceBuffer, DeviceMemory
from deploy.engines.layer_times import LayerTimes
from deploy.engines.output_allocator import GrowingOutput
from deploy.engines.tensorrt_native import NativeEngine


@dataclass(frozen=True)
class Request:
    """What one call asks for: the shapes of its inputs, and the profile that they fit."""

    profile: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]


class Context:
    """A context of TensorRT in a lane's stream, and what it was told last."""

    def __init__(
        self,
        native: NativeEngine,
        memory: DeviceMemory,
        scratch: DeviceBuffer | None,
        times: LayerTimes | None = None,
    ) -> None:
        self.native, self.memory = native, memory
        self._context = native.create_context(times)
        if scratch is not None:
            self._context.set_device_memory(scratch.address, scratch.size)
        self._request: Request | None = None
        self.bound_for: object = None

    def set_shapes(self, request: Request) -> None:
        """Tell profile and shapes; addresses are to be told again where either has changed."""
        self.bound_for = None
        if request == self._request:
            return
        last, self._request = self._request, None
        if self.native.profiles and (last is None or last.profile != request.profile):
            stream = self.memory.stream
            done = self._context.set_optimization_profile_async(request.profile, stream)
            self._check(done, f"take profile {request.profile}")
        for name, shape in request.shapes:
            self._check(self._context.set_input_shape(name, shape), f"take {name!r} {list(shape)}")
        self._request = request

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Of an output with the present inputs; -1 where only the run will tell."""
        return tuple(int(size) for size in self._context.get_tensor_shape(name))

    def set_address(self, name: str, address: int) -> None:
        """Where an input or output lies."""
        self._check(self._context.set_tensor_address(name, address), f"bind {name!r}")

    def set_allocator(self, name: str, output: GrowingOutput) -> None:
        """Who gives memory to an output of unknown size."""
        self._check(self._context.set_output_allocator(name, output.native), f"bind {name!r}")

    def execute(self) -> None:
        """Put one inference into the stream."""
        self._check(self._context.execute_async_v3(self.memory.stream), "run")

    def inspect(self) -> str:
        """TensorRT's own account of the engine, as JSON, with the present shapes."""
        return self.native.inspect(self._context)

    def can_capture(self) -> bool:
        """Whether TensorRT's own word allows it; a version that has none is simply tried."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(self.memory.stream))

    def drop(self) -> None:
        """Let go of TensorRT's context; its scratch memory may be freed then."""
        self._context = None

    def _check(self, done: bool, doing: str) -> None:
        if not done:
            raise self.native.fail(doing)


def told_shape(native: NativeEngine, name: str, output: GrowingOutput) -> tuple[int, ...]:
    """Of an output that the run has told, or was to tell."""
    if output.shape is None:
        raise native.fail(f"say which shape {name!r} has")
    return output.shape
