"""NVIDIA TensorRT and TensorRT for RTX: one class for both, since their interfaces are nearly one.

Nothing of an engine is deserialized before its record has been held against the machine, and the
bytes that are deserialized are those whose hash was checked.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from deploy.bundle.preflight import Host, explain_mismatch, read_host
from deploy.engines.base import Array, BackendEngine, EngineSpec, Feeds, check_feeds
from deploy.engines.device_memory import DeviceMemory, DeviceTensor, choose_memory
from deploy.engines.lanes import LanePool
from deploy.engines.layer_times import LayerTimes
from deploy.engines.tensorrt_context import Request
from deploy.engines.tensorrt_lane import DeviceInput, Lane
from deploy.engines.tensorrt_native import NativeEngine, NativeTensor, PlanFile
from export.artifacts import BATCH, TensorSpec
from export.errors import EngineError
from export.ranges import take_ranges
from export.tensorrt.options import ShapeProfile
from export.tensorrt.products import find_product

LANES = 2
"""Calls that run side by side: while one copies, the other computes."""


def open_tensorrt(spec: EngineSpec, host: Host | None = None) -> "TensorRtEngine":
    """Open an engine file of either product.

    Args:
        spec: its file, and the record that says what it needs.
        host: the machine; None: this one.

    Raises:
        MissingExtraError: the product, or a library for the GPU's memory, is not installed.
        EngineError: the engine does not fit the machine, which is said before a byte of it is
            deserialized; or it is refused.
    """
    product, path = find_product(spec.engine), Path(spec.path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error}.") from error
    digest = hashlib.sha256(content).hexdigest()
    mismatch = explain_mismatch(spec.record, path, host or read_host(), digest=digest)
    if mismatch is not None:
        raise EngineError(mismatch)
    assert spec.record is not None  # without one there is a mismatch
    plan = PlanFile(
        content,
        path.name,
        host_code="VERSION_COMPATIBLE" in spec.record.flags,
        plugins=tuple(path.parent / name for name in spec.record.plugins),
    )
    open_memory = choose_memory()
    native = NativeEngine(product, plan)
    with ExitStack() as stack:
        stack.callback(native.close)
        engine = TensorRtEngine(native, open_memory, spec)
        stack.pop_all()
    return engine


class TensorRtEngine(BackendEngine):
    """An engine that takes arrays of the host, or tensors of the GPU where they lie.

    Calls may come from several threads; `LANES` of them run side by side.

    Args:
        native: the deserialized engine; it is closed with this one.
        open_memory: opens a stream with its memory.
        spec: its signature has the names of dynamic axes, which the engine does not know.
    """

    def __init__(
        self, native: NativeEngine, open_memory: Callable[[], DeviceMemory], spec: EngineSpec
    ) -> None:
        self._native = native
        known = {tensor.name: tensor.shape for tensor in (*spec.inputs, *spec.outputs)}
        found = [_spec(tensor, known) for tensor in native.inputs.values()]
        self.inputs = take_ranges(found, spec.inputs)
        self.outputs = tuple(_spec(tensor, known) for tensor in native.outputs.values())
        self._open_memory = open_memory
        self._lanes = LanePool(lambda: Lane(native, open_memory), LANES)

    def run_device(self, tensors: Mapping[str, Any]) -> dict[str, DeviceTensor]:
        """Run on tensors that lie on the GPU, without a copy; outputs stay there as well.

        Args:
            tensors: by name, anything with ``__cuda_array_interface__``, contiguous: tensors of
                torch, arrays of cupy. What made them is waited for.

        Returns:
            Finished outputs of the caller's own, with the same interface.

        Raises:
            EngineError: the inputs do not fit, the backend fails, or the engine was closed.
        """
        given = {name: _read_interface(name, tensor) for name, tensor in tensors.items()}
        check_feeds(self.inputs, {name: stand_in for name, (_, stand_in) in given.items()})
        inputs = {name: device for name, (device, _) in given.items()}
        request = self._request({name: device.shape for name, device in inputs.items()})
        with self._lanes.take() as lane:
            return lane.run_device(inputs, request)

    def time_device(self, feeds: Feeds, calls: int) -> list[float]:
        """Seconds that the GPU works on each of `calls` runs, by its own events, without copies.

        Raises:
            EngineError: the inputs do not fit, the backend fails, or the engine was closed.
        """
        request = self._check(feeds)
        with self._lanes.take() as lane:
            return lane.time(feeds, request, calls)

    def profile(self, feeds: Feeds, times: LayerTimes, calls: Iterable[int]) -> str:
        """Run under TensorRT's profiler, in a lane of its own, without graphs.

        Args:
            times: are told what every layer takes.
            calls: how many runs follow, in each block of them.

        Returns:
            The inspector's account of the engine, as JSON.

        Raises:
            EngineError: the inputs do not fit, the backend fails, or the engine was closed.
        """
        request = self._check(feeds)
        with contextlib.closing(Lane(self._native, self._open_memory, times)) as lane:
            for block in calls:
                for _ in range(block):
                    times.begin()
                    lane.run(feeds, request)
            return lane.inspect()

    def _check(self, feeds: Feeds) -> Request:
        if self._closed:
            raise EngineError("The engine is closed; use it inside its with block.")
        check_feeds(self.inputs, feeds)
        return self._request({name: array.shape for name, array in feeds.items()})

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        request = self._request({name: array.shape for name, array in feeds.items()})
        with self._lanes.take() as lane:
            return lane.run(feeds, request)

    def _request(self, shapes: Mapping[str, tuple[int, ...]]) -> Request:
        profile = choose_profile(self._native.profiles, shapes)
        return Request(profile, tuple((name, shapes[name]) for name in self._native.inputs))

    def _release(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._native.close)
            stack.callback(self._lanes.close)


def choose_profile(
    profiles: tuple[ShapeProfile, ...], shapes: Mapping[str, tuple[int, ...]]
) -> int:
    """Number of the profile that inputs of `shapes` run in.

    Of those that fit it is the one tuned for the nearest shapes, by the ratios of sizes.

    Raises:
        EngineError: none fits; the message has what each was built for.
    """
    if not profiles:
        return 0
    misfits = [profile.explain_misfit(shapes) for profile in profiles]
    fitting = [index for index, misfit in enumerate(misfits) if misfit is None]
    if not fitting:
        reasons = "; ".join(dict.fromkeys(misfit for misfit in misfits if misfit))
        raise EngineError(
            f"No optimization profile fits: {reasons}. Split the batch, or build the engine "
            "again for these sizes."
        )
    return min(fitting, key=lambda index: (_distance(profiles[index], shapes), index))


def _distance(profile: ShapeProfile, shapes: Mapping[str, tuple[int, ...]]) -> float:
    return sum(
        abs(math.log(max(size, 1) / max(tuned, 1)))
        for name, (_, best, _) in profile.shapes.items()
        for size, tuned in zip(shapes[name], best, strict=True)
    )


def _spec(tensor: NativeTensor, known: Mapping[str, tuple[int | str, ...]]) -> TensorSpec:
    """A tensor with its dynamic axes named, by the signature where that agrees."""
    given = known.get(tensor.name, ())
    agrees = len(given) == len(tensor.shape) and all(
        isinstance(name, str) if size < 0 else size == name
        for size, name in zip(tensor.shape, given, strict=True)
    )
    if agrees:
        return TensorSpec(tensor.name, given, str(tensor.dtype))
    shape = tuple(
        size if size >= 0 else (BATCH if axis == 0 else f"axis_{axis}")
        for axis, size in enumerate(tensor.shape)
    )
    return TensorSpec(tensor.name, shape, str(tensor.dtype))


def _read_interface(name: str, tensor: Any) -> tuple[DeviceInput, Array]:
    """Where a tensor lies, and an array of its shape and type that takes no memory."""
    try:
        interface = tensor.__cuda_array_interface__
    except (AttributeError, RuntimeError, TypeError) as error:
        raise EngineError(
            f"Input {name!r} is no tensor on a GPU but {type(tensor).__name__} ({error}). Call the "
            "engine itself with arrays of the host."
        ) from error
    shape = tuple(int(size) for size in interface["shape"])
    # the interface has no word for bfloat16, and the tensor itself may have one
    named = str(getattr(tensor, "dtype", "")).rpartition(".")[2]
    dtype = np.dtype(named if named == "bfloat16" else interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and tuple(strides) != _packed_strides(shape, dtype.itemsize):
        raise EngineError(f"Input {name!r} is not contiguous; pass tensor.contiguous().")
    device = DeviceInput(int(interface["data"][0]), shape, interface.get("stream"))
    return device, np.broadcast_to(np.empty((), dtype), shape)


def _packed_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides, step = [], itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
