"""ONNX Runtime with CUDA graphs, in memory of the host: what replays see is what a GPU would see.

A session is a real one on the CPU. A capture keeps the values that are bound, and a replay reads
and writes those, whatever is bound then; it must come from the thread that captured. Values copy in
and out, as those of a GPU do.
"""

import threading
import time
import weakref
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

REAL = onnxruntime.InferenceSession


class Value:
    """A tensor on the device."""

    alive: ClassVar["weakref.WeakSet[Value]"] = weakref.WeakSet()

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        Value.alive.add(self)

    @classmethod
    def ortvalue_from_shape_and_type(
        cls, shape: list[int], kind: Any, device: str, number: int
    ) -> "Value":
        assert (device, number) == ("cuda", 0)
        return cls(np.full(shape, 77, kind))

    def update_inplace(self, array: np.ndarray) -> None:
        assert array.flags.c_contiguous
        assert (array.shape, array.dtype) == (self._array.shape, self._array.dtype)
        self._array[...] = array

    def numpy(self) -> np.ndarray:
        return self._array.copy()


class Binding:
    """What is bound to a run; an output without a value is made by the run."""

    def __init__(self) -> None:
        self.inputs: dict[str, Value] = {}
        self.outputs: dict[str, Value | None] = {}

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: Value) -> None:
        self.outputs[name] = value

    def bind_output(self, name: str, device: str, number: int) -> None:
        assert (device, number) == ("cuda", 0)
        self.outputs[name] = None

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        return [value.numpy() for value in self.outputs.values() if value is not None]


class Session(REAL):  # type: ignore[misc, valid-type]
    """A session that says that it has the provider of CUDA.

    Attributes:
        opened: all of them.
        asked: the providers of each.
        runs: the number of the graph of each run, with what it was: plain, capture, replay.
        failures: raised by the next runs of that kind.
        seconds: that a run takes.
        readers: who reads the inputs.
        room: sessions that the device has memory for; None: any number.
    """

    opened: ClassVar["list[weakref.ref[Session]]"] = []
    asked: ClassVar[list[Any]] = []
    failures: ClassVar[dict[str, str]] = {}
    runs: ClassVar[list[tuple[int, str]]] = []
    seconds = 0.0
    readers = "Cuda"
    room: ClassVar[int | None] = None

    @classmethod
    def forget(cls) -> None:
        cls.opened, cls.asked, cls.failures, cls.runs = [], [], {}, []
        cls.seconds, cls.readers, cls.room = 0.0, "Cuda", None

    def __init__(self, path: str, options: Any, providers: list[Any], **_: object) -> None:
        if "open" in Session.failures and providers[0][1]["enable_cuda_graph"] == "1":
            raise Fail(Session.failures["open"])
        alive = [each for each in Session.opened if each() is not None]
        if Session.room is not None and len(alive) >= Session.room:
            raise Fail("out of memory")
        Session.opened.append(weakref.ref(self))
        Session.asked.append(providers)
        self._providers_asked = [each if isinstance(each, str) else each[0] for each in providers]
        self._captured: dict[int, tuple[Binding, int]] = {}
        self._busy = threading.Lock()
        super().__init__(path, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return self._providers_asked

    def get_input_memory_infos(self) -> list[Any]:
        return [SimpleNamespace(name=Session.readers) for _ in self.get_inputs()]

    def io_binding(self) -> Any:
        return Binding()

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        number = -1 if options is None else int(options.get_run_config_entry("gpu_graph_id"))
        assert self._busy.acquire(blocking=False), "two runs of a session with graphs at once"
        try:
            self._run_bound(binding, number)
        finally:
            self._busy.release()

    def _run_bound(self, binding: Binding, number: int) -> None:
        kind = "plain"
        assert number != -1 or not self._captured, "a session that has a graph ran others"
        if number != -1:
            kind = "replay" if number in self._captured else "capture"
            assert kind == "replay" or not self._captured, "a session that has a graph ran others"
            known, thread = self._captured.setdefault(number, (binding, threading.get_ident()))
            assert thread == threading.get_ident(), "a graph of another thread"
            binding = Binding()
            binding.inputs, binding.outputs = dict(known.inputs), dict(known.outputs)
        Session.runs.append((number, kind))
        time.sleep(Session.seconds)
        if kind in Session.failures:
            raise Fail(Session.failures[kind])
        feeds = {name: value.numpy() for name, value in binding.inputs.items()}
        answers = self.run(list(binding.outputs), feeds)
        for (name, value), answer in zip(list(binding.outputs.items()), answers, strict=True):
            if value is None:
                binding.outputs[name] = Value(answer)
            else:
                value.update_inplace(answer)
