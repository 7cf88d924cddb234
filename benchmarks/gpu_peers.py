"""What a user would run on an NVIDIA GPU instead of our engines, and ours, each in a child process.

`gpu_run.py` runs these functions in children through `ChildProcess`. Every recipe is the one of its
own documentation. The input is ``x``, the output ``y``, float32 in and out.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

MERGED = ("repvgg_a0",)
"""Networks that everybody gets merged: what differs is the engine, not the graph."""
EVENTS, HOST = "events", "host clock"
FP16 = "fp16/model.onnx"
"""The file that ONNX Runtime opens in float16, in a network's folder."""
_STATE: dict[str, Any] = {}


class Peer(Protocol):
    """One engine that is open."""

    clock: str
    """By what the GPU's own work is timed: its events, or the host's clock without copies."""

    def run(self, x: Array) -> Array:
        """From the host's memory to the host's memory."""

    def compute(self, x: Array, calls: int) -> list[float]:
        """Seconds of `calls` runs on data that lies on the GPU already."""


def open_peer(kind: str, folder: str, network: str) -> str:
    """Open a key of `OPENERS`; by what clock the GPU's own work is timed there."""
    _STATE["peer"] = OPENERS[kind](Path(folder), network)
    return str(_STATE["peer"].clock)


def open_ours(spec: Any) -> str:
    """Open an engine of a build; likewise."""
    _STATE["peer"] = _Ours(spec)
    return EVENTS


def run_peer(x: Array) -> Array:
    """One call, from host to host."""
    return np.asarray(_STATE["peer"].run(x), np.float32)


def prepare_peer(x: Array) -> None:
    """Keep `x` for timing, and call twice: compilers and graphs settle by then."""
    _STATE["x"] = x
    for _ in range(2):
        _STATE["peer"].run(x)
    _STATE["peer"].compute(x, 1)


def time_compute(calls: int) -> Array:
    """Seconds of the GPU's own work in each of `calls` runs."""
    return np.array(_STATE["peer"].compute(_STATE["x"], calls))


def time_wall(calls: int) -> Array:
    """Seconds of each of `calls` runs by the host's clock, with both copies."""
    run, x = _STATE["peer"].run, _STATE["x"]
    times = np.empty(calls)
    run(x)
    for index in range(calls):
        start = time.perf_counter()
        run(x)
        times[index] = time.perf_counter() - start
    return times


class _TorchPeer:
    """A function over tensors of the GPU, timed by events in the stream that it works in."""

    clock = EVENTS

    def __init__(self, function: Callable[[Any], Any], *, prepare: Callable[[Any], Any]) -> None:
        import torch

        self._torch, self._function, self._prepare = torch, function, prepare

    def run(self, x: Array) -> Array:
        with self._torch.inference_mode():
            y = self._function(self._prepare(self._torch.from_numpy(x).cuda()))
            return np.asarray(y.float().cpu())

    def compute(self, x: Array, calls: int) -> list[float]:
        cuda, seconds = self._torch.cuda, []
        with self._torch.inference_mode():
            there = self._prepare(self._torch.from_numpy(x).cuda())
            self._function(there)
            cuda.synchronize()
            for _ in range(calls):
                start, end = (cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                self._function(there)
                end.record()
                cuda.synchronize()
                seconds.append(start.elapsed_time(end) / 1e3)
        return seconds


def _set_tf32(allowed: bool) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _open_eager(*, tf32: bool) -> Callable[[Path, str], Peer]:
    def open_net(folder: Path, network: str) -> Peer:
        _set_tf32(tf32)
        net = load_network(network, folder).cuda()
        return _TorchPeer(net, prepare=lambda x: x)

    return open_net


def _open_half(*, compiled: str | None = None) -> Callable[[Path, str], Peer]:
    """Automatic mixed precision in float16, in channels_last; compiled where a mode is given."""

    def open_net(folder: Path, network: str) -> Peer:
        import torch

        _set_tf32(True)
        net = load_network(network, folder).cuda().to(memory_format=torch.channels_last)
        call = net if compiled is None else _compile(net, compiled)

        def function(x: Any) -> Any:
            with torch.autocast("cuda", dtype=torch.float16):
                return call(x)

        return _TorchPeer(
            function, prepare=lambda x: x.contiguous(memory_format=torch.channels_last)
        )

    return open_net


def _open_compiled(mode: str) -> Callable[[Path, str], Peer]:
    def open_net(folder: Path, network: str) -> Peer:
        _set_tf32(True)
        return _TorchPeer(_compile(load_network(network, folder).cuda(), mode), prepare=lambda x: x)

    return open_net


def _compile(net: Any, mode: str) -> Callable[[Any], Any]:
    """With CUDA graphs, which both modes capture; every batch size is compiled by itself."""
    import torch
    import torch._dynamo.config

    torch._dynamo.config.recompile_limit = 64
    compiled = torch.compile(net, mode=mode, dynamic=False)

    def function(x: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(x)

    return function


class _Ours:
    """An engine of a build; one of TensorRT with its graphs."""

    clock = EVENTS

    def __init__(self, spec: Any) -> None:
        from deploy.engines import open_engine

        self._engine: Any = open_engine(spec)

    def run(self, x: Array) -> Array:
        return np.asarray(self._engine({"x": x})["y"])

    def compute(self, x: Array, calls: int) -> list[float]:
        return list(self._engine.time_device({"x": x}, calls))


class _OnnxRuntimePeer(_Ours):
    """ONNX Runtime on CUDA, as a build opens it; a run is waited for by the host."""

    clock = HOST


def _open_onnxruntime(precision: str, variant: str = "cuda") -> Callable[[Path, str], Peer]:
    def open_net(folder: Path, network: str) -> Peer:
        from deploy.engines.base import EngineSpec
        from deploy.measuring.machine import usable_cores

        path = folder / (FP16 if precision == "fp16" else "stage/model.onnx")
        spec = EngineSpec("onnxruntime", precision, str(path), usable_cores(), variant=variant)
        return _OnnxRuntimePeer(spec)

    return open_net


OPENERS: Mapping[str, Callable[[Path, str], Peer]] = {
    "eager fp32": _open_eager(tf32=False),
    "eager fp32 (control)": _open_eager(tf32=False),
    "eager TF32": _open_eager(tf32=True),
    "AMP fp16 channels_last": _open_half(),
    "torch.compile reduce-overhead TF32": _open_compiled("reduce-overhead"),
    "torch.compile reduce-overhead AMP fp16": _open_half(compiled="reduce-overhead"),
    "torch.compile max-autotune AMP fp16": _open_half(compiled="max-autotune"),
    "onnxruntime CUDA TF32": _open_onnxruntime("tf32"),
    "onnxruntime CUDA fp16": _open_onnxruntime("fp16"),
    "onnxruntime CUDA fp16 channels_last": _open_onnxruntime("fp16", "cuda-nhwc"),
    "onnxruntime CUDA TF32 graphs": _open_onnxruntime("tf32", "cuda-graphs"),
    "onnxruntime CUDA fp16 graphs": _open_onnxruntime("fp16", "cuda-graphs"),
}


def make_network(network: str, folder: str, seed: int, samples: int) -> Any:
    """Weights with BN statistics of a few batches, images, the exact answers, the ONNX model."""
    import torch
    from peers import make_images

    from export.onnx.exporter import to_onnx
    from quantize.half.fp16 import convert_fp16

    torch.manual_seed(seed)
    net, place = _create(network), Path(folder)
    images = make_images(samples)
    with torch.no_grad():
        net.train()
        for start in range(0, min(32, samples), 8):
            net(torch.from_numpy(images[start : start + 8]))
        net.eval()
        torch.save(net.state_dict(), place / "weights.pt")
        exact = load_network(network, place).double()(torch.from_numpy(images).double()).numpy()
    np.savez(place / "data.npz", x=images, exact=exact)
    (place / "stage").mkdir()
    path = place / "stage" / "model.onnx"
    program = _fuse(network, place).program
    model = to_onnx(program, path, input_names=["x"], output_names=["y"], opset=20)
    (place / FP16).parent.mkdir()
    convert_fp16(model, place / FP16)
    return model


def load_network(network: str, folder: Path) -> Any:
    """The network as everybody gets it, on the CPU, in eval mode."""
    return _fuse(network, folder).module if network in MERGED else _load(network, folder)


def _load(network: str, folder: Path) -> Any:
    import torch

    net = _create(network)
    net.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return net.eval()


def _fuse(network: str, folder: Path) -> Any:
    import torch

    from export.fusion import fuse

    return fuse(_load(network, folder), torch.zeros(2, 3, 224, 224))


def make_graphs(model: Any, folder: str, engine: str, batch: Any) -> dict[str, Any]:
    """The graphs that a build makes for an engine, by precision; a text says why there is none."""
    from deploy.candidates.graphs import GraphSources, make_graph
    from deploy.candidates.plans import GpuTarget, choose_plans
    from export.errors import DeployError
    from export.gpu import read_gpu
    from export.tensorrt import BuildOptions
    from quantize.calibration.calibrate import calibrate

    stage, scratch = Path(folder) / "stage", Path(folder) / "scratch"
    scratch.mkdir(exist_ok=True)
    with np.load(Path(folder) / "data.npz") as arrays:
        images = arrays["x"]
    batches = [{"x": images[start : start + 4]} for start in range(0, len(images), 4)]
    ranges = calibrate(model, batches, observer="minmax")
    sources = GraphSources(model, ranges, stage, scratch, samples=tuple(batches[:2]))
    target = GpuTarget(BuildOptions(batch=batch), asked=engine == "tensorrt", gpu=read_gpu())
    graphs: dict[str, Any] = {}
    for plan in choose_plans(model, target):
        if plan.engine == engine:
            made = make_graph(plan.graph, sources)
            graphs[plan.precision] = str(made) if isinstance(made, DeployError) else made
    return graphs


def _create(network: str) -> Any:
    import timm_zoo  # declares what timm's import needs beside a torch for CPUs

    return timm_zoo.Portable(timm_zoo.timm.create_model(network))
