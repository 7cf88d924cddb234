"""ONNX Runtime's CUDA provider: whether it can be had here, its libraries, its options.

CUDA graphs are another engine, `onnxruntime_graphs.py`: with them calls cannot overlap. Models with
convolutions have a session for each set of shapes here too, see `shape_sessions.py`. Two options
are left alone. A compute stream of the caller's: without one every call has a stream of its own, so
that threads do not wait for each other. Copies beside the compute stream
(`do_copy_in_default_stream` off): they race.
"""

import contextlib
import functools
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnxruntime

from deploy.engines.base import Array, EngineSpec, Feeds, check_feeds
from deploy.engines.capture_gate import GATE
from deploy.engines.device import CUDA_GRAPHS, CUDA_NHWC
from deploy.engines.graph_plans import bind_plainly
from deploy.engines.onnxruntime import (
    CPU_PROVIDER,
    OnnxRuntimeEngine,
    make_options,
    map_ort_errors,
    open_session,
)
from deploy.engines.shape_sessions import ShapeSessions, count_room, needs_sessions
from export.errors import EngineError
from export.gpu import GpuFacts
from export.onnx.files import read_model

CUDA_PROVIDER = "CUDAExecutionProvider"
_NO_PROVIDER = (
    "ONNX Runtime here runs on the CPU alone; it has no CUDA provider. Install the one for GPUs in "
    "its place: pip uninstall onnxruntime, then pip install onnxruntime-gpu"
)
_PRINTING = threading.Lock()
"""Whoever redirects what Python prints does so for all threads."""


class OnnxRuntimeCudaEngine(OnnxRuntimeEngine):
    """An InferenceSession on the CUDA provider; what it has no kernel for, the CPU runs.

    Calls may come from several threads and run side by side. Arrays of the host are handed to the
    session as they are: it copies them in the stream of the call, and returns memory of the
    caller's own. Binding them beforehand would save nothing, since its interface for Python has no
    pinned memory.
    """

    _device = "cuda"
    """Where `time_device` puts tensors, as ONNX Runtime calls it."""

    def __init__(self, spec: EngineSpec) -> None:
        with GATE.together():
            super().__init__(spec)
        graph = read_model(Path(spec.path), weights=False).graph
        room = count_room(graph) if needs_sessions(graph, self.inputs) else 0
        open_another = functools.partial(open_session, spec, make_options(spec))
        self._sessions = ShapeSessions(self._session, open_another, room) if room else None

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        with self._session_for(feeds) as session, map_ort_errors("failed on this input"):
            outputs = session.run(self._names, dict(feeds))
        return dict(zip(self._names, outputs, strict=True))

    def _release(self) -> None:
        with GATE.together():
            if self._sessions is not None:
                self._sessions.clear()
            super()._release()

    @contextlib.contextmanager
    def _session_for(self, feeds: Feeds) -> Iterator[Any]:
        """The session that runs `feeds`, while no other engine captures a graph."""
        with GATE.together():
            if self._sessions is None:
                yield self._session
                return
            shapes = tuple(feeds[spec.name].shape for spec in self.inputs)
            session, answered = self._sessions.take(shapes), False
            try:
                yield session
                answered = True
            finally:
                self._sessions.give_back(shapes, session, answered=answered)

    def time_device(self, feeds: Feeds, calls: int) -> list[float]:
        """Seconds of each of `calls` runs on inputs and outputs that lie on the GPU.

        By the host's clock, since ONNX Runtime has no events to offer: from the call until the GPU
        has finished, without copies. Where the GPU waits for the host to launch kernels, that
        counts.

        Raises:
            EngineError: the inputs do not fit, the backend fails, or the engine was closed.
        """
        if self._closed:
            raise EngineError("The engine is closed; use it inside its with block.")
        check_feeds(self.inputs, feeds)
        with self._session_for(feeds) as session, map_ort_errors("failed on this input"):
            binding = bind_plainly(session, feeds, self._names, self._device)
            session.run_with_iobinding(binding)  # memory and algorithms are settled by it
            return [self._time(session, binding) for _ in range(calls)]

    def _time(self, session: Any, binding: Any, options: Any = None) -> float:
        start = time.perf_counter()
        session.run_with_iobinding(binding, options)  # returns when the GPU has finished
        return time.perf_counter() - start


def has_cuda_provider() -> bool:
    """Whether the ONNX Runtime that is installed was built for CUDA; a GPU may be missing yet."""
    return CUDA_PROVIDER in onnxruntime.get_available_providers()


def explain_no_provider(gpu: GpuFacts) -> str | None:
    """Why ONNX Runtime cannot use `gpu`, and what to do; None where it may.

    That its libraries are all there is known only when an engine is opened.
    """
    if not has_cuda_provider():
        return _NO_PROVIDER
    needed = str(getattr(onnxruntime, "cuda_version", "")).partition(".")[0]
    offered = (gpu.cuda or "").partition(".")[0]
    if not (needed.isdigit() and offered.isdigit()) or int(offered) >= int(needed):
        return None
    return (
        f"this ONNX Runtime is made for CUDA {needed}, and the NVIDIA driver {gpu.driver} of this "
        f"machine offers {gpu.cuda}. Install a later driver"
    )


def choose_providers(spec: EngineSpec) -> list[Any]:
    """The CUDA provider with its options, and the CPU for what it has no kernel for.

    Raises:
        EngineError: the ONNX Runtime that is installed has no CUDA provider.
    """
    if not has_cuda_provider():
        raise EngineError(f"{_NO_PROVIDER}.")
    load_libraries()
    return [(CUDA_PROVIDER, choose_options(spec)), CPU_PROVIDER]


def choose_options(spec: EngineSpec) -> dict[str, str]:
    """Options of the provider for `spec`.

    cuDNN is asked for the best algorithm of every convolution and every new shape. To try them all
    takes seconds, so that is done only where no axis of the signature is dynamic; else a server
    would stand still at every new size of a batch, and its heuristics choose.
    """
    static = bool(spec.inputs) and all(
        isinstance(size, int) for tensor in spec.inputs for size in tensor.shape
    )
    return {
        "device_id": "0",
        "use_tf32": "0" if spec.precision == "fp32" else "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE" if static else "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",  # several engines share the GPU's memory
        "do_copy_in_default_stream": "1",
        "prefer_nhwc": "1" if spec.variant in (CUDA_NHWC, CUDA_GRAPHS) else "0",
        "enable_cuda_graph": "1" if spec.variant == CUDA_GRAPHS else "0",
    }


@functools.cache
def load_libraries() -> str:
    """Load those of CUDA from NVIDIA's packages, if they are here; torch brings them as well.

    So nobody has to set LD_LIBRARY_PATH.

    Returns:
        What ONNX Runtime says of those that it missed; empty: of none.
    """
    said = io.StringIO()
    with _PRINTING, contextlib.redirect_stdout(said):
        onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())


def explain_unloaded() -> str:
    """What a session that has left its CUDA provider behind wants, in a sentence."""
    said = load_libraries()
    missing = f" ({said})" if said else ""
    return (
        "ONNX Runtime has its CUDA provider and could not load it: libraries of CUDA or cuDNN are "
        f"missing{missing}, or no NVIDIA GPU is there. The packages of NVIDIA bring them: "
        "pip install 'onnxruntime-gpu[cuda,cudnn]' nvidia-cublas; so does torch for that CUDA."
    )
