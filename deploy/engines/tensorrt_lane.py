"""One stream of an engine's work: contexts, buffers and graphs, used by one call at a time.

For each of the last few sets of shapes a lane keeps a plan: memory on both sides that is used
again, and what the context was told. A graph is good only for the context that it was captured
in, with the shapes of that moment, so where graphs are captured every plan has a context of its
own. They share their scratch memory, since a lane runs one of them at a time. TensorRT for RTX
compiles for every context and captures graphs itself, so there one context serves all plans.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from deploy.engines.base import Array, Feeds
from deploy.engines.cuda_graphs import GraphReplay
from deploy.engines.device_memory import DeviceBuffer, DeviceMemory, DeviceTensor
from deploy.engines.layer_times import LayerTimes
from deploy.engines.output_allocator import GrowingOutput
from deploy.engines.tensorrt_context import Context, Request, told_shape
from deploy.engines.tensorrt_native import NativeEngine, NativeTensor

_KEPT_PLANS = 4
"""Sets of shapes that keep their buffers."""

_WARM_RUNS = 2
"""Of what is timed: one run plainly, one in which it is captured."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class DeviceInput:
    """An input that lies on the GPU already.

    Attributes:
        stream: handle of the stream in which it was made; None: not known.
    """

    address: int
    shape: tuple[int, ...]
    stream: int | None = None


class Lane:
    """See the module's own words.

    Args:
        native: the engine, which other lanes use too.
        open_memory: opens the stream that this lane works in.
        times: are told the time of every layer of every run; nothing is captured then.
    """

    def __init__(
        self,
        native: NativeEngine,
        open_memory: Callable[[], DeviceMemory],
        times: LayerTimes | None = None,
    ) -> None:
        self._native, self._times = native, times
        self._plans: OrderedDict[Request, _Plan] = OrderedDict()
        self._context: Context | None = None
        with ExitStack() as stack:
            self._memory = memory = open_memory()
            stack.callback(memory.close)
            self._scratch: DeviceBuffer | None = None
            if not native.captures_itself:
                self._scratch = memory.allocate(native.scratch)
                stack.callback(memory.free, self._scratch)
            self._stack = stack.pop_all()

    def run(self, feeds: Feeds, request: Request) -> dict[str, Array]:
        """Run on arrays of the host; the outputs are the caller's.

        Raises:
            EngineError: the GPU has no memory left, or TensorRT fails.
        """
        plan, memory = self._copy_in(feeds, request), self._memory
        plan.run()
        for staged in plan.outputs.values():
            memory.copy_out(staged.buffer, staged.pinned)
        memory.synchronize()
        grown = {name: self._fetch(name, output) for name, output in plan.growing.items()}
        fixed = {name: staged.array.copy() for name, staged in plan.outputs.items()}
        return {
            name: fixed[name] if name in fixed else grown[name] for name in self._native.outputs
        }

    def run_device(
        self, inputs: Mapping[str, DeviceInput], request: Request
    ) -> dict[str, DeviceTensor]:
        """Run on memory of the GPU, where it lies. The stream was waited for on return.

        The outputs are the caller's, so every call has addresses of its own, and no graph.

        Raises:
            EngineError: the GPU has no memory left, or TensorRT fails.
        """
        native, memory = self._native, self._memory
        context = self._shared_context()
        context.set_shapes(request)
        for stream in {given.stream for given in inputs.values()}:
            memory.wait_for(stream)
        with ExitStack() as stack:  # what fails here leaves nothing behind
            taken: dict[str, tuple[DeviceBuffer, tuple[int, ...]]] = {}
            growing: dict[str, GrowingOutput] = {}
            for name, given in inputs.items():
                context.set_address(name, given.address)
            for name, tensor in native.outputs.items():
                shape = context.shape_of(name)
                if -1 in shape:
                    growing[name] = stack.enter_context(_Grown(native, memory)).output
                    context.set_allocator(name, growing[name])
                    continue
                buffer = memory.allocate(tensor.count_bytes(shape))
                stack.callback(memory.free, buffer)
                context.set_address(name, buffer.address)
                taken[name] = (buffer, shape)
            stack.callback(memory.synchronize)  # before anything above is freed
            context.execute()
            memory.synchronize()
            for name, output in growing.items():
                output.settle()
                taken[name] = (output.take(), told_shape(native, name, output))
            stack.pop_all()
        return {
            name: DeviceTensor(memory, *taken[name], tensor.dtype.str)
            for name, tensor in native.outputs.items()
        }

    def time(self, feeds: Feeds, request: Request, calls: int) -> list[float]:
        """Seconds that the GPU works on each of `calls` runs, by its own events, without copies.

        Raises:
            EngineError: the GPU has no memory left, or TensorRT fails.
        """
        plan, memory = self._copy_in(feeds, request), self._memory
        for _ in range(_WARM_RUNS):
            plan.run()
        memory.synchronize()
        seconds = []
        for _ in range(calls):
            start = memory.record_event()
            plan.run()
            end = memory.record_event()
            memory.synchronize()
            seconds.append(memory.elapsed(start, end))
        return seconds

    def inspect(self) -> str:
        """TensorRT's own account of the engine, as JSON, with the shapes of the last run."""
        return self._shared_context().inspect()

    def close(self) -> None:
        """Give back graphs, contexts, buffers and the stream, in this order, whatever fails."""
        with self._stack as stack:
            if self._context is not None:
                stack.callback(self._context.drop)
            for plan in self._plans.values():
                stack.callback(plan.free)
            stack.callback(self._plans.clear)
            stack.callback(self._memory.synchronize)

    def _shared_context(self) -> "Context":
        if self._context is None:
            self._context = Context(self._native, self._memory, self._scratch, self._times)
        return self._context

    def _copy_in(self, feeds: Feeds, request: Request) -> "_Plan":
        """The plan for a request, with what it reads on its way to the GPU."""
        plan, memory = self._plan_for(request), self._memory
        for name, staged in plan.inputs.items():
            np.copyto(staged.array, feeds[name])
            memory.copy_in(staged.pinned, staged.buffer)
        return plan

    def _plan_for(self, request: Request) -> "_Plan":
        plan = self._plans.get(request)
        if plan is not None:
            self._plans.move_to_end(request)
            return plan
        while len(self._plans) >= _KEPT_PLANS:
            self._plans.popitem(last=False)[1].free()
        captures = self._memory.captures and not self._native.captures_itself
        captures = captures and self._times is None
        context = (
            Context(self._native, self._memory, self._scratch)
            if captures
            else self._shared_context()
        )
        plan = self._plans[request] = _Plan(request, context, captures=captures)
        return plan

    def _fetch(self, name: str, output: GrowingOutput) -> Array:
        """An output whose size was not known before the run."""
        output.settle()
        tensor, memory = self._native.outputs[name], self._memory
        shape = told_shape(self._native, name, output)
        pinned = memory.pin(tensor.count_bytes(shape))
        try:
            if output.buffer is not None and pinned.size:
                memory.copy_out(output.buffer, pinned)
                memory.synchronize()
            return tensor.view(pinned, shape).copy()
        finally:
            memory.unpin(pinned)


class _Grown:
    """A growing output for the length of a with block."""

    def __init__(self, native: NativeEngine, memory: DeviceMemory) -> None:
        self.output = GrowingOutput(native.allocator, memory)

    def __enter__(self) -> "_Grown":
        return self

    def __exit__(self, *_: object) -> None:
        self.output.free()


@dataclass(frozen=True)
class _Staged:
    """A tensor on both sides: pinned memory, the same as an array, and the GPU's buffer."""

    pinned: Array
    array: Array
    buffer: DeviceBuffer


class _Plan:
    """Buffers for one set of shapes, bound to a context when it is this plan's turn."""

    def __init__(self, request: Request, context: Context, *, captures: bool) -> None:
        self._request, self._context = request, context
        self._replay: GraphReplay | None = None
        memory, native = context.memory, context.native
        context.set_shapes(request)
        self.growing: dict[str, GrowingOutput] = {}
        with ExitStack() as stack:  # what fails here leaves nothing behind
            if captures:  # the context is this plan's own
                stack.callback(context.drop)
            shapes = dict(request.shapes)
            self.inputs = {
                name: _stage(memory, tensor, shapes[name], stack)
                for name, tensor in native.inputs.items()
            }
            self.outputs: dict[str, _Staged] = {}
            for name, tensor in native.outputs.items():
                shape = context.shape_of(name)
                if -1 in shape:
                    self.growing[name] = output = GrowingOutput(native.allocator, memory)
                    stack.callback(output.free)
                else:
                    self.outputs[name] = _stage(memory, tensor, shape, stack)
            if captures and not self.growing:
                self._replay = GraphReplay(memory, context.execute, context.can_capture)
                stack.callback(self._replay.free)
            self._stack = stack.pop_all()

    def run(self) -> None:
        """Put one inference on the staged inputs into the stream."""
        context = self._context
        if context.bound_for is not self:
            self._bind()
        for output in self.growing.values():
            output.begin()
        if self._replay is None:
            context.execute()
        else:
            self._replay()

    def free(self) -> None:
        """Give graph and buffers back; nothing of them is in the stream any more."""
        if self._context.bound_for is self:
            self._context.bound_for = None
        self._stack.close()

    def _bind(self) -> None:
        context = self._context
        context.set_shapes(self._request)
        for name, staged in (*self.inputs.items(), *self.outputs.items()):
            context.set_address(name, staged.buffer.address)
        for name, output in self.growing.items():
            context.set_allocator(name, output)
        context.bound_for = self


def _stage(
    memory: DeviceMemory, tensor: NativeTensor, shape: tuple[int, ...], stack: ExitStack
) -> _Staged:
    size = tensor.count_bytes(shape)
    pinned = memory.pin(size)
    stack.callback(memory.unpin, pinned)
    buffer = memory.allocate(size)
    stack.callback(memory.free, buffer)
    return _Staged(pinned, tensor.view(pinned, shape), buffer)
