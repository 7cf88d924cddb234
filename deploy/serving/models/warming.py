"""At which batch sizes an engine runs before the server is ready: no request is to wait for it."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from deploy.bundle.folder import Bundle
from deploy.engines import Array, Engine, Feeds
from deploy.engines.device import CUDA_GRAPHS, runs_on_gpu
from deploy.engines.shape_sessions import needs_sessions
from deploy.serving.batching.waiting import BatchPolicy
from export.errors import EngineError
from export.onnx.files import read_model

_PROGRAMS = 4
"""Batch sizes that OpenVINO keeps a compiled program for."""

_WARM_RUNS = 3
_ALL_SIZES = 16
"""Rows up to which every batch size is warmed on a GPU; beyond, powers of two are."""


def program_sizes(bundle: Bundle, name: str, policy: BatchPolicy) -> tuple[int, ...]:
    """The batch sizes of an engine that prepares for each: 1, and the largest halved twice.

    OpenVINO compiles, CUDA graphs are captured, cuDNN plans convolutions; none of it should befall
    a request. On a GPU the golden samples were prepared for already, with a copy of the weights, so
    their number is of use too.
    """
    entry = bundle.manifest.engines[name]
    gpu = entry.variant == CUDA_GRAPHS or _plans_by_shape(bundle, name)
    if not (gpu or entry.engine == "openvino") or not policy.batched:
        return ()
    sizes = {1, *(max(1, policy.max_batch >> shift) for shift in range(_PROGRAMS - 1))}
    if gpu:
        rows = len(next(iter(bundle.golden().inputs.values())))
        sizes |= {rows} if rows <= policy.max_batch else set()
    return tuple(sorted(sizes))


def warm_sizes(bundle: Bundle, name: str, policy: BatchPolicy) -> tuple[int, ...]:
    """The batch sizes that an engine which takes any is warmed at: the least and the largest.

    On a GPU libraries choose algorithms and take memory at each new size, so there are more.
    """
    if not policy.batched:
        return ()
    sizes = {1, policy.max_batch}
    if runs_on_gpu(bundle.manifest.engines[name].variant):
        sizes |= {*range(1, min(policy.max_batch, _ALL_SIZES) + 1)}
        sizes |= {1 << shift for shift in range(policy.max_batch.bit_length())}
    return tuple(sorted(sizes))


def _plans_by_shape(bundle: Bundle, name: str) -> bool:
    """Whether it is an engine of ONNX Runtime on a GPU that has a session for each size."""
    entry = bundle.manifest.engines[name]
    if entry.engine != "onnxruntime" or not runs_on_gpu(entry.variant):
        return False
    graph = read_model(bundle.path / entry.file, weights=False).graph
    return needs_sessions(graph, bundle.manifest.inputs)


def explain_copies(bundle: Bundle, name: str, sizes: Sequence[int]) -> str:
    """For which batches there are sessions, and what they hold of the GPU's memory at least."""
    kind = "CUDA graphs" if bundle.manifest.engines[name].variant == CUDA_GRAPHS else "Sessions"
    file = bundle.path / bundle.manifest.engines[name].file
    weights = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*"))
    return (
        f"{kind} of batches of {', '.join(map(str, sizes))}; each instance holds "
        f"{weights / 2**20:.3g} MiB of weights for each of them, and what it computes in"
    )


def warm_up(engine: Engine, inputs: Feeds, sizes: Sequence[int]) -> dict[int, float]:
    """Run at every one of `sizes`, else at that of the golden inputs.

    Returns:
        Seconds of the quickest run of each size; empty where there are none.
    """
    batches: list[Any] = [inputs]
    if sizes:
        batches = [_fill_batch(inputs, size) for size in sizes]
    quickest = []
    for batch in batches:
        times = []
        for _ in range(_WARM_RUNS):
            begun = time.perf_counter()
            engine(batch)
            times.append(time.perf_counter() - begun)
        quickest.append(min(times))
    return dict(zip(sizes, quickest, strict=False))


def _fill_batch(inputs: Feeds, size: int) -> dict[str, Array]:
    """A batch of `size` rows of `inputs`, over and over."""
    try:
        return {name: np.resize(array, (size, *array.shape[1:])) for name, array in inputs.items()}
    except (MemoryError, ValueError) as error:
        raise EngineError(
            f"A batch of {size} rows does not fit into memory. Lower --max-batch."
        ) from error
