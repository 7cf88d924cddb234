"""A TensorRT that computes on a real GPU, by a kernel of its own: for GPUs that no TensorRT takes.

What it is told and asked is that of `host_gpu`; streams, memory, events and graphs are CUDA's.
The kernel takes its time, so that whoever reads too early finds what was there before.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from host_gpu import Context, Engine, HostGpu

_BLOCK = 128
_PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry twice(.param .u64 x, .param .u64 s, .param .u64 y, .param .u32 n, .param .u64 spin)
{
    .reg .pred  %p<3>;
    .reg .f32   %f<5>;
    .reg .b32   %r<6>;
    .reg .b64   %rd<12>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [s];
    ld.param.u64 %rd3, [y];
    ld.param.u32 %r5, [n];
    ld.param.u64 %rd4, [spin];
    mov.u64 %rd5, %clock64;
$wait:
    mov.u64 %rd6, %clock64;
    sub.u64 %rd7, %rd6, %rd5;
    setp.lt.u64 %p1, %rd7, %rd4;
    @%p1 bra $wait;
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.u32 %r4, %r1, %r2, %r3;
    setp.ge.u32 %p2, %r4, %r5;
    @%p2 bra $done;
    mul.wide.u32 %rd8, %r4, 4;
    add.u64 %rd9, %rd1, %rd8;
    ld.global.f32 %f1, [%rd9];
    ld.global.f32 %f2, [%rd2];
    add.rn.f32 %f3, %f1, %f1;
    add.rn.f32 %f4, %f3, %f2;
    add.u64 %rd10, %rd3, %rd8;
    st.global.f32 [%rd10], %f4;
$done:
    ret;
}
\0"""
"""``y = 2 x + s`` of `n` float32, after `spin` cycles of the GPU's clock."""


class CudaGpu(HostGpu):
    """The GPU, with an open engine's contexts counted.

    Args:
        open_memory: opens a stream of the library that is tested.
        spin: cycles that every run takes.
    """

    def __init__(self, open_memory: Callable[[], Any], spin: int) -> None:
        super().__init__()
        self.open_memory = open_memory  # type: ignore[method-assign]
        self.spin = spin

    def make_context(self, engine: Engine, managed: bool, graphs: bool) -> Context:
        return _CudaContext(engine, managed, graphs=graphs)


class _CudaContext(Context):
    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile, self._shapes = index, {}
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not self._is_bound():
            return False
        gpu, rows = self._engine.gpu, self._shapes["x"]
        assert isinstance(gpu, CudaGpu)
        count = int(np.prod(rows))
        driver = _Driver.get()
        driver.launch(stream, self._addresses, count, gpu.spin)
        if "positive" in self._allocators:
            self._tell_positive(driver, stream, count)
        if self.profiler is not None and self.enqueue_emits_profile:
            driver.call("cuStreamSynchronize", ctypes.c_void_p(stream))
            self.profiler.report_layer_time("Mul_0 + Add_0", 0.5)
            self.profiler.report_layer_time("Reformatting CopyNode for Output", 0.25)
        return True

    def _tell_positive(self, driver: "_Driver", stream: int, count: int) -> None:
        """As the real one: how many there are is known once the stream was waited for."""
        x, handle = np.empty(count, np.float32), ctypes.c_void_p(stream)
        pointer = ctypes.c_uint64
        driver.call(
            "cuMemcpyDtoHAsync_v2",
            ctypes.c_void_p(x.ctypes.data),
            pointer(self._addresses["x"]),
            ctypes.c_size_t(x.nbytes),
            handle,
        )
        driver.call("cuStreamSynchronize", handle)
        positive, allocator = np.ascontiguousarray(x[x > 0]), self._allocators["positive"]
        target = allocator.reallocate_output_async("positive", 0, positive.nbytes, 256, stream)
        if not target:
            return
        if positive.size:
            source = ctypes.c_void_p(positive.ctypes.data)
            size = ctypes.c_size_t(positive.nbytes)
            driver.call("cuMemcpyHtoDAsync_v2", pointer(target), source, size, handle)
        allocator.notify_shape("positive", positive.shape)


class _Driver:
    """The driver, in the GPU's primary context, where both libraries work too."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        device, context, module = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self._function = ctypes.c_void_p()
        self.call("cuInit", ctypes.c_uint(0))
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._context = context
        self.call("cuCtxPushCurrent_v2", context)
        self.call("cuModuleLoadData", ctypes.byref(module), _PTX)
        self.call("cuModuleGetFunction", ctypes.byref(self._function), module, b"twice")
        self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    @staticmethod
    @functools.cache
    def get() -> "_Driver":
        return _Driver()

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        assert code == 0, f"{name}: CUDA error {code}"

    def launch(self, stream: int, addresses: dict[str, int], count: int, spin: int) -> None:
        """Put the kernel into a stream; captured where the stream is."""
        values = [ctypes.c_uint64(addresses[name]) for name in ("x", "s", "twice")]
        given = (*values, ctypes.c_uint32(count), ctypes.c_uint64(spin))
        pointers = (ctypes.c_void_p * len(given))(*(ctypes.addressof(value) for value in given))
        grid, block = (-(-count // _BLOCK), 1, 1), (_BLOCK, 1, 1)
        sizes = [ctypes.c_uint(size) for size in (*grid, *block, 0)]
        self.call("cuCtxPushCurrent_v2", self._context)
        self.call("cuLaunchKernel", self._function, *sizes, ctypes.c_void_p(stream), pointers, None)
        self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
